package packet

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// approach is how flows to one of two backends are opened.
type approach struct {
	programs []Program // that the client's packets meet
	device   string
	backends func(tr *trial) [2]compile.Backend
	answers  Program // that the backends' packets meet; "": the client's
}

var approaches = map[string]approach{
	"elsewhere": {
		programs: []Program{NodeXDP, NodeIngress}, device: "eth0",
		backends: func(tr *trial) [2]compile.Backend {
			return [2]compile.Backend{tr.remote(tr.Remote), tr.remote(tr.OtherRemote)}
		},
	},
	"on this node": {
		programs: []Program{NodeXDP, NodeIngress}, device: "eth0", answers: NodeEgress,
		backends: func(tr *trial) [2]compile.Backend {
			return [2]compile.Backend{tr.local(tr.Pod), tr.local(tr.OtherPod)}
		},
	},
	"from a pod": {
		programs: []Program{PodIngress}, device: "pod0", answers: PodEgress,
		backends: func(tr *trial) [2]compile.Backend {
			return [2]compile.Backend{tr.remote(tr.Remote), tr.local(tr.OtherPod)}
		},
	},
}

// contest is a flow that two backends have been asked for.
type contest struct {
	*trial
	approach
	in     Frame    // the client's SYN
	asked  [2]Frame // what it has become, for one backend and then the other
	served compile.Service
}

// onEveryApproach runs a test of a contest for every approach, program and family.
func onEveryApproach(t *testing.T, test func(c *contest)) {
	t.Helper()
	onEveryApproachTo(t, func(*compile.Service) {}, test)
}

// onEveryApproachTo is onEveryApproach with a service that is changed first.
func onEveryApproachTo(t *testing.T, change func(*compile.Service), test func(c *contest)) {
	t.Helper()
	contend(t, DefaultSettings(), change, test)
}

func contend(t *testing.T, settings Settings, change func(*compile.Service), test func(c *contest)) {
	t.Helper()
	for name, a := range approaches {
		t.Run(name, func(t *testing.T) {
			every := cases{programs: a.programs, protocols: []compile.Protocol{compile.TCP}, settings: &settings}
			forEach(t, every, func(tr *trial) {
				c := &contest{trial: tr, approach: a}
				backends := a.backends(tr)
				c.served = tr.service("web", backends[:]...)
				change(&c.served)
				tr.serve(c.served)
				_, from := tr.askedBy()
				c.in = tr.frame(a.device, from, tr.at(tr.LoadBalancer, servicePort))
				c.asked[0] = c.ask()
				c.wait()
				c.asked[1] = c.ask()
				test(c)
			})
		})
	}
}

// ask sends the client's SYN and returns what it becomes.
func (c *contest) ask() Frame {
	c.Helper()
	to := c.tupleOf(c.run(c.device, c.in.Bytes()))
	return c.in.translated(to.from, to.to)
}

// wait makes the client wait for as long as one does that sends its SYN again.
func (c *contest) wait() {
	c.Helper()
	c.must(c.model.silence(c.World, c.id()))
}

func (c *contest) id() flowID {
	return flowID{tuple{c.in.From, c.in.To}, c.Device(c.device).Record.EdgeId, uint8(c.protocol)}
}

// synAck returns a backend's answer, as it meets our program.
func (c *contest) synAck(asked Frame) Frame {
	c.Helper()
	answer := asked.answer(gatewayMAC(), c.Device(c.device).MAC)
	if c.answers != "" {
		answer.SourceMAC, answer.DestinationMAC = answer.DestinationMAC, answer.SourceMAC
	}
	answer.TCP.SYN, answer.TCP.PSH = true, false
	return answer
}

// answeredBy returns the program that backends' packets meet.
func (c *contest) answeredBy() Program {
	if c.answers != "" {
		return c.answers
	}
	return c.program
}

// expectAccepted wants an answer of a backend to reach the client.
func (c *contest) expectAccepted(answer Frame) {
	c.Helper()
	want, verdict := answer.translated(c.in.To, c.in.From), Pass
	if c.answers == "" {
		want, verdict = c.sent(want, "eth0", gatewayMAC()), c.sentVerdict(true)
	}
	c.expectOf(c.answeredBy(), c.device, answer, verdict, want)
}

