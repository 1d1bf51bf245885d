package controlplane

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
)

// cost is what something takes.
type cost struct {
	time  time.Duration
	bytes uint64 // of memory, allocated
}

// costOf returns the least of many tries: the others were disturbed.
func costOf(work func(try int)) cost {
	const tries = 50
	least := cost{time: time.Hour, bytes: 1 << 62}
	var before, after runtime.MemStats
	for try := range tries {
		runtime.ReadMemStats(&before)
		begin := time.Now()
		work(try)
		took := time.Since(begin)
		runtime.ReadMemStats(&after)
		least = cost{min(least.time, took), min(least.bytes, after.TotalAlloc-before.TotalAlloc)}
	}
	return least
}

// TestChangeCostsWhatItChanges changes an endpoint among a hundred Services, and among ten thousand: from the store to the
// applier's door, and all that the agent asks of the controller after each change, it takes about the same. What looks at
// all Services takes a hundred times as much.
func TestChangeCostsWhatItChanges(t *testing.T) {
	change := func(services int) cost {
		s, c := loaded(t, services)
		c.Moves()
		return costOf(func(try int) {
			s.Update(batchOf(numbered(services/2, try+1)...))
			step(t, c)
			status := c.Status()
			moves := c.Moves()
			c.Progress()
			c.Changes()
			c.HealthChecks()
			if status.Services != services || status.Frontends != services || len(moves.Backends) != 20 || moves.ClusterIPs {
				t.Fatalf("%d services, %d frontends, moves %v", status.Services, status.Frontends, moves)
			}
			if _, known := c.Find(netip.MustParseAddrPort("10.96.0.1:80"), compile.TCP); !known {
				t.Fatal("a frontend is not found")
			}
			if _, is := c.ClusterIP(netip.MustParseAddr("10.96.0.2")); !is {
				t.Fatal("a ClusterIP is not found")
			}
		})
	}
	few, many := change(100), change(10000)
	t.Logf("of 100: %+v; of 10,000: %+v", few, many)
	if many.bytes > 2*few.bytes {
		t.Errorf("a change allocates %d bytes where there are 10,000 Services, %d where there are 100", many.bytes, few.bytes)
	}
	if many.time > 5*few.time {
		t.Errorf("a change takes %s where there are 10,000 Services, %s where there are 100", many.time, few.time)
	}
}
