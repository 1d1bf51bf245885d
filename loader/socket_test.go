package loader

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/weir-lb/weir/controlplane/apply"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// socketReport is what a client in a cgroup saw.
type socketReport struct {
	Errno  int    // of connect or the first send
	Answer string // what came back
	Peer   string // getpeername, or the sender of the answer
}

// socketClientEnv makes the test binary a client: "network address".
const socketClientEnv = "WEIR_SOCKET_CLIENT"

func TestMain(m *testing.M) {
	if task := os.Getenv(socketClientEnv); task != "" {
		runSocketClient(task)
		return
	}
	os.Exit(m.Run())
}

// runSocketClient joins the cgroup named first and talks to the address named last.
func runSocketClient(task string) {
	var cgroup, network, address string
	fmt.Sscan(task, &cgroup, &network, &address)
	var report socketReport
	err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0)
	if err == nil {
		err = talk(&report, network, address)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		report.Errno = int(errno)
	} else if err != nil {
		report.Answer = err.Error()
	}
	json.NewEncoder(os.Stdout).Encode(report)
}

func talk(report *socketReport, network, address string) error {
	deadline := time.Now().Add(3 * time.Second)
	answer := make([]byte, 100)
	switch network {
	case "bind":
		socket, err := net.Listen("tcp", address)
		if err == nil {
			socket.Close()
		}
		return err
	case "sendto":
		socket, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return err
		}
		socket.SetDeadline(deadline)
		for range 2 { // the second send goes on with the first one's backend
			if _, err := socket.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address))); err != nil {
				return err
			}
			n, from, err := socket.ReadFrom(answer)
			if err != nil {
				return err
			}
			report.Answer, report.Peer = string(answer[:n]), from.String()
		}
		return nil
	}
	socket, err := net.DialTimeout(network, address, 3*time.Second)
	if err != nil {
		return err
	}
	socket.SetDeadline(deadline)
	if _, err := socket.Write([]byte("?")); err != nil {
		return err
	}
	n, err := socket.Read(answer)
	report.Answer, report.Peer = string(answer[:n]), peerName(socket)
	return err
}

// peerName asks the kernel, not the library, which remembers what it was told to connect to.
func peerName(socket net.Conn) string {
	raw, err := socket.(syscall.Conn).SyscallConn()
	if err != nil {
		return err.Error()
	}
	name := ""
	raw.Control(func(fd uintptr) {
		peer, err := syscall.Getpeername(int(fd))
		switch peer := peer.(type) {
		case *syscall.SockaddrInet4:
			name = netip.AddrPortFrom(netip.AddrFrom4(peer.Addr), uint16(peer.Port)).String()
		case *syscall.SockaddrInet6:
			name = netip.AddrPortFrom(netip.AddrFrom16(peer.Addr), uint16(peer.Port)).String()
		default:
			name = fmt.Sprint(err)
		}
	})
	return name
}

// answer serves one word to whoever asks, over TCP and UDP, and returns where.
func answer(t *testing.T, address, word string) netip.AddrPort {
	t.Helper()
	tcp, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(tcp.Addr().String())
	udp, err := net.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close(); udp.Close() })
	go func() {
		for {
			socket, err := tcp.Accept()
			if err != nil {
				return
			}
			socket.Read(make([]byte, 1))
			socket.Write([]byte(word))
			socket.Close()
		}
	}()
	go func() {
		question := make([]byte, 10)
		for {
			_, from, err := udp.ReadFrom(question)
			if err != nil {
				return
			}
			udp.WriteTo([]byte(word), from)
		}
	}()
	return at
}

// testCgroup makes a cgroup of this test's own.
func testCgroup(t *testing.T) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		dir := filepath.Join(root, fmt.Sprintf("weir-test-%d", os.Getpid()))
		if _, err := cgroupID(root); err != nil {
			continue
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Rmdir(dir) })
		return dir
	}
	t.Skip("no cgroup v2 on this host")
	return ""
}

// inCgroup runs a client in the cgroup.
func inCgroup(t *testing.T, cgroup, network, address string) socketReport {
	t.Helper()
	client := exec.Command(os.Args[0])
	client.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", socketClientEnv, cgroup, network, address))
	out, err := client.Output()
	if err != nil {
		t.Fatal(err)
	}
	var report socketReport
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return report
}

func socketService(name string, protocol compile.Protocol, frontend string, backends ...netip.AddrPort) compile.Service {
	address := netip.MustParseAddrPort(frontend)
	family := compile.IPv4
	if address.Addr().Is6() {
		family = compile.IPv6
	}
	desired := compile.Service{
		ID:          compile.ID{Namespace: "default", Name: name, Protocol: protocol, Family: family},
		Frontends:   []compile.Frontend{{Kind: compile.ClusterIP, Address: address}},
		NoEndpoints: len(backends) == 0,
	}
	for _, backend := range backends {
		desired.Inside = append(desired.Inside, compile.Backend{Address: backend, Local: true})
	}
	return desired
}