// expectRefused wants an answer of a backend to be reset. XDP leaves that to tc.
func (c *contest) expectRefused(answer Frame) {
	c.Helper()
	by := c.answeredBy()
	if by.XDP() {
		c.expectUntouched(c.device, answer.Bytes())
		by = NodeIngress
	}
	result := c.runProgram(by, c.device, answer.Bytes())
	c.compareUnpadded(result, Redirect, resetOf(answer, answer.TCP.Acknowledged, 0, false))
}

// expectDropped wants a packet of a backend to end here.
func (c *contest) expectDropped(answer Frame) {
	c.Helper()
	by := c.answeredBy()
	if by.XDP() {
		c.expectUntouched(c.device, answer.Bytes())
		by = NodeIngress
	}
	if result := c.runProgram(by, c.device, answer.Bytes()); result.Verdict != Drop {
		c.Errorf("the verdict is %s, not drop", result.Verdict)
	}
}

// expectServedBy wants the client's connection to be with one backend, established.
func (c *contest) expectServedBy(asked Frame) {
	c.Helper()
	for range 2 {
		to := c.tupleOf(c.run(c.device, c.in.later().Bytes()))
		if to != (tuple{asked.From, asked.To}) {
			c.Errorf("the client's packet becomes %v, not %v", to, tuple{asked.From, asked.To})
		}
	}
	flow, err := c.Maps.FlowTable().Lookup(flowKeyOf(c.id()))
	if err != nil || flow.To.DestinationAddrPort() != asked.To {
		c.Errorf("the flow table has %v (%v)", flow, err)
	}
}

// expectCounts compares some counters.
func (c *contest) expectCounts(retried, moved, lost uint64) {
	c.Helper()
	counters, err := c.Counters()
	c.must(err)
	if counters.FlowNew != 1 || counters.FlowRetried != retried || counters.FlowMoved != moved || counters.DropLostTry != lost {
		c.Errorf("%d flows, %d retried, %d moved, %d answers dropped; not 1, %d, %d and %d", counters.FlowNew,
			counters.FlowRetried, counters.FlowMoved, counters.DropLostTry, retried, moved, lost)
	}
}

// A SYN that is sent again, because nobody has answered, goes to another backend; the same SYN twice at once does not.
func TestRetriedSYNTriesAnotherBackend(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		if c.asked[0].To == c.asked[1].To {
			c.Fatalf("both SYNs go to %v", c.asked[0].To)
		}
		for range 10 {
			if again := c.ask(); again.To != c.asked[0].To {
				c.Errorf("a SYN at once after another goes to %v", again.To)
			}
		}
		c.expectCounts(1, 0, 0)
	})
}

// The backend that is asked second and answers first has the connection, and the first one, late, is reset: as often as
// it says something.
func TestFirstAnswerWins(t *testing.T) {
	onEveryApproach(t, expectSecondWins)
}

// The same with the programs for kernels before 5.12, which have no atomic instructions.
func TestFirstAnswerWinsWithoutAtomics(t *testing.T) {
	settings := DefaultSettings()
	settings.Constants.NoAtomics = true
	contend(t, settings, func(*compile.Service) {}, expectSecondWins)
}

func expectSecondWins(c *contest) {
	c.Helper()
	c.expectAccepted(c.synAck(c.asked[1]))
	c.expectRefused(c.synAck(c.asked[0]))
	c.expectAccepted(c.synAck(c.asked[1])) // sent again
	c.expectServedBy(c.asked[1])
	c.expectRefused(c.synAck(c.asked[0]))
	c.expectCounts(1, 1, 2)
}

// The backend that is asked first and answers first has the connection.
func TestFirstBackendWins(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		c.expectAccepted(c.synAck(c.asked[0]))
		c.expectRefused(c.synAck(c.asked[1]))
		c.expectServedBy(c.asked[0])
		c.expectRefused(c.synAck(c.asked[1]))
		c.expectCounts(1, 0, 2)
	})
}

