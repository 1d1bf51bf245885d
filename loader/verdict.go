package loader

import (
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
)

// actUnspec is TC_ACT_UNSPEC, "nothing to say": the only verdict after which the kernel asks the next filter
// (tcf_classify in net/sched/cls_api.c).
const actUnspec = -1

// endsChain tells whether one of the filters lets no packet reach the filters behind it, and which.
func endsChain(filters []netlink.Filter) (name string, ends bool) {
	for _, filter := range filters {
		if filterEnds(filter) {
			return nameOfFilter(filter), true
		}
	}
	return "", false
}

// filterEnds tells whether a filter certainly ends its chain. Of filters for some packets only, and of programs that
// cannot be read, it is not known.
func filterEnds(filter netlink.Filter) bool {
	switch filter := filter.(type) {
	case *netlink.BpfFilter:
		return filter.DirectAction && programEnds(ebpf.ProgramID(filter.Id))
	case *netlink.MatchAll:
		continues := func(action netlink.Action) bool { return action.Attrs().Action == actUnspec }
		return len(filter.Actions) > 0 && !slices.ContainsFunc(filter.Actions, continues)
	default:
		return false
	}
}

// programEnds tells whether a program never returns TC_ACT_UNSPEC. It reads the program as the kernel shows it
// (xlated instructions, bpf_prog_info).
func programEnds(id ebpf.ProgramID) bool {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return false
	}
	instructions, err := info.Instructions()
	if err != nil || len(instructions) == 0 {
		return false
	}
	return !mayGoOn(instructions)
}

// mayGoOn tells whether instructions have TC_ACT_UNSPEC as a constant, or go on to other programs by a tail call. A
// verdict that they do not have they hardly return: one that looks it up somewhere is taken to end the chain.
func mayGoOn(instructions asm.Instructions) bool {
	return slices.ContainsFunc(instructions, func(i asm.Instruction) bool {
		switch {
		case i.IsBuiltinCall():
			return asm.BuiltinFunc(i.Constant) == asm.FnTailCall
		case i.OpCode.IsDWordLoad():
			return !i.IsLoadFromMap() && int32(i.Constant) == actUnspec
		case i.OpCode.Class().IsALU() && i.OpCode.ALUOp() == asm.Mov && i.OpCode.Source() == asm.ImmSource:
			return int32(i.Constant) == actUnspec
		default:
			return false
		}
	})
}
