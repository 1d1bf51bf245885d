package maps

import (
	"fmt"
	"reflect"
	"strings"
	"unicode"

	"github.com/cilium/ebpf"
)

// ReadCounters returns the programs' counters by their names in bpf/types.h, summed over the CPUs.
func (s *Set) ReadCounters() (map[string]uint64, error) {
	var perCPU []PacketCounters
	if err := s.Counters.Lookup(uint32(0), &perCPU); err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	sums := map[string]uint64{}
	for _, cpu := range perCPU {
		value := reflect.ValueOf(cpu)
		for i := range value.NumField() {
			if field := value.Type().Field(i); field.IsExported() {
				sums[snakeCase(field.Name)] += value.Field(i).Uint()
			}
		}
	}
	return sums, nil
}

// snakeCase turns a field's name in Go back into the one in C.
func snakeCase(name string) string {
	var out strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			out.WriteByte('_')
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}

// ReadTraffic returns the counters at an index of ServiceStats or BackendStats, summed over the CPUs.
func ReadTraffic(m *ebpf.Map, index uint32) (Traffic, error) {
	var perCPU []Traffic
	if err := m.Lookup(index, &perCPU); err != nil {
		return Traffic{}, fmt.Errorf("read %s: %w", m, err)
	}
	var sum Traffic
	for _, t := range perCPU {
		sum.Flows += t.Flows
		sum.Packets += t.Packets
		sum.Bytes += t.Bytes
		sum.ReplyPackets += t.ReplyPackets
		sum.ReplyBytes += t.ReplyBytes
	}
	return sum, nil
}
