package loader

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/namespaces"
)

// TestDestroySockets closes connected sockets in another network namespace, by each of the ways, and shows what the
// application sees (rule D05).
func TestDestroySockets(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	four, six := answer(t, "127.0.0.1", "four"), answer(t, "::1", "six")
	edge.serve(t,
		socketService("dns", compile.UDP, "10.96.0.1:53", four), socketService("dns6", compile.UDP, "[fd00:96::1]:53", six),
		socketService("web", compile.TCP, "10.96.0.1:80", four), socketService("web6", compile.TCP, "[fd00:96::1]:80", six))
	sockets, err := NewSockets(edge.set)
	if err != nil {
		t.Fatal(err)
	}
	defer sockets.Close()
	if sockets.doomed == nil {
		t.Error("this kernel has bpf_sock_destroy, and it is not used")
	}
	byNetlink := &Sockets{list: sockets.list}
	enterCgroup(t, edge.cgroup)
	for _, test := range []struct {
		name, network, address string
		sockets                *Sockets
	}{
		{"udp", "udp", "10.96.0.1:53", sockets},
		{"udp6", "udp", "[fd00:96::1]:53", sockets},
		{"tcp", "tcp", "10.96.0.1:80", sockets},
		{"tcp6", "tcp", "[fd00:96::1]:80", sockets},
		{"udp by netlink", "udp", "10.96.0.1:53", byNetlink},
		{"udp6 by netlink", "udp", "[fd00:96::1]:53", byNetlink},
		{"tcp by netlink", "tcp", "10.96.0.1:80", byNetlink},
		{"udp on a v4-mapped socket, by netlink", "udp", "[::ffff:10.96.0.1]:53", byNetlink},
	} {
		t.Run(test.name, func(t *testing.T) { testDestroy(t, test.sockets, test.network, test.address) })
	}
}

func testDestroy(t *testing.T, sockets *Sockets, network, address string) {
	protocol := unix.IPPROTO_UDP
	if network == "tcp" {
		protocol = unix.IPPROTO_TCP
	}
	socket, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	kept, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	cookie, keptCookie := socketCookie(t, socket), socketCookie(t, kept)
	listed, err := sockets.List(protocol)
	if err != nil {
		t.Fatal(err)
	}
	var cookies []uint64
	for _, one := range listed {
		cookies = append(cookies, one.Cookie)
	}
	if !slices.Contains(cookies, cookie) || !slices.Contains(cookies, keptCookie) {
		t.Fatalf("listed %v, without %d and %d", listed, cookie, keptCookie)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := socket.Read(make([]byte, 10))
		waiting <- err
	}()
	time.Sleep(10 * time.Millisecond) // mostly, it waits in poll() by then; if not, the read fails at once
	if err := sockets.Destroy(protocol, []uint64{cookie}); err != nil {
		t.Fatal(err)
	}
	select {
	case err = <-waiting:
	case <-time.After(5 * time.Second):
		t.Fatal("the application still waits")
	}
	if !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("recv() gives %v", err)
	}
	socket.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err = socket.Read(make([]byte, 10))
	if want := map[string]error{"udp": os.ErrDeadlineExceeded, "tcp": io.EOF}[network]; !errors.Is(err, want) {
		t.Errorf("then recv() gives %v", err)
	}
	_, err = socket.Write([]byte("?"))
	if want := map[string]syscall.Errno{"udp": syscall.EDESTADDRREQ, "tcp": syscall.EPIPE}[network]; !errors.Is(err, want) {
		t.Errorf("then send() gives %v", err)
	}
	if _, err := kept.Write([]byte("?")); err != nil {
		t.Errorf("the other socket: %v", err)
	}
	if events := pollAfter(t, kept, func() { sockets.Destroy(protocol, []uint64{keptCookie}) }); events&unix.POLLERR == 0 {
		t.Errorf("poll() gives %#x, without POLLERR", events)
	}
}

// pollAfter does something and returns what poll() then says of a socket.
func pollAfter(t *testing.T, socket net.Conn, do func()) int16 {
	t.Helper()
	do()
	raw, err := socket.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	polled := []unix.PollFd{{Events: unix.POLLIN}}
	raw.Control(func(fd uintptr) {
		polled[0].Fd = int32(fd)
		_, err = unix.Poll(polled, 1000)
	})
	if err != nil {
		t.Error(err)
	}
	return polled[0].Revents
}

// TestDestroyElsewhere lists and closes in the network namespace of the thread alone.
func TestDestroyElsewhere(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	four := answer(t, "127.0.0.1", "four")
	edge.serve(t, socketService("dns", compile.UDP, "10.96.0.1:53", four))
	sockets, err := NewSockets(edge.set)
	if err != nil {
		t.Fatal(err)
	}
	defer sockets.Close()
	enterCgroup(t, edge.cgroup)
	socket, err := net.Dial("udp", "10.96.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	cookie := socketCookie(t, socket)
	registry, err := namespaces.New(namespaces.Options{Set: edge.set})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	err = registry.Visit(func() error {
		listed, err := sockets.List(unix.IPPROTO_UDP)
		for _, one := range listed {
			if one.Cookie == cookie {
				found++
			}
		}
		return err
	})
	if err != nil || found != 1 {
		t.Errorf("found in %d namespaces: %v", found, err)
	}
}

// enterCgroup moves this process into a cgroup until the test ends.
func enterCgroup(t *testing.T, cgroup string) {
	t.Helper()
	move := func(to string) error { return os.WriteFile(to+"/cgroup.procs", []byte("0"), 0) }
	if err := move(cgroup); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := move(cgroup + "/.."); err != nil {
			t.Error(err)
		}
	})
}

func socketCookie(t *testing.T, socket net.Conn) (cookie uint64) {
	t.Helper()
	raw, err := socket.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) }); err != nil {
		t.Fatal(err)
	}
	return cookie
}
