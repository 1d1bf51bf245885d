package apply

import (
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/weir-lb/weir/maps"
)

// seeker returns a program that looks a frontend up again and again, and returns how often it was not there.
func seeker(t *testing.T, set *maps.Set, key maps.FrontendKey, lookups int32) *ebpf.Program {
	t.Helper()
	keys, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: set.Frontends.KeySize(), MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	if err := keys.Put(uint32(0), &key); err != nil {
		t.Fatal(err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, keys.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.Mov.Imm(asm.R7, 0), // missed
			asm.JEq.Imm(asm.R0, 0, "end"),
			asm.Mov.Reg(asm.R8, asm.R0), // the key
			asm.Mov.Imm(asm.R6, lookups),
			asm.LoadMapPtr(asm.R1, set.Frontends.FD()).WithSymbol("again"),
			asm.Mov.Reg(asm.R2, asm.R8),
			asm.FnMapLookupElem.Call(),
			asm.JNE.Imm(asm.R0, 0, "found"),
			asm.Add.Imm(asm.R7, 1),
			asm.Sub.Imm(asm.R6, 1).WithSymbol("found"),
			asm.JNE.Imm(asm.R6, 0, "again"),
			asm.Mov.Reg(asm.R0, asm.R7).WithSymbol("end"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// A frontend that is replaced is there all the time. (A hash map's update, but for one in place, lets one lookup
// in some 100,000 miss it here.)
func TestAFrontendThatIsReplacedIsNeverMissing(t *testing.T) {
	sizes := smallSizes()
	sizes.Frontends = 8 // in as many buckets: most have company
	set := newSet(t, sizes)
	write := &kernelWriter{}
	replace := func(generation uint32) {
		for n := range 8 {
			if err := write.lead(set.Frontends, vipKey(n), vipKey(n).Seal(maps.FrontendClusterIP, 1, generation)); err != nil {
				t.Error(err)
			}
		}
	}
	replace(0)
	const lookups = 2000
	var seekers []*ebpf.Program
	for n := range 8 {
		seekers = append(seekers, seeker(t, set, vipKey(n), lookups))
	}
	deadline := time.Now().Add(time.Second)
	var writing sync.WaitGroup
	writing.Go(func() {
		for generation := uint32(1); time.Now().Before(deadline); generation++ {
			replace(generation)
		}
	})
	sought, missed := 0, uint32(0)
	for time.Now().Before(deadline) {
		for _, program := range seekers {
			misses, err := program.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
			if err != nil {
				t.Fatal(err)
			}
			sought += lookups
			missed += misses
		}
	}
	writing.Wait()
	t.Logf("%d lookups during %d writes", sought, write.writes.Load())
	if missed > 0 {
		t.Errorf("%d of them found no frontend", missed)
	}
}
