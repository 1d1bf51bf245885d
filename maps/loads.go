package maps

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
)

// loadFields is how many 32-bit fields a BackendLoad has.
const loadFields = 4

// Where the fields are.
const (
	loadFlows      = 0
	loadCorrection = 2
	loadCounted    = 3
)

// Loads corrects how many flows are open to each backend by what a sweep counts (bpf/types.h). Programs go on counting
// meanwhile: of an element only the fields that are the agent's are written.
type Loads struct {
	memory *ebpf.Memory
	before []int32 // flows when the sweep began
}

// NewLoads maps the loads into memory.
func NewLoads(loads *ebpf.Map) (*Loads, error) {
	memory, err := loads.Memory()
	if err != nil {
		return nil, fmt.Errorf("map the loads into memory: %w", err)
	}
	return &Loads{memory: memory, before: make([]int32, loads.MaxEntries())}, nil
}

// Begin is called before a sweep.
func (l *Loads) Begin() error {
	fields, err := l.read()
	if err != nil {
		return err
	}
	for i := range l.before {
		l.before[i] = fields[i*loadFields+loadFlows]
		if fields[i*loadFields+loadCounted] == 0 {
			continue
		}
		if err := l.write(i, loadCounted, 0); err != nil {
			return err
		}
	}
	return nil
}

// End is called after the sweep. What has been born or closed since Begin stays counted as that.
func (l *Loads) End() error {
	fields, err := l.read()
	if err != nil {
		return err
	}
	for i, before := range l.before {
		correction := fields[i*loadFields+loadCounted] - before
		if fields[i*loadFields+loadCorrection] == correction {
			continue
		}
		if err := l.write(i, loadCorrection, correction); err != nil {
			return err
		}
	}
	return nil
}

func (l *Loads) read() ([]int32, error) {
	fields := make([]int32, len(l.before)*loadFields)
	raw := make([]byte, len(fields)*4)
	if _, err := l.memory.ReadAt(raw, 0); err != nil {
		return nil, fmt.Errorf("read the loads: %w", err)
	}
	for i := range fields {
		fields[i] = int32(binary.NativeEndian.Uint32(raw[i*4:]))
	}
	return fields, nil
}

func (l *Loads) write(index, field int, value int32) error {
	var raw [4]byte
	binary.NativeEndian.PutUint32(raw[:], uint32(value))
	if _, err := l.memory.WriteAt(raw[:], int64(index*loadFields+field)*4); err != nil {
		return fmt.Errorf("write the loads: %w", err)
	}
	return nil
}

// Open returns how many flows and sockets are open to the backend.
func (l bpfBackendLoad) Open() int32 { return max(0, l.Flows+l.Correction+l.Sockets) }
