package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestX05LargeDatagrams sends datagrams of nearly 64 KiB, which go in fragments, through every kind of frontend to
// backends on both nodes, and gets as much back: a client outside, a pod, and a process of the node, whose sockets nobody
// translates.
func TestX05LargeDatagrams(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		for _, backend := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			s := c.serve(t, lab.AllKinds, backend)
			for _, kind := range frontendKinds {
				for _, family := range families {
					t.Run(fmt.Sprintf("backend %s/%s/%s", backend.Role, kind, family), func(t *testing.T) {
						clients := []*lab.Host{c.Client, c.Toolbox}
						if slices.Contains(routedKinds, kind) {
							clients = append(clients, c.Node1)
						}
						for _, from := range clients {
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
	askOn(t, conn) // so that the neighbour is known: not all fragments wait for it
	exchangeLargeOn(t, conn, 60_000)
}

func exchangeLargeOn(t *testing.T, conn *lab.Conn, size int) {
	t.Helper()
	var all error
	begin := time.Now()
	for i := range 3 {
		question := bytes.Repeat([]byte{'a' + byte(i), 'x', 'y', 'z', '0', '1', '2'}, size/7)
		err := sendLarge(conn, question)
		if err == nil {
			return
		}
		all = errors.Join(all, fmt.Errorf("after %s: %w", time.Since(begin), err))
	}
	t.Errorf("%s to %s: %v", conn.LocalAddr(), conn.RemoteAddr(), all)
}

// sendLarge sends a datagram and compares what comes back behind who has answered whom.
func sendLarge(conn *lab.Conn, question []byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(question); err != nil {
		return err
	}
	return readLarge(conn, question, time.Second)
}

// readLarge waits for what comes back.
func readLarge(conn *lab.Conn, question []byte, limit time.Duration) error {
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
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

// disorders are the ways in which the fragments of a datagram may come, of which it is made nevertheless.
var disorders = map[string]func(count int) []int{
	"reversed": func(count int) []int {
		order := make([]int, count)
		for i := range order {
			order[i] = count - 1 - i
		}
		return order
	},
	"each twice": func(count int) []int { return append(rand.Perm(count), rand.Perm(count)...) },
}

// TestX05DisorderlyFragments sends datagrams whose fragments come out of order, and twice, after one that lost a fragment
// on the way. They reach the backend whole, and are answered.
func TestX05DisorderlyFragments(t *testing.T) {
	onNarrow(t, func(t *testing.T, c *cluster) {
		for _, backend := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			s := c.serve(t, lab.AllKinds, backend)
			for _, kind := range frontendKinds {
				for _, family := range families {
					for name, order := range disorders {
						t.Run(fmt.Sprintf("backend %s/%s/%s/%s", backend.Role, kind, family, name), func(t *testing.T) {
							for _, from := range []*lab.Host{c.Client, c.Toolbox} {
								exchangeDisorderly(t, from, s.Frontend(c.Lab, kind, family), family, order)
							}
						})
					}
				}
			}
		}
		if counters(t, c).FragmentHeld == 0 {
			t.Error("no fragment has waited for the first of its datagram")
		}
	})
}

// exchangeDisorderly sends a datagram in fragments, and one before that is never completed, and compares what comes back.
func exchangeDisorderly(t *testing.T, from *lab.Host, to netip.AddrPort, family compile.Family, order func(count int) []int) {
	t.Helper()
	source := netip.AddrPortFrom(from.Addr(family), clientPort())
	conn := dial(t, from, compile.UDP, source, to)
	askOn(t, conn) // so that the neighbour is known
	gateway, err := from.Gateway(family)
	if err != nil {
		t.Fatal(err)
	}
	id := uint16(rand.Uint32())
	question := bytes.Repeat([]byte("abcdefg"), 8_000/7)
	lossy := func(count int) []int { return rand.Perm(count)[1:] }
	for i, order := range []func(count int) []int{lossy, order} {
		if err := from.InjectFragments(gateway, source, to, id+uint16(i), string(question), order); err != nil {
			t.Fatal(err)
		}
	}
	if err := readLarge(conn, question, 10*time.Second); err != nil {
		t.Errorf("%s to %s: %v", from.Role, to, err)
	}
}
