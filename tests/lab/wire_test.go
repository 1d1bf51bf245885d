package lab_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// notForUs are frames that a device sees on the wire, and that are not for its host.
var notForUs = map[string]net.HardwareAddr{
	"another host's": {0x02, 0, 0, 0, 0, 0x99},
	"broadcast":      {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	"multicast":      {0x01, 0, 0x5e, 0, 0, 0x01},
}

// TestFramesForOthers puts datagrams to a frontend on the wire in frames for the node, which are answered, and in
// frames for others, which are not.
func TestFramesForOthers(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Web...)
		for _, from := range []*lab.Host{c.Client, c.Toolbox} {
			if from == c.Client && c.Options.Outside == lab.Tun {
				continue // no frames there
			}
			for _, family := range families {
				testFrames(t, from, family, s.Frontend(c.Lab, compile.LoadBalancer, family))
			}
		}
	})
}

func testFrames(t *testing.T, from *lab.Host, family compile.Family, to netip.AddrPort) {
	t.Helper()
	// The socket that answers come back to; what it asks resolves the gateway.
	conn := dial(t, from, compile.UDP, netip.AddrPort{}, to)
	askOn(t, conn)
	gateway, err := from.Gateway(family)
	if err != nil {
		t.Fatal(err)
	}
	if !answered(t, from, gateway, family, to) {
		t.Errorf("%s to %s: a frame for the node is not answered", from.Role, to)
	}
	for name, mac := range notForUs {
		if answered(t, from, mac, family, to) {
			t.Errorf("%s to %s: a frame with the MAC %s (%s) is answered", from.Role, to, mac, name)
		}
	}
}

// answered injects one datagram of a new flow and reports whether an answer comes.
func answered(t *testing.T, from *lab.Host, mac net.HardwareAddr, family compile.Family, to netip.AddrPort) bool {
	t.Helper()
	local := netip.AddrPortFrom(from.Addr(family), clientPort())
	conn := dial(t, from, compile.UDP, local, to)
	if err := from.InjectUDP(mac, local, to, fmt.Sprintf("injected for %s", mac)); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err := conn.Read(make([]byte, 2048))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}