// Of several tries one wins.
func TestOneOfManyTriesWins(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		both := c.backends(c.trial)
		third := c.at(pair("10.2.0.99", "fd00:2::99"), targetPort)
		c.served.Inside = append(both[:], compile.Backend{Address: third, Local: both[0].Local})
		c.served.Outside = c.served.Inside
		c.serve(c.served)
		asked := map[netip.AddrPort]Frame{c.asked[0].To: c.asked[0], c.asked[1].To: c.asked[1]}
		for range 100 {
			if _, all := asked[third]; all {
				break
			}
			c.wait()
			next := c.ask()
			asked[next.To] = next
		}
		c.expectAccepted(c.synAck(asked[third]))
		for _, other := range c.asked {
			c.expectRefused(c.synAck(asked[other.To]))
		}
		c.expectServedBy(asked[third])
	})
}

// A backend that refuses what another one may accept says nothing: it may have been asked because of one lost packet.
func TestRefusalOfARetryIsNoAnswer(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		refusal := c.synAck(c.asked[1])
		refusal.TCP.SYN, refusal.TCP.RST = false, true
		c.expectDropped(refusal)
		c.wait()
		c.asked[1] = c.ask() // it is asked again
		c.expectAccepted(c.synAck(c.asked[0]))
		c.expectServedBy(c.asked[0])
		c.expectCounts(2, 0, 1)
	})
}

// The refusal of the backend that was asked first is the client's.
func TestRefusalOfTheFirstTry(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		refusal := c.synAck(c.asked[0])
		refusal.TCP.SYN, refusal.TCP.RST = false, true
		c.expectAccepted(refusal)
		c.expectRefused(c.synAck(c.asked[1]))
	})
}

// Where there is no other backend the same one is asked again.
func TestRetryWithoutAnotherBackend(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		c.served.Inside = []compile.Backend{{Address: c.asked[0].To, Local: c.backends(c.trial)[0].Local}}
		c.served.Outside = c.served.Inside
		c.serve(c.served)
		c.wait()
		if again := c.ask(); again.From != c.asked[0].From || again.To != c.asked[0].To {
			c.Errorf("the SYN becomes %v to %v", again.From, again.To)
		}
		c.expectCounts(1, 0, 0)
	})
}

// A client that is answered by another backend than it is remembered to have is remembered to have that; only asking it
// changes nothing (rule A04).
func TestA04AffinityFollowsTheAnswer(t *testing.T) {
	sticky := func(s *compile.Service) { s.AffinityTimeout = time.Hour }
	onEveryApproachTo(t, sticky, func(c *contest) {
		if c.asked[0].To == c.asked[1].To {
			c.Fatalf("both SYNs go to %v", c.asked[0].To)
		}
		next := func(port uint16) netip.AddrPort {
			in := c.in
			in.From = netip.AddrPortFrom(in.From.Addr(), port)
			return c.tupleOf(c.run(c.device, in.Bytes())).to
		}
		if to := next(1); to != c.asked[0].To {
			c.Errorf("before an answer the client's next connection goes to %v", to)
		}
		c.expectAccepted(c.synAck(c.asked[1]))
		if to := next(2); to != c.asked[1].To {
			c.Errorf("after the answer of %v the client's next connection goes to %v", c.asked[1].To, to)
		}
	})
}

// The first try's answers have no entry any more, as the table gives room to younger ones: the second one's answer
// counts nevertheless, and the first one's is refused.
func TestEvictedFirstTry(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		first := c.id().other(tuple{c.asked[0].From, c.asked[0].To})
		c.must(remove(c.Maps.EmbryoTable(), c.model.embryos, first))
		c.expectAccepted(c.synAck(c.asked[1]))
		c.expectRefused(c.synAck(c.asked[0]))
		c.expectServedBy(c.asked[1])
	})
}

// A try whose flow is gone has no answer.
func TestAnswerToATryOfNoFlow(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		c.must(remove(c.Maps.EmbryoTable(), c.model.embryos, c.id()))
		c.expectRefused(c.synAck(c.asked[1]))
	})
}

