package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   Spread
	}{
		{[]float64{7}, Spread{Median: 7, Low: 7, High: 7}},
		{[]float64{3, 1}, Spread{Median: 2, Low: 1.5, High: 2.5}},
		{[]float64{5, 1, 4, 2, 3}, Spread{Median: 3, Low: 2, High: 4}},
		{[]float64{1, 1, 1, 1, 1000}, Spread{Median: 1, Low: 1, High: 1}},
	} {
		if got := spread(test.values); got != test.want {
			t.Errorf("spread of %v is %+v, not %+v", test.values, got, test.want)
		}
	}
}

func TestSpreadApart(t *testing.T) {
	middle := Spread{Median: 10, Low: 9, High: 11}
	for other, want := range map[Spread]bool{
		middle:                             false,
		{Median: 12, Low: 11, High: 13}:    false,
		{Median: 13, Low: 11.1, High: 13}:  true,
		{Median: 8, Low: 7, High: 8.9}:     true,
		{Median: 10, Low: 1, High: 100}:    false,
		{Median: 10, Low: 9.9, High: 10.1}: false,
	} {
		if middle.Apart(other) != want {
			t.Errorf("%+v apart from %+v: %v", middle, other, !want)
		}
	}
}

// The harness comes off round by round, and the floor is that of the same hook.
func TestResults(t *testing.T) {
	at := func(hook, packet string) *subject { return &subject{Case: Case{Hook: hook, Packet: packet}} }
	subjects := []*subject{
		at("xdp", packetHarness), at("xdp", packetFloorHit), at("xdp", packetHit),
		at("tc", packetHarness), at("tc", packetFloorHit), at("tc", packetHit),
	}
	times := [][]float64{{10, 20, 10}, {30, 60, 30}, {50, 100, 40}, {1, 1, 1}, {11, 11, 11}, {31, 31, 31}}
	got := results(subjects, times)
	want := map[int][2]Spread{
		0: {{Median: 10, Low: 10, High: 15}, {}},
		1: {{Median: 20, Low: 20, High: 30}, {Median: 1, Low: 1, High: 1}},
		2: {{Median: 40, Low: 35, High: 60}, {Median: 2, Low: 1.75, High: 2}},
		5: {{Median: 30, Low: 30, High: 30}, {Median: 3, Low: 3, High: 3}},
	}
	for i, spreads := range want {
		if got[i].Nanoseconds != spreads[0] || got[i].Floor != spreads[1] {
			t.Errorf("%s: %+v, not %+v", got[i].Case, got[i], spreads)
		}
	}
}

func TestReadReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	want := &Report{
		Version: "v1", Kernel: "6.18", CPU: "one", Rounds: 3, Packets: 10,
		Results: []Result{{
			Case:        Case{Hook: "xdp", Edge: "node", Packet: "hit", Backend: "local", Family: "IPv4", Protocol: "TCP", Flows: 1},
			Nanoseconds: Spread{Median: 2, Low: 1, High: 3}, Floor: Spread{Median: 1.5, Low: 1, High: 2},
		}},
	}
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadReport(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if found, ok := got.Find(want.Results[0].Case); !ok || found != want.Results[0] {
		t.Errorf("the case is not found: %+v", found)
	}
	if _, ok := got.Find(Case{Hook: "tc"}); ok {
		t.Error("a case is found that is not there")
	}
	if err := os.WriteFile(path, []byte("ns/packet 3"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadReport(path); err == nil {
		t.Error("text is read as a report")
	}
}
