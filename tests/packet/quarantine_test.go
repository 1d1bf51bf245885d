package packet

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// patient is a test of backends of which one is silent.
type patient struct {
	*trial
	device        string
	to            netip.AddrPort
	silent, other compile.Backend
	ports         uint16 // given out
}

// onSilentBackend runs a test at both edges.
func onSilentBackend(t *testing.T, test func(p *patient)) {
	t.Helper()
	c := cases{programs: []Program{NodeXDP, NodeIngress, PodIngress}, protocols: []compile.Protocol{compile.TCP}}
	forEach(t, c, func(tr *trial) {
		p := &patient{trial: tr, to: tr.at(tr.LoadBalancer, servicePort), silent: tr.local(tr.OtherPod), other: tr.local(tr.BarePod)}
		p.device, _ = tr.askedBy()
		test(p)
	})
}

// opens opens a flow from a port of its own, and returns it.
func (p *patient) opens(client Pair) Frame {
	p.ports++
	return p.frame(p.device, p.at(client, 2000+p.ports), p.to)
}

// picks returns the backend of a new flow.
func (p *patient) picks(client Pair) netip.AddrPort {
	p.Helper()
	return p.tupleOf(p.run(p.device, p.opens(client).Bytes())).to
}

// failFor has a client ask the silent backend, alone in its service, twice.
func (p *patient) failFor(clients ...Pair) {
	p.Helper()
	p.serve(p.service("web", p.silent))
	for _, client := range clients {
		in := p.opens(client)
		p.run(p.device, in.Bytes())
		p.must(p.model.silence(p.World, flowID{tuple{in.From, in.To}, p.Device(p.device).Record.EdgeId, uint8(p.protocol)}))
		p.run(p.device, in.Bytes())
	}
	p.serve(p.service("web", p.silent, p.other))
}

// expectQuarantine wants new flows to go elsewhere, or not.
func (p *patient) expectQuarantine(want bool) {
	p.Helper()
	p.tellModel()
	asked := 0
	for range 40 {
		if p.picks(p.Client) == p.silent.Address {
			asked++
		}
	}
	// None of 40 by chance, of two backends, happens once in 10^12 runs.
	if got := asked == 0; got != want {
		p.Errorf("%d of 40 new flows go to the silent backend; in quarantine: %v, shall be: %v", asked, got, want)
	}
}

// tellModel lets the model, which knows no quarantine, have counted what the programs have.
func (p *patient) tellModel() {
	p.Helper()
	counters, err := p.Counters()
	p.must(err)
	p.model.counters.BackendQuarantined = counters.BackendQuarantined
}

// health changes what is noted of the silent backend.
func (p *patient) health(change func(*maps.Health)) {
	p.Helper()
	var backend maps.Backend
	for index := range p.Maps.Backends.MaxEntries() {
		p.must(p.Maps.Backends.Lookup(index, &backend))
		if backend.Generation == 0 || netip.AddrPortFrom(backend.Address.Addr(), backend.Port) != p.silent.Address {
			continue
		}
		var health maps.Health
		p.must(p.Maps.BackendHealth.Lookup(index, &health))
		change(&health)
		p.must(p.Maps.BackendHealth.Put(index, &health))
		return
	}
	p.Fatal("there is no such backend")
}

// answers has the silent backend answer a client's flow.
func (p *patient) answers(client Pair) {
	p.Helper()
	p.serve(p.service("web", p.silent))
	in := p.opens(client)
	to := p.tupleOf(p.run(p.device, in.Bytes()))
	answer := in.translated(to.from, to.to).answer(p.Device(p.device).MAC, gatewayMAC())
	by := NodeEgress
	if p.program == PodIngress {
		by = PodEgress
	}
	p.runProgram(by, p.device, answer.Bytes())
	p.serve(p.service("web", p.silent, p.other))
}

// Three clients that have found a backend silent keep new flows away from it.
func TestQuarantineAfterThreeClients(t *testing.T) {
	onSilentBackend(t, func(p *patient) {
		p.failFor(p.Client, p.OtherClient)
		p.expectQuarantine(false)
		p.failFor(p.SecondClient)
		p.expectQuarantine(true)
	})
}

// One client, denied by a policy perhaps, keeps nobody away, however often it fails.
func TestNoQuarantineByOneClient(t *testing.T) {
	onSilentBackend(t, func(p *patient) {
		p.failFor(p.OtherClient, p.OtherClient, p.OtherClient, p.OtherClient, p.OtherClient)
		p.expectQuarantine(false)
	})
}