// A flow keeps its entry when the source port of another try is taken from it.
func TestPortTakenFromATry(t *testing.T) {
	c := cases{programs: approaches["elsewhere"].programs, protocols: []compile.Protocol{compile.TCP}, settings: narrow(1)}
	forEach(t, c, func(tr *trial) {
		c := &contest{trial: tr, approach: approaches["elsewhere"]}
		first, second := tr.remote(tr.Remote), tr.remote(tr.OtherRemote)
		tr.serve(tr.service("web", first))
		c.in = tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		c.asked[0] = c.ask()
		tr.serve(tr.service("web", second))
		c.wait()
		c.asked[1] = c.ask()
		tr.model.pressed = true
		defer func() { tr.model.pressed = false }()
		if late := tr.opened(tr.at(tr.OtherClient, clientPort), c.in.To); late.to != second.Address {
			tr.Fatalf("another client's flow goes to %v", late.to)
		}
		c.expectAccepted(c.synAck(c.asked[0]))
		c.expectServedBy(c.asked[0])
	})
}

// moves opens a flow to one backend, and retries it with another.
func (tr *trial) moves(device string, from netip.AddrPort, first, second compile.Backend) *contest {
	tr.Helper()
	c := &contest{trial: tr, approach: approach{device: device}}
	c.in = tr.frame(device, from, tr.at(tr.LoadBalancer, servicePort))
	tr.serve(tr.service("web", first))
	c.asked[0] = c.ask()
	tr.serve(tr.service("web", second))
	c.wait()
	c.asked[1] = c.ask()
	return c
}

// A backend on this node and one elsewhere contend: their answers come by different programs.
func TestTriesHereAndElsewhere(t *testing.T) {
	forEach(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		for port, wins := range []string{"here", "elsewhere"} {
			c := tr.moves("eth0", tr.at(tr.Client, 1000+uint16(port)), tr.local(tr.Pod), tr.remote(tr.Remote))
			here := c.asked[0].answer(tr.Device("eth0").MAC, gatewayMAC())
			elsewhere := c.asked[1].answer(gatewayMAC(), tr.Device("eth0").MAC)
			if wins == "here" {
				tr.expectOf(NodeEgress, "eth0", here, Pass, here.translated(c.in.To, c.in.From))
				c.expectRefused(elsewhere)
				c.expectServedBy(c.asked[0])
				continue
			}
			c.expectAccepted(elsewhere)
			c.answers = NodeEgress
			c.expectRefused(here)
			c.expectServedBy(c.asked[1])
		}
	})
}

// A pod that is tried as its own backend, and answers itself first, has that connection (rule C04).
func TestC04HairpinAsASecondTry(t *testing.T) {
	c := cases{programs: []Program{PodIngress}, protocols: []compile.Protocol{compile.TCP}}
	forEach(t, c, func(tr *trial) {
		c := tr.moves("pod0", tr.at(tr.Pod, clientPort), tr.remote(tr.Remote), tr.local(tr.Pod))
		answer := c.asked[1].answer(podMAC(), tr.Device("pod0").MAC)
		want := answer.translated(c.in.To, c.in.From)
		want.SourceMAC, want.DestinationMAC, want.TTL = answer.DestinationMAC, answer.SourceMAC, answer.TTL-1
		tr.expect("pod0", answer, Redirect, want)
		c.expectServedBy(c.asked[1])
		c.answers = PodEgress
		c.expectRefused(c.synAck(c.asked[0]))
	})
}

// A packet from outside that only looks like the answer of a backend on this node answers nothing: the client's next
// packet does not establish the flow, and its next SYN may go elsewhere.
func TestAnswerFromElsewhereIsNone(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		in, translated := tr.toLocal()
		tr.expectUntouched("eth0", translated.answer(gatewayMAC(), tr.Device("eth0").MAC).Bytes())
		tr.runProgram(NodeIngress, "eth0", translated.answer(gatewayMAC(), tr.Device("eth0").MAC).Bytes())
		tr.run("eth0", in.later().Bytes())
		tr.wantTables(0, 2)
		tr.expectCounters(maps.PacketCounters{FlowNew: 1})
	})
}
