package packet

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// sticky returns a service with affinity, of backends that any program can send to, in order of their addresses. Both
// sides pick by chance, so that only memory can make them agree.
func (tr *trial) sticky(count int) compile.Service {
	var backends []compile.Backend
	for i := range count {
		host := pair(fmt.Sprintf("10.77.0.%d", i+1), fmt.Sprintf("fd77::%x", i+1))
		backends = append(backends, tr.local(host))
	}
	web := tr.service("web", backends...)
	web.OutsideAlgorithm = maps.AlgorithmRandom
	web.AffinityTimeout = time.Hour
	return web
}

// pickFrom opens a flow from the client's port at the node edge, and returns its backend.
func (tr *trial) pickFrom(port uint16, to netip.AddrPort) netip.AddrPort {
	tr.Helper()
	return tr.tupleOf(tr.run("eth0", tr.frame("eth0", tr.at(tr.Client, port), to).Bytes())).to
}

// A client keeps its backend over all frontends of a Service port, and at every edge; another port of the Service is
// another matter (rule A02).
func TestA02AffinityOverFrontendsAndEdges(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		web, other := tr.sticky(9), tr.sticky(9)
		external := web // as where the policies differ: the same port, another ID
		external.ID.Scope = compile.ScopeExternal
		web.Frontends, external.Frontends = web.Frontends[:1], web.Frontends[1:]
		other.ID.Name, other.Frontends = "other", []compile.Frontend{{Kind: compile.ClusterIP, Address: tr.at(tr.ClusterIP, servicePort+1)}}
		tr.serve(web, external, other)
		frontends := []netip.AddrPort{
			tr.at(tr.ClusterIP, servicePort), tr.at(tr.NodeEth1, nodePort), tr.at(tr.LoadBalancer, servicePort), tr.at(tr.External, servicePort),
		}
		first := tr.pickFrom(clientPort, frontends[0])
		others := make(map[netip.AddrPort]bool)
		for n := range uint16(12) {
			to := frontends[int(n)%len(frontends)]
			if next := tr.pickFrom(clientPort+1+n, to); next != first {
				tr.Errorf("%s: %s is picked, before it was %s", to, next, first)
			}
			inside := tr.podFrame("pod0", tr.at(tr.Client, clientPort+n), to)
			if next := tr.tupleOf(tr.runProgram(PodIngress, "pod0", inside.Bytes())).to; next != first {
				tr.Errorf("%s at the pod edge: %s is picked, before it was %s", to, next, first)
			}
			from := pair(fmt.Sprintf("192.0.2.%d", 100+n), fmt.Sprintf("2001:db8::%x", 0x100+n))
			frame := tr.frame("eth0", tr.at(from, clientPort), tr.at(tr.ClusterIP, servicePort+1))
			others[tr.tupleOf(tr.run("eth0", frame.Bytes())).to] = true
		}
		// All 12 clients of 9 backends have the same one once in 10^10 runs.
		if len(others) == 1 {
			tr.Errorf("every client gets %v", others)
		}
	})
}

// Whichever of its backends a client has, it is found in the list of those there are (rule A04).
func TestA04AffinityFindsEveryBackend(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		for count := range 12 {
			web := tr.sticky(count + 1)
			tr.serve(web)
			for i, backend := range web.Inside {
				port := uint16(1000 + 100*count + i)
				tr.remember(web, backend.Address)
				if got := tr.pickFrom(port, tr.at(tr.LoadBalancer, servicePort)); got != backend.Address {
					tr.Fatalf("of %d backends %s is picked, not %s", count+1, got, backend.Address)
				}
			}
		}
	})
}

// remember makes a backend the one that the client has.
func (tr *trial) remember(web compile.Service, backend netip.AddrPort) {
	tr.Helper()
	client := tr.at(tr.Client, 0).Addr()
	key := maps.AffinityKey{Group: web.ID.Group(), Client: maps.AddressOf(client)}
	tr.pickFrom(uint16(len(tr.model.born)+2000), tr.at(tr.ClusterIP, servicePort)) // for the rest of an entry
	var entry maps.AffinityEntry
	if err := tr.Maps.Affinity.Lookup(&key, &entry); err != nil {
		tr.Fatal(err)
	}
	err := maps.Each(tr.Maps.Backends, func(index uint32, b maps.Backend) bool {
		if netip.AddrPortFrom(b.Address.Addr(), b.Port) == backend && b.Generation != 0 {
			entry.Backend, entry.Generation = index, b.Generation
		}
		return true
	})
	if err == nil {
		err = tr.Maps.Affinity.Put(&key, &entry)
	}
	if err != nil {
		tr.Fatal(err)
	}
	tr.model.affinity[clientKey{key.Group, client}] = backend
}

