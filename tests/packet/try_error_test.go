package packet

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// errorBy returns what a backend, or a router before it, says of the SYN that it has been asked with.
func (c *contest) errorBy(asked Frame, message Message) (Program, ErrorFrame) {
	c.Helper()
	answer := c.synAck(asked)
	by := c.answeredBy()
	if by.XDP() {
		by = NodeIngress // XDP leaves ICMP to tc
	}
	return by, c.errorAbout(asked, asked.To.Addr(), message, answer.SourceMAC, answer.DestinationMAC)
}

// expectKept wants an error about a SYN not to reach the client.
func (c *contest) expectKept(asked Frame) {
	c.Helper()
	before, err := c.Counters()
	c.must(err)
	for _, message := range errorMessages() {
		by, frame := c.errorBy(asked, message)
		if result := c.runProgram(by, c.device, frame.Bytes()); result.Verdict != Drop {
			c.Errorf("the verdict is %s, not drop", result.Verdict)
		}
	}
	after, err := c.Counters()
	c.must(err)
	if kept := after.DropIcmpTry - before.DropIcmpTry; kept != uint64(len(errorMessages())) {
		c.Errorf("%d errors are counted", kept)
	}
}

// expectTold wants an error about a SYN to reach the client.
func (c *contest) expectTold(asked Frame) {
	c.Helper()
	by, frame := c.errorBy(asked, PortUnreachable)
	want, verdict := frame.becomes(c.in.To.Addr(), c.in), Pass
	if c.answers == "" {
		want, verdict = want.hopped(), Redirect
	}
	c.expectError(by, c.device, frame, verdict, want)
}

// The client is not told that the backend asked second cannot be reached: the first one may answer yet.
func TestErrorAboutARetry(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		c.expectKept(c.asked[1])
		c.expectAccepted(c.synAck(c.asked[0]))
		c.expectKept(c.asked[1])
		c.expectServedBy(c.asked[0])
		c.expectKept(c.asked[1])
	})
}

// What is said of the backend that was asked first is for the client, as its refusal is; but not when another one has
// answered.
func TestErrorAboutTheFirstTry(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		c.expectTold(c.asked[0])
		c.expectAccepted(c.synAck(c.asked[1]))
		c.expectKept(c.asked[0])
		c.expectTold(c.asked[1]) // it has the flow now
		c.expectServedBy(c.asked[1])
		c.expectKept(c.asked[0])
	})
}

// Where nobody but the backend asked second can answer any more, the client is told.
func TestErrorAboutTheOnlyTry(t *testing.T) {
	onEveryApproach(t, func(c *contest) {
		first := c.id().other(tuple{c.asked[0].From, c.asked[0].To})
		c.must(remove(c.Maps.EmbryoTable(), c.model.embryos, first))
		c.expectTold(c.asked[1])
	})
}

// A SYN that has been sent to one backend alone is the client's affair.
func TestErrorAboutAnUntriedSYN(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeIngress}, protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		in, translated := tr.toRemote()
		frame := tr.errorAbout(translated, translated.To.Addr(), PortUnreachable, gatewayMAC(), tr.Device("eth0").MAC)
		tr.expectError(NodeIngress, "eth0", frame, Redirect, frame.becomes(in.To.Addr(), in).hopped())
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, IcmpTranslated: 1})
	})
}
