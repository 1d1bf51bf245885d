package loader

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Kernels before 5.12 refuse a compare-and-swap wherever it stands: none is left in any program for them.
func TestNoAtomics(t *testing.T) {
	before := 0
	for _, read := range objects() {
		spec, err := read()
		if err != nil {
			t.Fatal(err)
		}
		before += countSwaps(spec)
		swapPlainly(spec)
		if left := countSwaps(spec); left != 0 {
			t.Errorf("%d are left", left)
		}
	}
	if before == 0 {
		t.Error("no program has one: nothing is tested")
	}
}

// countSwaps counts the atomic instructions of an object other than additions.
func countSwaps(spec *ebpf.CollectionSpec) int {
	count := 0
	for _, program := range spec.Programs {
		for _, ins := range program.Instructions {
			if op := ins.OpCode.AtomicOp(); op != asm.InvalidAtomic && op != asm.AddAtomic {
				count++
			}
		}
	}
	return count
}

// What the functions of maps return is of 32 bits before Linux 6.4, and -EEXIST, compared as 64, is never found.
func TestErrorsOfMapsAreOf32Bits(t *testing.T) {
	found := 0
	for _, read := range objects() {
		spec, err := read()
		if err != nil {
			t.Fatal(err)
		}
		for name, program := range spec.Programs {
			for _, ins := range program.Instructions {
				if op := ins.OpCode.JumpOp(); (op != asm.JEq && op != asm.JNE) || ins.Constant != -int64(unix.EEXIST) {
					continue
				}
				found++
				if ins.OpCode.Class() != asm.Jump32Class {
					t.Errorf("%s: %v", name, ins)
				}
			}
		}
	}
	if found == 0 {
		t.Error("no program looks for -EEXIST: nothing is tested")
	}
}
