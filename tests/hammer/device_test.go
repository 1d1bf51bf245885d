package hammer

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"

	"github.com/weir-lb/weir/maps"
)

// deviceOf returns a record that says one number everywhere.
func deviceOf(number uint32) maps.Device {
	device := maps.Device{EdgeId: uint16(number), Master: number}
	binary.NativeEndian.PutUint16(device.Mac[:], uint16(number))
	for _, address := range []*maps.Address{&device.Ipv4, &device.Ipv6} {
		for i := 0; i < len(address.Bytes); i += 4 {
			binary.NativeEndian.PutUint32(address.Bytes[i:], number)
		}
	}
	return device
}

// deviceReads is what tests/hammer/bpf/device.bpf.c has counted.
type deviceReads struct{ whole, torn, others, missed uint64 }

// hammerDevice writes records while a program reads that of the device 97.
func hammerDevice(t *testing.T, write func(set *maps.Set, n uint32) error) deviceReads {
	t.Helper()
	set, err := maps.New(maps.Sizes{
		Services: 4, Frontends: 4, Backends: 4, SlotBlocks: 4, FlowsIPv4: 4, FlowsIPv6: 4, Embryos: 4, Devices: 4,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	spec, err := loadDevice()
	if err != nil {
		t.Fatal(err)
	}
	if err := spec.Variables["ifindex"].Set(uint32(ifindex)); err != nil {
		t.Fatal(err)
	}
	reader, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements(set, spec)})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer reader.Close()
	if err := write(set, 0); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Second)
	var both errgroup.Group
	both.Go(func() error {
		for n := uint32(1); time.Now().Before(end); n++ {
			if err := write(set, n); err != nil {
				return err
			}
		}
		return nil
	})
	both.Go(func() error {
		for time.Now().Before(end) {
			_, err := reader.Programs["read_device"].Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: 20000})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := both.Wait(); err != nil {
		t.Fatal(err)
	}
	var reads deviceReads
	for name, count := range map[string]*uint64{
		"whole": &reads.whole, "torn": &reads.torn, "others": &reads.others, "missed": &reads.missed,
	} {
		if err := reader.Variables[name].Get(count); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%+v", reads)
	return reads
}

// ifindex is that of the device that is read; the numbers of its records are its multiples.
const ifindex = 97

// A device's record is replaced as a whole: a program sees the old one or the new one, and always one.
func TestHammerDeviceReplaced(t *testing.T) {
	reads := hammerDevice(t, func(set *maps.Set, n uint32) error {
		return set.PutDevice(ifindex, deviceOf(ifindex*(n+1)))
	})
	if reads.torn+reads.others+reads.missed > 0 || reads.whole == 0 {
		t.Errorf("%+v", reads)
	}
}

// Devices come and go, and get each other's elements: a program has the record of the device it asked for, or none.
func TestHammerDevicesComeAndGo(t *testing.T) {
	reads := hammerDevice(t, func(set *maps.Set, n uint32) error {
		put, remove := uint32(ifindex), uint32(ifindex+1)
		if n%2 == 1 {
			put, remove = remove, put
		}
		if err := set.Devices.Delete(remove); err != nil && n > 0 {
			return err
		}
		return set.PutDevice(put, deviceOf(put*(n+1)))
	})
	if reads.torn+reads.others > 0 || reads.whole == 0 {
		t.Errorf("%+v", reads)
	}
}
