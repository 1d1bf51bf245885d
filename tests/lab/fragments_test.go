package lab_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestX05LargeDatagrams sends datagrams of nearly 64 KiB, which go in fragments, through every kind of frontend to
// backends on both nodes, and gets as much back.
func TestX05LargeDatagrams(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		for _, backend := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			s := c.serve(t, lab.AllKinds, backend)
			for _, kind := range frontendKinds {
				for _, family := range families {
					t.Run(fmt.Sprintf("backend %s/%s/%s", backend.Role, kind, family), func(t *testing.T) {
						for _, from := range []*lab.Host{c.Client, c.Toolbox} {
							exchangeLarge(t, from, s.Frontend(c.Lab, kind, family))
						}
					})
				}
			}
		}
	})
}

// exchangeLarge sends a datagram that comes back. The first one may only tell the sender of a smaller path MTU.
func exchangeLarge(t *testing.T, from *lab.Host, to netip.AddrPort) {
	t.Helper()
	conn := dial(t, from, compile.UDP, netip.AddrPort{}, to)
	var err error
	for i := range 3 {
		question := bytes.Repeat([]byte{'a' + byte(i), 'x', 'y', 'z', '0', '1', '2'}, 60_000/7)
		if err = sendLarge(conn, question); err == nil {
			return
		}
	}
	t.Errorf("%s to %s: %v", from.Role, to, err)
}

// sendLarge sends a datagram and compares what comes back behind who has answered whom.
func sendLarge(conn *lab.Conn, question []byte) error {
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(question); err != nil {
		return err
	}
	answer := make([]byte, 1<<16)
	n, err := conn.Read(answer)
	if err != nil {
		return err
	}
	at := bytes.Index(answer[:n], question[:7])
	if n != len(question) || at < 0 || !bytes.HasPrefix(question, answer[at:n]) {
		return fmt.Errorf("of %d bytes there came back %d, others from byte %d on", len(question), n, at)
	}
	return nil
}