// testSizes is room for a few of everything.
var testSizes = maps.Sizes{Services: 64, Frontends: 64, Backends: 64, SlotBlocks: 64, FlowsIPv4: 64, FlowsIPv6: 64, Embryos: 64, Devices: 16}

// socketEdge is the hooks on a cgroup of the test's own.
type socketEdge struct {
	set    *maps.Set
	cgroup string
	pins   string
	*Programs
}

// newSocketEdge loads and attaches the hooks.
func newSocketEdge(t *testing.T, constants Constants) socketEdge {
	t.Helper()
	set, err := maps.New(testSizes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	constants.SNATPortMin, constants.SNATPortMax = 61000, 65535
	constants.JiffiesPerSecond, constants.SetRetval = 1000, true
	programs, err := Load(set, constants)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { programs.Close() })
	edge := socketEdge{set: set, cgroup: testCgroup(t), pins: mountBPFFS(t), Programs: programs}
	if changed, err := programs.AttachSockets(edge.pins, edge.cgroup); err != nil || changed != len(programs.socketHooks()) {
		t.Fatalf("attached %d programs: %v", changed, err)
	}
	t.Cleanup(func() {
		if removed, err := DetachSockets(edge.pins); err != nil || len(removed) != len(programs.socketHooks()) {
			t.Errorf("detached %v: %v", removed, err)
		}
	})
	return edge
}

// serve writes services to the maps.
func (e socketEdge) serve(t *testing.T, services ...compile.Service) {
	t.Helper()
	applier, err := apply.New(e.set, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := applier.Sync(services); err != nil {
		t.Fatal(err)
	}
}

// TestSocketEdge talks through the hooks with real sockets: the application reaches a backend and sees the frontend.
func TestSocketEdge(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	if changed, err := edge.AttachSockets(edge.pins, edge.cgroup); err != nil || changed != 0 {
		t.Errorf("a second time %d programs were attached: %v", changed, err)
	}
	four, six := answer(t, "127.0.0.1", "four"), answer(t, "::1", "six")
	services := []compile.Service{
		socketService("web", compile.TCP, "10.96.0.1:80", four), socketService("web6", compile.TCP, "[fd00:96::1]:80", six),
		socketService("dns", compile.UDP, "10.96.0.1:53", four), socketService("dns6", compile.UDP, "[fd00:96::1]:53", six),
		socketService("node", compile.TCP, "0.0.0.0:30080", four), socketService("node6", compile.TCP, "[::]:30080", six),
		socketService("none", compile.TCP, "10.96.0.2:80"),
	}
	local := socketService("local", compile.TCP, "10.96.0.3:80")
	local.NoEndpoints = false
	edge.serve(t, append(services, local)...)

	for _, test := range []struct {
		name, network, address string
		want                   socketReport
	}{
		{"tcp", "tcp", "10.96.0.1:80", socketReport{0, "four", "10.96.0.1:80"}},
		{"tcp6", "tcp", "[fd00:96::1]:80", socketReport{0, "six", "[fd00:96::1]:80"}},
		{"tcp on a v4-mapped socket", "tcp", "[::ffff:10.96.0.1]:80", socketReport{0, "four", "10.96.0.1:80"}},
		{"connected udp", "udp", "10.96.0.1:53", socketReport{0, "four", "10.96.0.1:53"}},
		{"connected udp6", "udp", "[fd00:96::1]:53", socketReport{0, "six", "[fd00:96::1]:53"}},
		{"unconnected udp", "sendto", "10.96.0.1:53", socketReport{0, "four", "10.96.0.1:53"}},
		{"unconnected udp6", "sendto", "[fd00:96::1]:53", socketReport{0, "six", "[fd00:96::1]:53"}},
		{"N04 NodePort on localhost", "tcp", "127.0.0.1:30080", socketReport{0, "four", "127.0.0.1:30080"}},
		{"N04 NodePort on localhost, v6", "tcp", "[::1]:30080", socketReport{0, "six", "[::1]:30080"}},
		{"P06 no endpoints", "tcp", "10.96.0.2:80", socketReport{Errno: int(syscall.ECONNREFUSED)}},
		{"P05 no local endpoint", "tcp", "10.96.0.3:80", socketReport{Errno: int(syscall.EHOSTUNREACH)}},
		{"N08 bind of a NodePort", "bind", "0.0.0.0:30080", socketReport{Errno: int(syscall.EADDRINUSE)}},
		{"bind of another port", "bind", "0.0.0.0:30081", socketReport{}},
		{"not a frontend", "tcp", four.String(), socketReport{0, "four", four.String()}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := inCgroup(t, edge.cgroup, test.network, test.address); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}
