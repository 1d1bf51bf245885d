package maps

import (
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// slotMemory is the slots as memory. Only what is written or read is mapped, for so long: all of it would count as resident,
// for the kernel maps such memory page by page.
type slotMemory struct{ slots *ebpf.Map }

// write copies content to an offset in bytes.
func (m slotMemory) write(content []byte, offset int64) error {
	return m.at(offset, len(content), unix.PROT_READ|unix.PROT_WRITE, func(memory []byte) { copy(memory, content) })
}

// read copies from an offset in bytes.
func (m slotMemory) read(content []byte, offset int64) error {
	return m.at(offset, len(content), unix.PROT_READ, func(memory []byte) { copy(content, memory) })
}

// at calls f with the memory from an offset on.
func (m slotMemory) at(offset int64, length, protection int, f func(memory []byte)) error {
	within := offset % int64(os.Getpagesize())
	memory, err := unix.Mmap(m.slots.FD(), offset-within, int(within)+length, protection, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	f(memory[within:])
	return unix.Munmap(memory)
}
