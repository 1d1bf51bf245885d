package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// A filter is known as ours by its name, "weir/pod_ingress", which the kernel keeps beside the program. Two agents in
// one network namespace would take each other's for their own; each needs a namespace anyway.
const filterPrefix = "weir/"

// filterHandles is the first of our filters' handles, "weir". The kernel puts a new filter before those of the same
// priority, and wants different handles there, ours and others'.
const filterHandles = 0x77656972

// filterHandle returns the handle of a program's filter. While a filter is moved there are two.
func filterHandle(program string, second bool) uint32 {
	handle := uint32(filterHandles + 2*slices.Index(tcPrograms(), program))
	if second {
		handle++
	}
	return handle
}

// The ends of a chain of filters.
const (
	firstPriority = 1
	lastPriority  = 0xffff
)

// qdiscsDir marks the devices that have the qdisc clsact from us, by their index.
const qdiscsDir = "clsact"

// priority is our place among filters.
func (s side) priority() uint16 {
	if s.first {
		return firstPriority
	}
	return lastPriority
}

// filterList returns the filters of a side of a device, in the order that packets meet them.
func (a *Attacher) filterList(ifindex int, s side) ([]netlink.Filter, error) {
	device := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	all, err := a.links.FilterList(device, s.parent)
	if err != nil {
		return nil, fmt.Errorf("list the %s filters: %w", s.name, err)
	}
	found := all[:0]
	for _, filter := range all {
		if chain := filter.Attrs().Chain; chain == nil || *chain == 0 {
			found = append(found, filter)
		}
	}
	return found, nil
}

// programOfFilter returns the name of the program that a filter of ours runs; "" of a filter of others.
func programOfFilter(filter netlink.Filter) string {
	if ours, ok := filter.(*netlink.BpfFilter); ok {
		if program, found := strings.CutPrefix(ours.Name, filterPrefix); found {
			return program
		}
	}
	return ""
}

// nameOfFilter describes a filter of others.
func nameOfFilter(filter netlink.Filter) string {
	if program, ok := filter.(*netlink.BpfFilter); ok && program.Name != "" {
		return program.Name
	}
	return fmt.Sprintf("%s (priority %d)", filter.Type(), filter.Attrs().Priority)
}

func (a *Attacher) ourFilters(ifindex int, s side) ([]*netlink.BpfFilter, error) {
	all, err := a.filterList(ifindex, s)
	if err != nil {
		return nil, err
	}
	var ours []*netlink.BpfFilter
	for _, filter := range all {
		if programOfFilter(filter) != "" {
			ours = append(ours, filter.(*netlink.BpfFilter))
		}
	}
	return ours, nil
}

func (a *Attacher) foreignFilters(ifindex int, s side) ([]netlink.Filter, error) {
	all, err := a.filterList(ifindex, s)
	if err != nil {
		return nil, err
	}
	var foreign []netlink.Filter
	for _, filter := range all {
		if programOfFilter(filter) == "" {
			foreign = append(foreign, filter)
		}
	}
	return foreign, nil
}

// placeFilter makes a program be in its place of a chain of filters.
func (a *Attacher) placeFilter(device Device, p placement, program *ebpf.Program) error {
	all, err := a.filterList(device.Index, p.side)
	if err != nil {
		return err
	}
	fields := []zap.Field{zap.String("device", device.Name), zap.String("program", p.program), zap.String("how", string(HowClsact))}
	ours := find(all, p.program)
	if ours == nil {
		if err := a.ensureQdisc(device.Index); err != nil {
			return err
		}
		if err := a.links.FilterAdd(newFilter(device.Index, p, program, filterHandle(p.program, false))); err != nil {
			return fmt.Errorf("attach %s as %s filter at priority %d: %w", p.program, p.side.name, p.side.priority(), err)
		}
		a.done("attached", attached, fields...)
		return nil
	}
	if err := a.updateFilter(ours, program, fields); err != nil {
		return err
	}
	if !misplaced(all, ours, p.side) || !a.mayMove(device) {
		return nil
	}
	if err := a.moveFilter(device, p, program, ours); err != nil {
		return fmt.Errorf("move %s: %w", p.program, err)
	}
	a.done("moved to its side of others", moved, fields...)
	return nil
}

// find returns our filter for a program.
func find(all []netlink.Filter, program string) *netlink.BpfFilter {
	for _, filter := range all {
		if programOfFilter(filter) == program {
			return filter.(*netlink.BpfFilter)
		}
	}
	return nil
}

// newFilter describes a filter of ours.
func newFilter(ifindex int, p placement, program *ebpf.Program, handle uint32) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: p.side.parent, Handle: handle, Priority: p.side.priority(), Protocol: unix.ETH_P_ALL,
		},
		Fd: program.FD(), Name: filterPrefix + p.program, DirectAction: true,
	}
}

