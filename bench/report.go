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
	// Multiple of what floor-hit took at the same hook, with the same kind of packet and number of flows.
	Floor Spread `json:"floor"`
}

// Spread is what the turns took. Whatever else a machine does makes them take longer, never shorter: where Low and
// Median are far apart the machine was busy, and Low is nearer to the truth.
type Spread struct {
	Low    float64 `json:"low"` // a tenth of the turns took less
	Median float64 `json:"median"`
	High   float64 `json:"high"` // a tenth took more
}

// Apart tells whether two spreads differ by more than noise: not even their lower halves overlap.
func (s Spread) Apart(other Spread) bool { return s.Low > other.Median || s.Median < other.Low }

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
	if len(report.Results) == 0 {
		return nil, fmt.Errorf("%s is not a report: it has no results", path)
	}
	return report, nil
}

// Find returns the result of a case.
func (r *Report) Find(c Case) (Result, bool) { return find(r.Results, c) }

// find returns the result of a case.
func find(all []Result, c Case) (Result, bool) {
	i := slices.IndexFunc(all, func(result Result) bool { return result.Case == c })
	if i < 0 {
		return Result{}, false
	}
	return all[i], true
}

// results takes the harness off what was measured, and compares with the floor.
func results(subjects []*subject, times [][]float64) []Result {
	harness, floor := map[string]Spread{}, map[string]Spread{}
	for i, s := range subjects {
		switch s.Packet {
		case packetHarness:
			harness[s.Hook] = spread(times[i])
		case packetFloorHit:
			floor[s.Hook] = spread(times[i])
		}
	}
	all := make([]Result, 0, len(subjects))
	for i, s := range subjects {
		result := Result{Case: s.Case, Nanoseconds: spread(times[i])}
		if s.Packet != packetHarness {
			own := harness[s.Hook]
			result.Floor = result.Nanoseconds.minus(own).over(floor[s.Hook].minus(own))
			// What disturbed the harness's turns is not to show here.
			result.Nanoseconds = result.Nanoseconds.minus(Spread{own.Median, own.Median, own.Median})
		}
		all = append(all, result)
	}
	return all
}

// spread returns the median and both tenths.
func spread(values []float64) Spread {
	sorted := slices.Sorted(slices.Values(values))
	return Spread{Low: quantile(sorted, 0.1), Median: quantile(sorted, 0.5), High: quantile(sorted, 0.9)}
}

// minus takes the other off, each from its like.
func (s Spread) minus(other Spread) Spread {
	return Spread{Low: rounded(s.Low - other.Low), Median: rounded(s.Median - other.Median), High: rounded(s.High - other.High)}
}

// over divides by the other, each by its like.
func (s Spread) over(other Spread) Spread {
	return Spread{Low: rounded(s.Low / other.Low), Median: rounded(s.Median / other.Median), High: rounded(s.High / other.High)}
}

// quantile interpolates between sorted values.
func quantile(sorted []float64, share float64) float64 {
	position := share * float64(len(sorted)-1)
	below := int(position)
	value := sorted[below]
	if below+1 < len(sorted) {
		value += (position - float64(below)) * (sorted[below+1] - value)
	}
	return rounded(value)
}

// rounded rounds to thousandths. What is no number, as a turn divided by one that took nothing, becomes 0.
func rounded(value float64) float64 {
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return 0
	}
	return math.Round(value*1000) / 1000
}
