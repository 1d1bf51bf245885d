package maps

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
)

// PutDevice writes what programs shall know of a device, where it is: they see what was there or this, whole.
func (s *Set) PutDevice(ifindex uint32, device Device) error {
	record := DeviceRecord{Device: device}
	words, err := binary.Append(nil, binary.NativeEndian, &device)
	if err != nil {
		return fmt.Errorf("seal the record: %w", err)
	}
	record.Seal = hashWords(words, ifindex)
	return s.Devices.Update(ifindex, &record, ebpf.UpdateLock)
}

// Device returns what programs know of a device; ebpf.ErrKeyNotExist: nothing.
func (s *Set) Device(ifindex uint32) (Device, error) {
	var record DeviceRecord
	err := s.Devices.LookupWithFlags(ifindex, &record, ebpf.LookupLock)
	return record.Device, err
}

// EachDevice calls visit with what programs know of each device until it returns false.
func (s *Set) EachDevice(visit func(ifindex uint32, device Device) bool) error {
	var indices []uint32
	err := Each(s.Devices, func(ifindex uint32, _ DeviceRecord) bool {
		indices = append(indices, ifindex)
		return true
	})
	if err != nil {
		return err
	}
	for _, ifindex := range indices {
		device, err := s.Device(ifindex)
		if err == nil && !visit(ifindex, device) {
			return nil
		}
	}
	return nil
}
