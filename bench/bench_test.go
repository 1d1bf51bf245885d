package bench

import (
	"context"
	"errors"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: this test makes network namespaces and loads BPF programs")
	}
}

// allCases are written out by hand, for one kind of packet: what the benchmark owes.
func allCases() []string {
	return []string{
		"tc/bench/floor-hit", "tc/bench/floor-parse", "tc/bench/harness",
		"tc/node/hit/local", "tc/node/hit/remote", "tc/node/new/local", "tc/node/new/remote", "tc/node/no-service",
		"tc/pod/hit", "tc/pod/new", "tc/pod/no-service",
		"xdp/bench/floor-hit", "xdp/bench/floor-parse", "xdp/bench/harness",
		"xdp/node/hit/local", "xdp/node/hit/remote", "xdp/node/new/local", "xdp/node/new/remote", "xdp/node/no-service",
	}
}

// One round of everything: each case does what it says, or this fails, and none is missing.
func TestRunHasEveryCase(t *testing.T) {
	needRoot(t)
	report, err := Run(context.Background(), Options{Flows: []uint32{1, 3000}, Rounds: 1, Packets: 500})
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, name := range allCases() {
		for _, k := range []string{"/IPv4/TCP", "/IPv4/UDP", "/IPv6/TCP", "/IPv6/UDP"} {
			want = append(want, name+k+"/1", name+k+"/3000")
		}
	}
	for _, result := range report.Results {
		got = append(got, result.String())
		// So short a run says no more of what takes little.
		if slow := result.Packet == packetNew || result.Packet == packetHarness; slow && result.Nanoseconds.Median <= 0 {
			t.Errorf("%s took %v ns", result.Case, result.Nanoseconds.Median)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cases (-want +got):\n%s", diff)
	}
}

// Where only some cases are wanted, what they are compared with comes along.
func TestRunMatches(t *testing.T) {
	needRoot(t)
	report, err := Run(context.Background(), Options{
		Flows: []uint32{1}, Rounds: 1, Packets: 100,
		Match: func(c Case) bool { return c.String() == "xdp/node/hit/local/IPv6/UDP/1" },
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, result := range report.Results {
		got = append(got, result.String())
	}
	want := []string{
		"xdp/bench/harness/IPv6/UDP/1", "xdp/bench/floor-parse/IPv6/UDP/1", "xdp/bench/floor-hit/IPv6/UDP/1",
		"xdp/node/hit/local/IPv6/UDP/1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cases (-want +got):\n%s", diff)
	}
	options := Options{Flows: []uint32{1}, Rounds: 1, Packets: 100, Match: func(c Case) bool {
		return c.String() == "tc/bench/floor-hit/IPv4/TCP/1"
	}}
	if report, err := Run(context.Background(), options); err != nil || len(report.Results) != 3 {
		t.Errorf("only a floor is wanted, and Run says %+v, %v", report, err)
	}
	nothing := Options{Flows: []uint32{1}, Rounds: 1, Packets: 100, Match: func(Case) bool { return false }}
	if _, err := Run(context.Background(), nothing); !errors.Is(err, ErrNoCase) {
		t.Errorf("no case matches, and Run says %v", err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(context.Background())
	options := Options{Flows: []uint32{1}, Rounds: math.MaxInt, Packets: 100, Progress: func(string) { cancel() }}
	if _, err := Run(ctx, options); !errors.Is(err, context.Canceled) {
		t.Errorf("Run says %v", err)
	}
}

func TestOptionsCheck(t *testing.T) {
	good := Options{Flows: []uint32{1, FlowsMax}, Rounds: 1, Packets: 10}
	if err := good.Check(); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
	for _, bad := range []Options{
		{Rounds: 1, Packets: 10},
		{Flows: []uint32{1}, Packets: 10},
		{Flows: []uint32{1}, Rounds: 1, Packets: 9},
		{Flows: []uint32{0}, Rounds: 1, Packets: 10},
		{Flows: []uint32{1, FlowsMax + 1}, Rounds: 1, Packets: 10},
	} {
		if bad.Check() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