// An answer between makes the failures before it nothing, and ends a quarantine.
func TestAnswerEndsQuarantine(t *testing.T) {
	onSilentBackend(t, func(p *patient) {
		p.failFor(p.Client, p.OtherClient)
		p.answers(p.Client)
		p.failFor(p.SecondClient)
		p.expectQuarantine(false)
		p.failFor(p.Client, p.OtherClient)
		p.expectQuarantine(true)
		p.answers(p.SecondClient)
		p.expectQuarantine(false)
	})
}

// Where every backend is in quarantine none is.
func TestLastBackendIsServed(t *testing.T) {
	onSilentBackend(t, func(p *patient) {
		p.failFor(p.Client, p.OtherClient, p.SecondClient)
		p.expectQuarantine(true)
		p.silent, p.other = p.other, p.silent
		p.failFor(p.Client, p.OtherClient, p.SecondClient)
		p.expectQuarantine(false)
	})
}

// When the time is over one flow is let through, and the others wait for what becomes of it.
func TestQuarantineLetsOneThrough(t *testing.T) {
	onSilentBackend(t, func(p *patient) {
		p.failFor(p.Client, p.OtherClient, p.SecondClient)
		p.expectQuarantine(true)
		p.health(func(h *maps.Health) { h.Until = 1 })
		through := 0
		for range 60 {
			if p.picks(p.Client) == p.silent.Address {
				through++
			}
		}
		if through != 1 {
			p.Errorf("%d flows are let through, not 1", through)
		}
	})
}

// What an index's last owner has left does not count.
func TestQuarantineIsOfOneBackend(t *testing.T) {
	onSilentBackend(t, func(p *patient) {
		p.failFor(p.Client, p.OtherClient, p.SecondClient)
		p.health(func(h *maps.Health) { h.Generation++ })
		p.expectQuarantine(false)
	})
}

// A client that is remembered to have a silent backend gets another one (rule A04).
func TestA04AffinityLeavesQuarantine(t *testing.T) {
	onSilentBackend(t, func(p *patient) {
		p.failFor(p.Client, p.OtherClient, p.SecondClient)
		web := p.service("web", p.silent)
		web.AffinityTimeout = time.Hour
		p.serve(web)
		p.picks(p.Client)
		both := p.service("web", p.silent, p.other)
		both.AffinityTimeout = web.AffinityTimeout
		p.serve(both)
		p.model.forgetClients() // the model knows no quarantine
		if to := p.picks(p.Client); to != p.other.Address {
			p.Errorf("the client's next flow goes to %v", to)
		}
		counters, err := p.Counters()
		p.must(err)
		p.model.counters = counters
	})
}

// A connection that is there goes on with the backend that every node has for it, also where that is in quarantine here.
func TestQuarantineIsForNewConnections(t *testing.T) {
	onSilentBackend(t, func(p *patient) {
		p.failFor(p.Client, p.OtherClient, p.SecondClient)
		p.expectQuarantine(true)
		web := p.service("web", p.silent, p.other)
		web.InsideAlgorithm = maps.AlgorithmMaglev
		p.serve(web)
		asked := 0
		for range 40 {
			if p.tupleOf(p.run(p.device, p.opens(p.Client).later().Bytes())).to == p.silent.Address {
				asked++
			}
		}
		if asked == 0 || asked == 40 {
			p.Errorf("%d of 40 connections go on with the silent backend", asked)
		}
	})
}

// The node itself is answered, too.
func TestAnswerToTheHostEndsQuarantine(t *testing.T) {
	c := cases{programs: []Program{NodeIngress}, protocols: []compile.Protocol{compile.TCP}}
	forEach(t, c, func(tr *trial) {
		p := &patient{
			trial: tr, device: "eth0", to: tr.at(tr.LoadBalancer, servicePort),
			silent: tr.remote(tr.Remote), other: tr.remote(tr.OtherRemote),
		}
		p.failFor(p.Client, p.OtherClient, p.SecondClient)
		p.expectQuarantine(true)
		p.serve(p.service("web", p.silent))
		out := p.hostFrame(clientPort, p.at(p.ClusterIP, servicePort))
		to := p.tupleOf(p.runProgram(NodeEgress, "eth0", out.Bytes()))
		answer := out.translated(to.from, to.to).answer(gatewayMAC(), p.Device("eth0").MAC)
		p.expectOf(NodeIngress, "eth0", answer, Pass, answer.translated(out.To, out.From))
		p.serve(p.service("web", p.silent, p.other))
		p.expectQuarantine(false)
	})
}
