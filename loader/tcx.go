package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
)

// side is one of the two directions of a device, with the place that is ours there: before everybody else's programs
// where packets come in, behind them where packets go out. So all others see what the network stack sees.
type side struct {
	name   string
	attach ebpf.AttachType // for tcx
	parent uint32          // of clsact filters
	first  bool            // ours is the first; else the last
}

func ingressSide() side {
	return side{name: "ingress", attach: ebpf.AttachTCXIngress, parent: netlink.HANDLE_MIN_INGRESS, first: true}
}

func egressSide() side {
	return side{name: "egress", attach: ebpf.AttachTCXEgress, parent: netlink.HANDLE_MIN_EGRESS}
}

// ahead is the side with our place before others.
func (s side) ahead() side {
	s.first = true
	return s
}

// anchor is our place among tcx programs.
func (s side) anchor() link.Anchor {
	if s.first {
		return link.Head()
	}
	return link.Tail()
}

// maxMoves is how often our programs are put to their place on a device. Who is pushed aside more often contends with
// a program that also wants to be first or last.
const maxMoves = 20

// tcxProgram is a program in a device's chain.
type tcxProgram struct {
	id   ebpf.ProgramID
	link link.ID
	ours bool
}

// tcxChain returns the tcx programs of a side of a device, in the order that packets meet them (BPF_PROG_QUERY, Linux 6.6).
func (a *Attacher) tcxChain(ifindex int, s side) ([]tcxProgram, error) {
	if !a.options.Features.TCX {
		return nil, nil
	}
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: s.attach})
	if err != nil {
		return nil, fmt.Errorf("query the tcx %s programs: %w", s.name, err)
	}
	if len(result.Programs) == 0 {
		return nil, nil
	}
	ours, err := a.pinnedLinks(ifindex)
	if err != nil {
		return nil, err
	}
	chain := make([]tcxProgram, 0, len(result.Programs))
	for _, program := range result.Programs {
		id, linked := program.LinkID()
		chain = append(chain, tcxProgram{id: program.ID, link: id, ours: linked && ours[id]})
	}
	return chain, nil
}

// placeTCX makes a program be in its place of a chain.
func (a *Attacher) placeTCX(device Device, p placement, program *ebpf.Program) error {
	chain, err := a.tcxChain(device.Index, p.side)
	if err != nil {
		return err
	}
	pin := a.linkPin(device.Index, p.program)
	pinned, err := openLink(pin)
	if err != nil {
		return err
	}
	if pinned != nil {
		defer pinned.Close()
	}
	fields := []zap.Field{zap.String("device", device.Name), zap.String("program", p.program), zap.String("how", string(HowTCX))}
	if pinned == nil || !contains(chain, pinned.id) {
		if err := a.attachTCX(device, p, program, pin); err != nil {
			return err
		}
		a.done("attached", attached, fields...)
		return nil
	}
	if err := a.updateLink(pinned, program, fields); err != nil {
		return err
	}
	if inPlace(chain, pinned.id, p.side) || !a.mayMove(device) {
		return nil
	}
	if err := a.moveTCX(device, p, program, pinned); err != nil {
		return fmt.Errorf("move %s: %w", p.program, err)
	}
	a.done("moved to its side of others", moved, fields...)
	return nil
}

func contains(chain []tcxProgram, id link.ID) bool {
	for _, program := range chain {
		if program.link == id {
			return true
		}
	}
	return false
}

// inPlace tells whether every program of others is on the right side of ours. Others of ours do not matter: one of
// them is about to go.
func inPlace(chain []tcxProgram, id link.ID, s side) bool {
	passed := false
	for _, program := range chain {
		if program.link == id {
			passed = true
		} else if !program.ours && passed != s.first {
			return false
		}
	}
	return true
}

// attachTCX attaches a program in its place and pins the link, in the place of a pin that no longer means anything.
func (a *Attacher) attachTCX(device Device, p placement, program *ebpf.Program, pin string) error {
	attached, err := link.AttachTCX(link.TCXOptions{
		Program: program, Attach: p.side.attach, Interface: device.Index, Anchor: p.side.anchor(),
	})
	if err != nil {
		return fmt.Errorf("attach %s at tcx %s: %w", p.program, p.side.name, err)
	}
	defer attached.Close()
	if err := a.pinLink(attached, pin); err != nil {
		return errors.Join(err, attached.Detach())
	}
	return nil
}

// moveTCX puts a program to its place without a moment in which none is there. A link cannot be moved, and a program
// cannot be in a chain twice: so a twin of the program is attached in the right place, the old link goes, and then
// the twin is replaced by the program itself. A packet that meets both is translated by the first alone.
func (a *Attacher) moveTCX(device Device, p placement, program *ebpf.Program, old *pinnedLink) error {
	twin, err := a.programs.twin(p.program)
	if err != nil {
		return err
	}
	defer twin.Close()
	pin := a.linkPin(device.Index, p.program)
	if err := a.attachTCX(device, p, twin, pin); err != nil {
		return err
	}
	if err := old.Detach(); err != nil {
		return fmt.Errorf("take it off its old place: %w", err)
	}
	now, err := openLink(pin)
	if err != nil || now == nil {
		return errors.Join(errors.New("the new link is gone"), err)
	}
	defer now.Close()
	return now.Update(program)
}

// mayMove tells whether programs may be moved once more on a device, and counts.
func (a *Attacher) mayMove(device Device) bool {
	a.mu.Lock()
	a.moves[device.Index]++
	moves := a.moves[device.Index]
	a.mu.Unlock()
	if moves == maxMoves+1 {
		a.options.Log.Warn("another program keeps taking our place: left where it is", zap.String("device", device.Name))
	}
	return moves <= maxMoves
}
