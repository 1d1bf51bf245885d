package lab

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/weir-lb/weir/loader"
)

// Attached lists what is attached to the host's devices for packets to run through: XDP programs, tcx programs and
// classifier queues.
func (h *Host) Attached() ([]string, error) {
	devices, err := loader.DumpWhole(h.links.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links of %s: %w", h.Name, err)
	}
	var found []string
	for _, device := range devices {
		name := device.Attrs().Name
		if xdp := device.Attrs().Xdp; xdp != nil && xdp.Attached {
			found = append(found, name+": xdp")
		}
		queues, err := h.links.QdiscList(device)
		if err != nil {
			return nil, fmt.Errorf("list qdiscs of %s in %s: %w", name, h.Name, err)
		}
		for _, queue := range queues {
			if queue.Attrs().Parent == netlink.HANDLE_CLSACT {
				found = append(found, name+": clsact")
			}
		}
		tcx, err := h.attachedTCX(device.Attrs().Index)
		if err != nil {
			return nil, fmt.Errorf("query tcx of %s in %s: %w", name, h.Name, err)
		}
		if tcx > 0 {
			found = append(found, fmt.Sprintf("%s: %d tcx programs", name, tcx))
		}
	}
	return found, nil
}

// attachedTCX counts a device's tcx programs.
func (h *Host) attachedTCX(ifindex int) (int, error) {
	count := 0
	err := h.Do(func() error {
		for _, attach := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: attach})
			if errors.Is(err, ebpf.ErrNotSupported) {
				return nil
			}
			if err != nil {
				return err
			}
			count += len(result.Programs)
		}
		return nil
	})
	return count, err
}