// A client whose backend has left the list of the side it comes from gets another one, and keeps that (rule A04).
func TestA04AffinityMovesFromWhatIsGone(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		web := tr.sticky(3)
		tr.serve(web)
		to := tr.at(tr.LoadBalancer, servicePort)
		first := tr.pickFrom(clientPort, to)
		isFirst := func(b compile.Backend) bool { return b.Address == first }
		without := web
		without.Outside = slices.DeleteFunc(slices.Clone(web.Outside), isFirst)
		tr.serve(without)
		inside := tr.podFrame("pod0", tr.at(tr.Client, clientPort), to)
		if kept := tr.tupleOf(tr.runProgram(PodIngress, "pod0", inside.Bytes())).to; kept != first {
			tr.Errorf("inside, where it is still to be had, %s becomes %s", first, kept)
		}
		second := tr.pickFrom(clientPort+1, to)
		if second == first {
			tr.Errorf("%s is picked, and is not in the list", first)
		}
		tr.serve(web)
		if third := tr.pickFrom(clientPort+2, to); third != second {
			tr.Errorf("%s is picked, before it was %s", third, second)
		}
		tr.expectCounters(maps.PacketCounters{FlowNew: 4, AffinityNew: 1, AffinityKept: 2, AffinityMoved: 1})
	})
}

// New flows alone keep a client remembered, for as long as the timeout says (rules A01, A03).
func TestA03AffinityTimeout(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		web := tr.sticky(9)
		tr.serve(web)
		to := tr.at(tr.LoadBalancer, servicePort)
		first := tr.pickFrom(clientPort, to)
		tr.age(web, time.Hour)
		if kept := tr.pickFrom(clientPort+1, to); kept != first {
			tr.Errorf("%s is picked within the timeout, before it was %s", kept, first)
		}
		tr.age(web, time.Hour) // since the second flow
		if kept := tr.pickFrom(clientPort+2, to); kept != first {
			tr.Errorf("%s is picked: the second flow did not count", kept)
		}
		tr.age(web, time.Hour)
		tr.pickFrom(clientPort, to) // a retransmitted first packet is no new flow
		tr.age(web, time.Second)
		moved := false
		for n := range uint16(20) {
			tr.model.forgetClients()
			moved = tr.pickFrom(clientPort+3+n, to) != first || moved
			tr.age(web, time.Hour+time.Second)
		}
		// All 20 at the same of 9 happens once in 10^19 runs.
		if !moved {
			tr.Errorf("%s is remembered longer than the timeout", first)
		}
		if err := empty(tr.Maps.Counters); err != nil { // the model knows no time
			tr.Fatal(err)
		}
		tr.model.counters = maps.PacketCounters{}
	})
}

// forgetClients makes every client a new one.
func (m *Model) forgetClients() { clear(m.affinity) }

// age lets time pass for what is remembered of the client.
func (tr *trial) age(web compile.Service, by time.Duration) {
	tr.Helper()
	key := maps.AffinityKey{Group: web.ID.Group(), Client: maps.AddressOf(tr.at(tr.Client, 0).Addr())}
	var entry maps.AffinityEntry
	if err := tr.Maps.Affinity.Lookup(&key, &entry); err != nil {
		tr.Fatal(err)
	}
	entry.Seconds -= uint32(by / time.Second)
	if err := tr.Maps.Affinity.Put(&key, &entry); err != nil {
		tr.Fatal(err)
	}
}

// Affinity comes and goes while connections stay where they are (rule A05).
func TestA05AffinitySwitchedLive(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		web := tr.sticky(9)
		none := web
		none.AffinityTimeout = 0
		to := tr.at(tr.LoadBalancer, servicePort)
		tr.serve(none)
		first := tr.pickFrom(clientPort, to)
		for n := range uint16(6) {
			for _, service := range []compile.Service{web, none} {
				tr.serve(service)
				if now := tr.pickFrom(clientPort, to); now != first {
					tr.Errorf("a known flow moves from %s to %s", first, now)
				}
			}
			tr.pickFrom(clientPort+1+n, to)
		}
	})
}

// Without memory, Maglev sends a client to the same backend whatever its port: so do nodes that have not met it.
func TestAffinityByMaglevAgreesOverNodes(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		web := tr.sticky(9)
		web.OutsideAlgorithm = maps.AlgorithmMaglev
		tr.serve(web)
		to := tr.at(tr.LoadBalancer, servicePort)
		first := tr.pickFrom(clientPort, to)
		for port := uint16(clientPort + 1); port < clientPort+10; port++ {
			if err := empty(tr.Maps.Affinity); err != nil {
				tr.Fatal(err)
			}
			tr.model.forgetClients()
			if next := tr.pickFrom(port, to); next != first {
				tr.Errorf("from port %d %s is picked, before it was %s", port, next, first)
			}
		}
	})
}
