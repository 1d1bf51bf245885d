package sweep

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// ends writes an ending, which is due after a while; a service of 0 is any.
func (b *bench) ends(t *testing.T, service, backend, generation uint32, after time.Duration) {
	t.Helper()
	key := maps.EndingKey{Service: service, Backend: backend, Generation: generation}
	if err := b.set.Endings.Put(&key, &maps.Ending{Due: uint64(monotonic(t) + after)}); err != nil {
		t.Fatal(err)
	}
	if err := b.sweeper.configure(1); err != nil {
		t.Fatal(err)
	}
	for _, part := range b.sweeper.parts() {
		if _, err := walk(context.Background(), part.program, part.table); err != nil {
			t.Fatal(err)
		}
	}
}

// Busy flows end when their backend has left their service (rule D01): UDP flows and embryos go, connections are marked
// for their clients to be told. Others stay, but for foreign ones that name the same backend (controlplane/foreign).
func TestFlowsOfARemovedBackendEnd(t *testing.T) {
	const tcp, udp = 6, 17
	for _, test := range []struct {
		what                         string
		service, backend, generation uint32
		after                        time.Duration
		ends                         bool
	}{
		{"of this service and backend", 5, 7, 9, 0, true},
		{"of any service", 0, 7, 9, 0, true},
		{"of another service", 6, 7, 9, 0, false},
		{"of another backend", 5, 8, 9, 0, false},
		{"of one that had the index before", 5, 7, 8, 0, false},
		{"later", 5, 7, 9, time.Hour, false},
	} {
		for _, ipv6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, ipv6=%v", test.what, ipv6), func(t *testing.T) {
				b := newBench(t, 1024)
				b.ipv6 = ipv6
				established, answered := &half{maps.FlowEstablished, 0}, &half{maps.FlowAnswered, 0}
				b.put(t, b.set.FlowTable(), 1, udp, maps.FlowForward, established, established)
				b.put(t, b.set.FlowTable(), 2, tcp, maps.FlowForward, established, established)
				b.put(t, b.set.EmbryoTable(), 3, udp, maps.FlowStack, answered, answered)
				b.put(t, b.set.EmbryoTable(), 4, tcp, maps.FlowStack, answered, answered)
				b.put(t, b.set.FlowTable(), 5, udp, maps.FlowForeign, nil, established)
				b.putForeign(t, 6)
				b.ends(t, test.service, test.backend, test.generation, test.after)

				gone := map[bool]string{true: "", false: "both"}[test.ends]
				foreign := map[bool]string{true: "", false: "reverse"}[test.ends]
				for n, want := range map[int]string{1: gone, 2: "both", 3: gone, 4: gone, 5: foreign, 6: "reverse"} {
					table, protocol := b.set.FlowTable(), uint8(udp)
					if n == 3 || n == 4 {
						table = b.set.EmbryoTable()
					}
					if n == 2 || n == 4 {
						protocol = tcp
					}
					if got := b.there(t, table, n, protocol); got != want {
						t.Errorf("flow %d: %q is there, want %q", n, got, want)
					}
				}
				b.checkMarked(t, test.ends)
			})
		}
	}
}

// putForeign writes the nth UDP flow as one that is foreign, and names neither service nor backend.
func (b *bench) putForeign(t *testing.T, n int) {
	t.Helper()
	_, key := b.flowOf(n, 17)
	flow := maps.Flow{
		Seal: key.Seal(), Action: maps.FlowForeign, Half: maps.FlowHalfReverse, State: maps.FlowEstablished, LastSeen: b.now,
	}
	if err := b.set.FlowTable().Put(key, flow); err != nil {
		t.Fatal(err)
	}
}

// checkMarked checks whether the client of connection 2 is to be told, and the connection soon forgotten.
func (b *bench) checkMarked(t *testing.T, marked bool) {
	t.Helper()
	action, state := maps.FlowForward, maps.FlowEstablished
	if marked {
		action, state = maps.FlowForward|maps.FlowEnded, maps.FlowClosed
	}
	forward, reverse := b.flowOf(2, 6)
	if flow, err := b.set.FlowTable().Lookup(forward); err != nil || flow.Action != action || flow.State != state {
		t.Errorf("forward is %+v (%v), want action %d, state %d", flow, err, action, state)
	}
	if flow, err := b.set.FlowTable().Lookup(reverse); err != nil || flow.Action != maps.FlowForward || flow.State != state {
		t.Errorf("reverse is %+v (%v), want state %d", flow, err, state)
	}
}

// A change of the services has flows end within a moment, without waiting for the interval.
func TestAChangeEndsFlows(t *testing.T) {
	b := newBench(t, 1024)
	b.sweeper.options.Interval = time.Hour
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.sweeper.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	service := compile.Service{
		ID:        compile.ID{Namespace: "default", Name: "dns", Protocol: compile.UDP, Family: compile.IPv4},
		Frontends: []compile.Frontend{{Kind: compile.ClusterIP, Address: netip.MustParseAddrPort("10.96.0.1:80")}},
	}
	address := netip.MustParseAddrPort("10.0.0.1:8080")
	service.Serving = []netip.AddrPort{address}
	service.Inside = []compile.Backend{{Address: address}}
	b.apply(t, service)
	b.putNamed(t)

	service.Inside = nil
	b.apply(t, service) // it answers still
	b.sweeper.Touch()
	time.Sleep(300 * time.Millisecond)
	if got := b.there(t, b.set.FlowTable(), 1, 17); got != "both" {
		t.Errorf("while the endpoint is serving %q is there", got)
	}
	service.Serving = nil
	b.apply(t, service)
	b.sweeper.Touch()
	for start := time.Now(); b.there(t, b.set.FlowTable(), 1, 17) != ""; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatal("the flow is still there")
		}
	}
}

func (b *bench) apply(t *testing.T, service compile.Service) {
	t.Helper()
	if err := b.applier.Apply([]compile.Service{service}, nil); err != nil || len(b.applier.Problems()) > 0 {
		t.Fatal(b.applier.Problems(), err)
	}
}

// putNamed writes a UDP flow of the only service to the only backend there is.
func (b *bench) putNamed(t *testing.T) {
	t.Helper()
	var service, backend uint32
	var generation uint32
	err := maps.Each(b.set.ServiceNames, func(_ uint32, name maps.ServiceName) bool { service = name.Id; return false })
	if err != nil {
		t.Fatal(err)
	}
	err = maps.Each(b.set.Backends, func(index uint32, record maps.Backend) bool {
		backend, generation = index, record.Generation
		return generation == 0
	})
	if err != nil {
		t.Fatal(err)
	}
	forward, reverse := b.flowOf(1, 17)
	for key, to := range map[maps.FlowKey]maps.Tuple{forward: reverse.Tuple.Reverse(), reverse: forward.Tuple.Reverse()} {
		flow := maps.Flow{
			Seal: key.Seal(), To: to, State: maps.FlowEstablished, LastSeen: b.now,
			Service: service, Backend: backend, Generation: generation,
		}
		if key == reverse {
			flow.Half = maps.FlowHalfReverse
		}
		if err := b.set.FlowTable().Put(key, flow); err != nil {
			t.Fatal(err)
		}
	}
}

// monotonic returns the time that endings are due by.
func monotonic(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}
