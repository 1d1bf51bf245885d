package nodecheck

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"

	"github.com/weir-lb/weir/controlplane/compile"
)

// service is a Service with a NodePort.
func service(protocol compile.Protocol, family compile.Family, port uint16) compile.Service {
	any := map[compile.Family]netip.Addr{compile.IPv4: netip.IPv4Unspecified(), compile.IPv6: netip.IPv6Unspecified()}[family]
	return compile.Service{
		ID:        compile.ID{Namespace: "default", Name: "web", Protocol: protocol, Family: family},
		Frontends: []compile.Frontend{{Kind: compile.NodePort, Address: netip.AddrPortFrom(any, port)}},
	}
}

// reasons lists what is found.
func reasons(t *testing.T, services ...compile.Service) []string {
	t.Helper()
	problems, err := Look(services)
	if err != nil {
		t.Fatal(err)
	}
	found := []string{}
	for _, p := range problems {
		found = append(found, p.Object+" "+p.Reason)
	}
	return found
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

func TestLook(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and with it the namespace
	here, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	four, six := service(compile.TCP, compile.IPv4, 30080), service(compile.UDP, compile.IPv6, 30080)
	set := func(family compile.Family, value string) {
		t.Helper()
		if err := os.WriteFile(forwarding[family].path, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	set(compile.IPv4, "0")
	set(compile.IPv6, "0")
	expect(t, "no Service", reasons(t))
	expect(t, "IPv4 alone", reasons(t, four), "Node ForwardingOff")
	expect(t, "both", reasons(t, four, six), "Node ForwardingOff", "Node ForwardingOff")
	set(compile.IPv4, "1")
	set(compile.IPv6, "1")
	expect(t, "forwarding", reasons(t, four, six))

	for _, test := range []struct {
		network, address string
		want             []string
	}{
		{"tcp4", "0.0.0.0:30080", []string{"Service default/web NodePortListening"}},
		{"tcp", "[::]:30080", []string{"Service default/web NodePortListening"}},
		{"udp6", "[::]:30080", []string{"Service default/web NodePortListening"}},
		{"tcp4", "127.0.0.1:30080", nil},
		{"tcp4", "0.0.0.0:30081", nil},
		{"udp4", "0.0.0.0:30080", nil},
	} {
		var closer interface{ Close() error }
		if test.network[0] == 'u' {
			closer, err = net.ListenPacket(test.network, test.address)
		} else {
			closer, err = net.Listen(test.network, test.address)
		}
		if err != nil {
			t.Fatal(err)
		}
		expect(t, test.network+" "+test.address, reasons(t, four, six), test.want...)
		closer.Close()
	}
}
