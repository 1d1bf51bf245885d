package loader

import (
	"net"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// TestSocketLoads connects sockets to a backend: they count as open to it, and no more when they are closed or refused.
func TestSocketLoads(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	local := answer(t, "127.0.0.1", "local")
	edge.serve(t, socketService("web", compile.TCP, "10.96.0.1:80", local), socketService("dns", compile.UDP, "10.96.0.1:53", local))
	sockets := func() (sum int32) {
		err := maps.Each(edge.set.BackendLoads, func(_ uint32, load maps.BackendLoad) bool { sum += load.Sockets; return true })
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	enterCgroup(t, edge.cgroup)
	var held []net.Conn
	for _, use := range []struct {
		network, address string
		open             int32
	}{{"tcp", "10.96.0.1:80", 1}, {"udp", "10.96.0.1:53", 2}, {"tcp", local.String(), 2}} {
		socket, err := net.Dial(use.network, use.address)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, socket)
		if got := sockets(); got != use.open {
			t.Errorf("with a socket to %s, open are %d, want %d", use.address, got, use.open)
		}
	}
	for _, socket := range held {
		socket.Close()
	}
	if got := sockets(); got != 0 {
		t.Errorf("with all closed, open are %d", got)
	}
}
