package loader

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	weirmaps "github.com/weir-lb/weir/maps"
)

// xdpProgram is the program for XDP.
const xdpProgram = "node_xdp"

// XDPMode says where XDP programs may be attached.
type XDPMode string

// The modes of XDP. None of them ever fails: a device that cannot have it is left to tc, with a reason.
const (
	XDPAuto    XDPMode = "auto"    // natively, where the driver does it without harm
	XDPNative  XDPMode = "native"  // natively, wherever the driver takes it
	XDPGeneric XDPMode = "generic" // in the stack: for tests, as it meets packets that are not those of the wire
	XDPOff     XDPMode = "off"
)

// How the kernel says that an XDP program is attached (IFLA_XDP_ATTACHED, linux/if_link.h).
const (
	xdpAttachedDriver = 1
	xdpAttachedStack  = 2
)

// refusal remembers that a device cannot have XDP, until something about the device changes.
type refusal struct {
	device Device
	reason string
}

// attachXDP gives a device of the node edge XDP, or says why not.
func (a *Attacher) attachXDP(device Device, attachment *Attachment) error {
	if device.Edge != weirmaps.EdgeNode || a.options.XDP == XDPOff {
		return a.detachXDP(device.Index)
	}
	if reason := a.refuseXDP(device); reason != "" {
		attachment.Reasons = append(attachment.Reasons, "no native XDP: "+reason)
		return a.detachXDP(device.Index)
	}
	how := HowXDPNative
	if a.options.XDP == XDPGeneric {
		how = HowXDPGeneric
		attachment.Reasons = append(attachment.Reasons,
			"generic XDP, as asked for: slower than tc, and merged packets and partial checksums are not what it is made for")
	}
	if err := a.placeXDP(device, how); err != nil {
		reason := a.explainXDP(device, err)
		if !isTaken(err) {
			a.noteRefusal(device, reason)
		}
		attachment.Reasons = append(attachment.Reasons, fmt.Sprintf("no %s: %s", how, reason))
		return a.detachXDP(device.Index)
	}
	attachment.Hooks = append(attachment.Hooks, Hook{Program: xdpProgram, How: how})
	return a.allowRedirect(device.Index)
}

// refuseXDP says why a device is left to tc without a try; "" if it is not.
func (a *Attacher) refuseXDP(device Device) string {
	if past := a.pastRefusal(device); past != "" {
		return past
	}
	switch {
	case !device.Ethernet:
		return "packets have no Ethernet header"
	case device.Parent:
		return "VLAN devices are on top, and XDP may not see their tags"
	case a.options.XDP == XDPAuto:
		return harmOfXDP(device)
	default:
		return ""
	}
}

// noteRefusal remembers why a device cannot have XDP.
func (a *Attacher) noteRefusal(device Device, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refused[device.Index] = refusal{device, reason}
}

// pastRefusal returns why a device could not have XDP when it was as it is now; "" if it has not been tried.
func (a *Attacher) pastRefusal(device Device) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if past := a.refused[device.Index]; past.device == device {
		return past.reason
	}
	delete(a.refused, device.Index)
	return ""
}

// harmOfXDP says what native XDP would cost a device; "" if nothing is known.
func harmOfXDP(device Device) string {
	driver, err := readDriver(device.Name)
	if err != nil {
		return fmt.Sprintf("the driver cannot be told: %v", err)
	}
	switch driver.name {
	case "veth", "tun":
		return "packets may carry partial checksums, which XDP does not see (" + driver.name + ")"
	case "bonding", "team":
		return "its ports' drivers decide; --xdp native tries"
	case "mlx5_core", "ena":
		return fmt.Sprintf("the driver %s resets the link and may give up queues for it; --xdp native does it", driver.name)
	case "virtio_net":
		if need := driver.queues + runtime.NumCPU(); driver.maxQueues < need {
			return fmt.Sprintf("virtio_net has %d queues and needs %d, one more for each CPU; --xdp native does it",
				driver.maxQueues, need)
		}
	}
	return ""
}

// explainXDP turns an error of attaching into a reason.
func (a *Attacher) explainXDP(device Device, err error) string {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Sprintf("the driver of %s has none", device.Name)
	case isTaken(err):
		return "another XDP program is attached" + a.foreignXDP(device.Index)
	default:
		return fmt.Sprintf("the driver refuses it: %v", err)
	}
}

// isTaken tells whether XDP could not be had because somebody else has it: that may end at any time.
func isTaken(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) }

// foreignXDP names the XDP program that is attached, for the end of a sentence.
func (a *Attacher) foreignXDP(ifindex int) string {
	device, err := a.links.LinkByIndex(ifindex)
	if err != nil || device.Attrs().Xdp == nil || device.Attrs().Xdp.ProgId == 0 {
		return ""
	}
	return ": " + nameOfProgram(ebpf.ProgramID(device.Attrs().Xdp.ProgId))
}

// placeXDP makes the XDP program be attached that way.
func (a *Attacher) placeXDP(device Device, how How) error {
	program := a.programs.NodeXDP
	pin := a.linkPin(device.Index, xdpProgram)
	fields := []zap.Field{zap.String("device", device.Name), zap.String("program", xdpProgram), zap.String("how", string(how))}
	pinned, err := openLink(pin)
	if err != nil {
		return err
	}
	if pinned != nil {
		defer pinned.Close()
		if a.isAttachedXDP(device.Index, pinned, how) {
			return a.updateLink(pinned, program, fields)
		}
		if err := a.unpinLink(pin, true); err != nil {
			return err
		}
	}
	flags := link.XDPDriverMode
	if how == HowXDPGeneric {
		flags = link.XDPGenericMode
	}
	fresh, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: device.Index, Flags: flags})
	if err != nil {
		return err
	}
	defer fresh.Close()
	if err := a.pinLink(fresh, pin); err != nil {
		return errors.Join(err, fresh.Detach())
	}
	a.done("attached", attached, fields...)
	return nil
}

// isAttachedXDP tells whether a link is what a device runs, and in that way.
func (a *Attacher) isAttachedXDP(ifindex int, pinned *pinnedLink, how How) bool {
	if pinned.ifindex != ifindex {
		return false
	}
	device, err := a.links.LinkByIndex(ifindex)
	if err != nil || device.Attrs().Xdp == nil {
		return false
	}
	mode := uint32(xdpAttachedDriver)
	if how == HowXDPGeneric {
		mode = xdpAttachedStack
	}
	xdp := device.Attrs().Xdp
	return xdp.AttachMode == mode && xdp.ProgId == uint32(pinned.program)
}

// allowRedirect lets XDP programs send packets out of a device.
func (a *Attacher) allowRedirect(ifindex int) error {
	var now uint32
	err := a.set.XDPDevices.Lookup(uint32(ifindex), &now)
	if err == nil && now == uint32(ifindex) {
		return nil
	}
	if err := a.set.XDPDevices.Put(uint32(ifindex), uint32(ifindex)); err != nil {
		return fmt.Errorf("let XDP redirect to it: %w", err)
	}
	return nil
}

// detachXDP takes XDP of ours off a device, where there is any.
func (a *Attacher) detachXDP(ifindex int) error {
	if err := a.set.XDPDevices.Delete(uint32(ifindex)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("stop XDP from redirecting to it: %w", err)
	}
	return a.unpinLink(a.linkPin(ifindex, xdpProgram), true)
}
