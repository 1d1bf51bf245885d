package loader

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
)

// TestProgramEnds reads programs back from the kernel and tells those that let no packet go on.
func TestProgramEnds(t *testing.T) {
	mountBPFFS(t)
	jumps, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer jumps.Close()
	choose := func(other asm.Instruction) asm.Instructions {
		return asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // length of the packet
			asm.Mov.Imm(asm.R0, 0),
			asm.JLT.Imm(asm.R2, 100, "out"),
			other,
			asm.Return().WithSymbol("out"),
		}
	}
	for name, test := range map[string]struct {
		code asm.Instructions
		ends bool
	}{
		"ok":                     {asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, true},
		"drops some":             {choose(asm.Mov.Imm(asm.R0, 2)), true},
		"next":                   {asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, false},
		"next, 32 bits":          {asm.Instructions{asm.Mov.Imm32(asm.R0, -1), asm.Return()}, false},
		"next for some":          {choose(asm.Mov.Imm(asm.R0, -1)), false},
		"next, as a long number": {asm.Instructions{asm.LoadImm(asm.R0, 0xffffffff, asm.DWord), asm.Return()}, false},
		"another program decides": {asm.Instructions{
			asm.LoadMapPtr(asm.R2, jumps.FD()), asm.Mov.Imm(asm.R3, 0), asm.FnTailCall.Call(), asm.Mov.Imm(asm.R0, 0), asm.Return(),
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: test.code, License: "GPL"})
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			id, _ := infoOf(t, program).ID()
			if got := programEnds(id); got != test.ends {
				t.Errorf("ends the chain: %t, want %t", got, test.ends)
			}
		})
	}
}

// TestFilterEnds reads filters that are no programs.
func TestFilterEnds(t *testing.T) {
	action := func(act netlink.TcAct) []netlink.Action {
		return []netlink.Action{&netlink.GenericAction{ActionAttrs: netlink.ActionAttrs{Action: act}}}
	}
	for name, test := range map[string]struct {
		filter netlink.Filter
		ends   bool
	}{
		"all packets end":     {&netlink.MatchAll{Actions: action(netlink.TC_ACT_OK)}, true},
		"all packets go on":   {&netlink.MatchAll{Actions: action(netlink.TC_ACT_UNSPEC)}, false},
		"no action":           {&netlink.MatchAll{}, false},
		"some packets end":    {&netlink.U32{Actions: action(netlink.TC_ACT_OK)}, false},
		"a classifying one":   {&netlink.BpfFilter{}, false},
		"a program that left": {&netlink.BpfFilter{DirectAction: true, Id: 1<<31 - 1}, false},
	} {
		if got := filterEnds(test.filter); got != test.ends {
			t.Errorf("%s: ends the chain: %t, want %t", name, got, test.ends)
		}
	}
}
