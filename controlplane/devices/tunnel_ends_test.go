package devices

import (
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestTunnelEnds follows where tunnels of the node come from, the addresses of its devices of the node edge, and the networks
// behind bridges that lead to pods alone.
func TestTunnelEnds(t *testing.T) {
	w := newWorld(t)
	w.veth("eth0", w.newPod())
	w.addAddress("eth0", "192.0.2.1/24", "2001:db8::1/64")
	bridge := w.add(&netlink.Bridge{LinkAttrs: named("cni0")})
	w.addAddress("cni0", "10.1.1.1/24", "10.1.1.2/32", "fd00:1::1/64")
	m := w.run(Options{Set: newSet(t), Attacher: newFakeAttacher()})
	wantEnds := func(want string) {
		t.Helper()
		eventually(t, func() error {
			if got := m.TunnelEnds().String(); got != want {
				return fmt.Errorf("it is %s, want %s", got, want)
			}
			return nil
		})
	}
	wantEnds("192.0.2.1,2001:db8::1") // a bridge without ports leads nowhere

	pod := w.veth("veth1", w.newPod())
	if err := netlink.LinkSetMaster(pod, bridge); err != nil {
		t.Fatal(err)
	}
	wantEnds("192.0.2.1,2001:db8::1,10.1.1.0/24,fd00:1::/64")
	w.veth("eth1", w.newPod())
	w.addAddress("eth1", "198.51.100.1/24")
	wantEnds("192.0.2.1,198.51.100.1,2001:db8::1,10.1.1.0/24,fd00:1::/64")
	w.addAddress("eth0", "203.0.113.1/24")
	w.removeAddress("eth0", "192.0.2.1/24")
	w.remove("eth1")
	wantEnds("203.0.113.1,2001:db8::1,10.1.1.0/24,fd00:1::/64")
}