// updateFilter makes a filter run a program, unless it does already. The kernel replaces it at once.
func (a *Attacher) updateFilter(ours *netlink.BpfFilter, program *ebpf.Program, fields []zap.Field) error {
	info, err := program.Info()
	if err != nil {
		return fmt.Errorf("read about a program: %w", err)
	}
	if id, ok := info.ID(); ok && int(id) == ours.Id {
		return nil
	}
	replacement := *ours
	replacement.Fd = program.FD()
	if err := a.links.FilterReplace(&replacement); err != nil {
		return fmt.Errorf("replace the program of filter %s: %w", ours.Name, err)
	}
	a.done("replaced", updated, fields...)
	return nil
}

// misplaced tells whether a filter of others is on the wrong side of ours, and moving ours would help. Nothing is
// behind a filter of the last priority that was there before us.
func misplaced(all []netlink.Filter, ours *netlink.BpfFilter, s side) bool {
	passed, wrong := false, false
	for _, filter := range all {
		if filter == netlink.Filter(ours) {
			passed = true
		} else if programOfFilter(filter) == "" && passed != s.first && filter.Attrs().Priority != lastPriority {
			wrong = true
		}
	}
	return wrong
}

// moveFilter puts a filter to its place and then takes it from its old one. A packet that meets both is translated
// by the first alone.
func (a *Attacher) moveFilter(device Device, p placement, program *ebpf.Program, old *netlink.BpfFilter) error {
	handle := filterHandle(p.program, old.Handle == filterHandle(p.program, false))
	if err := a.links.FilterAdd(newFilter(device.Index, p, program, handle)); err != nil {
		return err
	}
	if err := a.links.FilterDel(old); err != nil {
		return fmt.Errorf("take it off its old place: %w", err)
	}
	return nil
}

// removeFilter takes a filter of ours off its device.
func (a *Attacher) removeFilter(filter *netlink.BpfFilter) error {
	if err := a.links.FilterDel(filter); err != nil && !isGone(err) {
		return fmt.Errorf("remove filter %s: %w", filter.Name, err)
	}
	a.done("detached", detached, zap.Int("ifindex", filter.LinkIndex), zap.String("program", programOfFilter(filter)))
	return nil
}

// isGone tells whether an error of netlink is that what it was about does not exist.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}

// clsactQdisc describes the qdisc that filters hang on.
func clsactQdisc(ifindex int) *netlink.GenericQdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	}
}

// qdiscMark is where it is noted that a device has its qdisc from us.
func (a *Attacher) qdiscMark(ifindex int) string {
	return filepath.Join(a.options.Pins, qdiscsDir, strconv.Itoa(ifindex))
}

// markedQdiscs returns the devices that have their qdisc from us.
func (a *Attacher) markedQdiscs() []int {
	entries, err := os.ReadDir(filepath.Join(a.options.Pins, qdiscsDir))
	if err != nil {
		return nil
	}
	var marked []int
	for _, entry := range entries {
		if ifindex, err := strconv.Atoi(entry.Name()); err == nil {
			marked = append(marked, ifindex)
		}
	}
	return marked
}

// ensureQdisc gives a device the qdisc clsact, and notes that it is from us, unless it has one.
func (a *Attacher) ensureQdisc(ifindex int) error {
	device := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	qdiscs, err := a.links.QdiscList(device)
	if err != nil {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	for _, qdisc := range qdiscs {
		switch qdisc.Type() {
		case "clsact":
			return nil
		case "ingress":
			return errors.New("the qdisc ingress is in the place of clsact: replace it, or remove it")
		}
	}
	if err := os.MkdirAll(a.qdiscMark(ifindex), 0o700); err != nil {
		return fmt.Errorf("note the qdisc: %w", err)
	}
	if err := a.links.QdiscAdd(clsactQdisc(ifindex)); err != nil {
		return errors.Join(fmt.Errorf("add the qdisc clsact: %w", err), os.Remove(a.qdiscMark(ifindex)))
	}
	return nil
}

// removeQdisc takes away a qdisc that is from us and that nobody uses any more. One that others use by now is theirs.
func (a *Attacher) removeQdisc(ifindex int) error {
	mark := a.qdiscMark(ifindex)
	if _, err := os.Stat(mark); err != nil {
		return nil
	}
	empty := true
	for _, s := range []side{ingressSide(), egressSide()} {
		filters, err := a.filterList(ifindex, s)
		if err != nil {
			return err
		}
		for _, filter := range filters {
			if programOfFilter(filter) != "" {
				return nil
			}
			empty = false
		}
	}
	if empty {
		if err := a.links.QdiscDel(clsactQdisc(ifindex)); err != nil && !isGone(err) {
			return fmt.Errorf("remove the qdisc clsact: %w", err)
		}
	}
	if err := os.Remove(mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
