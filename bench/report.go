package bench

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Report is what was measured. Its JSON form is stable.
type Report struct {
	Version string   `json:"version,omitempty"` // of the programs
	Kernel  string   `json:"kernel"`            // release
	CPU     string   `json:"cpu"`               // model
	Rounds  int      `json:"rounds"`
	Packets uint32   `json:"packets"` // of one turn in a round
	Results []Result `json:"results"`
}

// Result is what one case took.
type Result struct {
	Case
	// Nanoseconds of CPU time a packet, the harness's own taken off; of the case "harness", its own.
	Nanoseconds Spread `json:"nanoseconds"`
	// Multiple of what floor-hit took in the same round, at the same hook, with the same kind of packet and number
	// of flows.
	Floor Spread `json:"floor"`
}

// Spread is the median of the rounds, and their quartiles.
type Spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`  // a quarter of the rounds were below
	High   float64 `json:"high"` // a quarter were above
}

// Apart tells whether two spreads differ by more than noise: their quartiles do not overlap.
func (s Spread) Apart(other Spread) bool { return s.Low > other.High || s.High < other.Low }

// newReport returns a report of the machine.
func newReport(options Options) (*Report, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("ask for the kernel's release: %w", err)
	}
	return &Report{
		Kernel: unix.ByteSliceToString(name.Release[:]), CPU: cpuModel(),
		Rounds: options.Rounds, Packets: options.Packets,
	}, nil
}

// cpuModel returns what the kernel calls the CPU, or nothing.
func cpuModel() string {
	content, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(content)) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// ReadReport reads the JSON form of a report.
func ReadReport(path string) (*Report, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	report := &Report{}
	if err := json.Unmarshal(content, report); err != nil {
		return nil, fmt.Errorf("%s is not a report in JSON: %w", path, err)
	}
	return report, nil
}

// Find returns the result of a case.
func (r *Report) Find(c Case) (Result, bool) {
	i := slices.IndexFunc(r.Results, func(result Result) bool { return result.Case == c })
	if i < 0 {
		return Result{}, false
	}
	return r.Results[i], true
}

// results takes the harness off what was measured, by round, and compares with the floor.
func results(subjects []*subject, times [][]float64) []Result {
	harness, floor := map[string][]float64{}, map[string][]float64{}
	for i, s := range subjects {
		switch s.Packet {
		case packetHarness:
			harness[s.Hook] = times[i]
		case packetFloorHit:
			floor[s.Hook] = times[i]
		}
	}
	all := make([]Result, 0, len(subjects))
	for i, s := range subjects {
		own, ratio := make([]float64, len(times[i])), make([]float64, len(times[i]))
		for round, took := range times[i] {
			own[round] = took - harness[s.Hook][round]
			ratio[round] = own[round] / (floor[s.Hook][round] - harness[s.Hook][round])
		}
		result := Result{Case: s.Case, Nanoseconds: spread(own), Floor: spread(ratio)}
		if s.Packet == packetHarness {
			result.Nanoseconds, result.Floor = spread(times[i]), Spread{}
		}
		all = append(all, result)
	}
	return all
}

// spread returns the median and the quartiles.
func spread(values []float64) Spread {
	sorted := slices.Sorted(slices.Values(values))
	return Spread{Median: quantile(sorted, 0.5), Low: quantile(sorted, 0.25), High: quantile(sorted, 0.75)}
}

// quantile interpolates between sorted values, and rounds to thousandths.
func quantile(sorted []float64, share float64) float64 {
	position := share * float64(len(sorted)-1)
	below := int(position)
	value := sorted[below]
	if below+1 < len(sorted) {
		value += (position - float64(below)) * (sorted[below+1] - value)
	}
	return math.Round(value*1000) / 1000
}
