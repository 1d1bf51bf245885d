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
		{[]float64{7}, Spread{Low: 7, Median: 7, High: 7}},
		{[]float64{3, 1}, Spread{Low: 1.2, Median: 2, High: 2.8}},
		{[]float64{11, 1, 10, 2, 9, 3, 8, 4, 7, 5, 6}, Spread{Low: 2, Median: 6, High: 10}},
		{[]float64{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1000}, Spread{Low: 1, Median: 1, High: 1}},
	} {
		if got := spread(test.values); got != test.want {
			t.Errorf("spread of %v is %+v, not %+v", test.values, got, test.want)
		}
	}
}

func TestSpreadApart(t *testing.T) {
	middle := Spread{Low: 9, Median: 10, High: 20}
	for other, want := range map[Spread]bool{
		middle:                             false,
		{Low: 10, Median: 12, High: 13}:    false,
		{Low: 10.1, Median: 12, High: 13}:  true,
		{Low: 7, Median: 8.9, High: 30}:    true,
		{Low: 1, Median: 100, High: 1000}:  false,
		{Low: 9.9, Median: 9.9, High: 9.9}: false,
	} {
		if middle.Apart(other) != want || other.Apart(middle) != want {
			t.Errorf("%+v apart from %+v: %v", middle, other, !want)
		}
	}
}

// The harness comes off, and the floor is that of the same hook.
func TestResults(t *testing.T) {
	at := func(hook, packet string) *subject { return &subject{Case: Case{Hook: hook, Packet: packet}} }
	subjects := []*subject{
		at("xdp", packetHarness), at("xdp", packetFloorHit), at("xdp", packetHit),
		at("tc", packetHarness), at("tc", packetFloorHit), at("tc", packetHit),
	}
	times := [][]float64{{10, 10, 10}, {35, 30, 40}, {90, 50, 70}, {1, 1, 1}, {11, 11, 11}, {31, 31, 31}}
	got := results(subjects, times)
	want := map[int][2]Spread{
		0: {{Low: 10, Median: 10, High: 10}, {}},
		1: {{Low: 21, Median: 25, High: 29}, {Low: 1, Median: 1, High: 1}},
		2: {{Low: 44, Median: 60, High: 76}, {Low: 2.095, Median: 2.4, High: 2.621}},
		5: {{Low: 30, Median: 30, High: 30}, {Low: 3, Median: 3, High: 3}},
	}
	for i, spreads := range want {
		if got[i].Nanoseconds != spreads[0] || got[i].Floor != spreads[1] {
			t.Errorf("%s: %+v, not %+v", got[i].Case, got[i], spreads)
		}
	}
}

// What disturbs the turns of the harness does not show in others': a tenth of these took less than their median, a tenth
// more.
func TestResultsBesideADisturbedHarness(t *testing.T) {
	at := func(packet string) *subject { return &subject{Case: Case{Hook: "xdp", Packet: packet}} }
	subjects := []*subject{at(packetHarness), at(packetFloorHit), at(packetHit)}
	got := results(subjects, [][]float64{{10, 10, 60}, {30, 31, 32}, {40, 41, 42}})
	if want := (Spread{Low: 30.2, Median: 31, High: 31.8}); got[2].Nanoseconds != want {
		t.Errorf("%+v, not %+v", got[2].Nanoseconds, want)
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
