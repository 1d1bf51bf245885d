package packet

import (
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

// rival runs programs on another CPU, at the same moment as the test.
type rival struct {
	*trial
	turn, done atomic.Uint64
	over       atomic.Bool
	program    Program
	packet     []byte
	result     Result
	failed     error
}

// avoidPinned keeps the calling goroutine off the CPU that pinToCPU keeps one on. Its thread ends with it.
func avoidPinned() error {
	runtime.LockOSThread()
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return err
	}
	cpus.Clear(cpusOf(cpus)[0])
	return unix.SchedSetaffinity(0, &cpus)
}

// compete starts a rival, whose packets meet a device. It ends with the trial.
func (tr *trial) compete(device *Device) *rival {
	r, ended := &rival{trial: tr}, make(chan struct{})
	tr.Cleanup(func() {
		r.over.Store(true)
		<-ended
	})
	go func() {
		defer close(ended)
		if err := avoidPinned(); err != nil {
			tr.Errorf("keep off the test's CPU: %v", err)
			return
		}
		r.run(device)
	}()
	return r
}

// run runs a packet whenever it is its turn.
func (r *rival) run(device *Device) {
	runner := Runner{programs: r.Programs}
	for turn := uint64(1); ; turn++ {
		for r.turn.Load() < turn {
			if r.over.Load() {
				return
			}
		}
		r.result, r.failed = runner.Run(r.program, device, r.packet)
		r.result.Packet = slices.Clone(r.result.Packet)
		r.done.Store(turn)
	}
}

// atOnce runs a program on the test's CPU, and another one on the rival's.
func (r *rival) atOnce(device *Device, ours Program, packet []byte, theirs Program, other []byte) (here, there Result) {
	r.Helper()
	r.program, r.packet = theirs, other
	turn := r.turn.Add(1)
	here, err := r.World.Run(ours, device, packet)
	r.must(err)
	here.Packet = slices.Clone(here.Packet)
	for r.done.Load() < turn && !r.Failed() {
		runtime.Gosched()
	}
	r.must(r.failed)
	return here, r.result
}

// race has one flow after the other opened and answered, by every approach, and then calls test.
func race(t *testing.T, protocols []compile.Protocol, test func(r *rival, c *contest, device *Device, answer Frame)) {
	t.Helper()
	if runtime.NumCPU() < 2 {
		t.Skip("there is one CPU only")
	}
	const flows = 1000
	for name, a := range approaches {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{programs: a.programs, protocols: protocols}, func(tr *trial) {
				defer pinToCPU(tr)()
				defer tr.begin() // the model has not seen everything
				tr.serve(tr.service("web", a.backends(tr)[0]))
				device := tr.Device(a.device)
				r := tr.compete(device)
				_, from := tr.askedBy()
				for n := uint16(0); n < flows && !t.Failed(); n++ {
					c := &contest{trial: tr, approach: a}
					c.in = tr.frame(a.device, netip.AddrPortFrom(from.Addr(), 20000+n), tr.at(tr.LoadBalancer, servicePort))
					c.asked[0] = c.ask()
					answer := c.synAck(c.asked[0])
					c.runProgram(c.answeredBy(), a.device, answer.Bytes())
					test(r, c, device, answer)
				}
			})
		})
	}
}

// expectTuple wants a packet to have gone on with these addresses.
func (tr *trial) expectTuple(result Result, from, to netip.AddrPort) {
	tr.Helper()
	if got := tr.tupleOf(result); result.Verdict == Drop || got != (tuple{from, to}) {
		counters, err := tr.Counters()
		tr.must(err)
		tr.Errorf("by verdict %s the packet is from %v to %v, not from %v to %v; counted were %+v", result.Verdict, got.from, got.to,
			from, to, counters)
	}
}

// TestEstablishedOnTwoCPUs has a client's first packets after its backend's answer arrive on two CPUs at the same moment, as
// those of a pod do: one moves the flow from the embryos to the flow table under the eyes of the other.
func TestEstablishedOnTwoCPUs(t *testing.T) {
	race(t, nil, func(r *rival, c *contest, device *Device, _ Frame) {
		packet := c.in.later().Bytes()
		here, there := r.atOnce(device, c.program, packet, c.program, packet)
		for _, result := range []Result{here, there} {
			c.expectTuple(result, c.asked[0].From, c.asked[0].To)
		}
	})
}

// TestAnswerWhileEstablished has a backend's next answer arrive at the moment when the client's packet moves the flow: both
// questions of a resolver have one socket.
func TestAnswerWhileEstablished(t *testing.T) {
	race(t, nil, func(r *rival, c *contest, device *Device, answer Frame) {
		here, there := r.atOnce(device, c.program, c.in.later().Bytes(), c.answeredBy(), answer.Bytes())
		c.expectTuple(here, c.asked[0].From, c.asked[0].To)
		c.expectTuple(there, c.in.To, c.in.From)
	})
}
