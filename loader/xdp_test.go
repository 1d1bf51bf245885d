package loader

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	weirmaps "github.com/weir-lb/weir/maps"
)

// mayRedirect tells whether XDP programs may send out of a device.
func mayRedirect(t *testing.T, i *instance, device Device) bool {
	t.Helper()
	var value uint32
	err := i.set.XDPDevices.Lookup(uint32(device.Index), &value)
	return err == nil && value == uint32(device.Index)
}

// xdpOf returns how an attachment has XDP; "" if not.
func xdpOf(attachment Attachment) How {
	for _, hook := range attachment.Hooks {
		if hook.Program == xdpProgram {
			return hook.How
		}
	}
	return ""
}

// attachMode returns how the kernel says that a device has XDP (IFLA_XDP_ATTACHED).
func attachMode(t *testing.T, name string) uint32 {
	t.Helper()
	xdp := linkNamed(t, name).Attrs().Xdp
	if xdp == nil {
		return 0
	}
	return xdp.AttachMode
}

// TestXDPModes attaches as each mode says, over what the one before has left.
func TestXDPModes(t *testing.T) {
	enterNamespace(t)
	pins := filepath.Join(mountBPFFS(t), "weir")
	eth, pod := nodeDevice(t, "eth0"), addVeth(t, "pod0")
	for _, step := range []struct {
		mode   XDPMode
		how    How
		kernel uint32
		reason string
	}{
		{XDPNative, HowXDPNative, xdpAttachedDriver, ""},
		{XDPGeneric, HowXDPGeneric, xdpAttachedStack, "generic XDP, as asked for"},
		{XDPNative, HowXDPNative, xdpAttachedDriver, ""},
		{XDPAuto, "", 0, "partial checksums"},
		{XDPNative, HowXDPNative, xdpAttachedDriver, ""},
		{XDPOff, "", 0, ""},
	} {
		i := openInstance(t, pins, testConstants, AttachOptions{XDP: step.mode})
		attachment := i.mustAttach(t, eth)
		if how := xdpOf(attachment); how != step.how || attachMode(t, "eth0") != step.kernel {
			t.Errorf("%s: attached %q, by the kernel's word %d; want %q and %d", step.mode, how, attachMode(t, "eth0"), step.how, step.kernel)
		}
		if got := mayRedirect(t, i, eth); got != (step.how != "") {
			t.Errorf("%s: XDP may redirect to the device: %t", step.mode, got)
		}
		if got := strings.Join(attachment.Reasons, "; "); !strings.Contains(got, step.reason) || (got == "") != (step.reason == "") {
			t.Errorf("%s: reasons %q, want %q", step.mode, got, step.reason)
		}
		if attachment := i.mustAttach(t, pod); xdpOf(attachment) != "" || len(attachment.Reasons) > 0 {
			t.Errorf("%s: a pod's device is attached as %+v", step.mode, attachment)
		}
		i.close()
	}
}

// TestXDPLeftToTC says why a device has no XDP, and serves it at tc. It is asked again when the device is another.
func TestXDPLeftToTC(t *testing.T) {
	enterNamespace(t)
	i := openInstance(t, filepath.Join(mountBPFFS(t), "weir"), testConstants, AttachOptions{XDP: XDPNative})
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	bridge := Device{Index: linkNamed(t, "br0").Attrs().Index, Name: "br0", Kind: "bridge", Edge: weirmaps.EdgeNode, Up: true, Ethernet: true}
	eth := nodeDevice(t, "eth0")
	plain, under := eth, eth
	plain.Ethernet, under.Parent = false, true
	for _, step := range []struct {
		device Device
		reason string
	}{
		{bridge, "the driver of br0 has none"},
		{bridge, "the driver of br0 has none"},
		{eth, ""},
		{under, "VLAN"},
		{eth, ""},
		{plain, "no Ethernet header"},
	} {
		attachment := i.mustAttach(t, step.device)
		if got := strings.Join(attachment.Reasons, "; "); !strings.Contains(got, step.reason) || (got == "") != (step.reason == "") {
			t.Errorf("%+v: reasons %q, want %q", step.device, got, step.reason)
		}
		if wanted := step.reason == ""; wanted != (xdpOf(attachment) != "") || wanted != mayRedirect(t, i, step.device) {
			t.Errorf("%+v: attachment %+v", step.device, attachment)
		}
		if len(attachment.Hooks) < 2 {
			t.Errorf("%+v: not served at tc: %+v", step.device, attachment)
		}
	}
}

// TestXDPForeign leaves the XDP program of somebody else alone, names it, and takes the place when it is free.
func TestXDPForeign(t *testing.T) {
	enterNamespace(t)
	i := openInstance(t, filepath.Join(mountBPFFS(t), "weir"), testConstants, AttachOptions{XDP: XDPNative})
	eth := nodeDevice(t, "eth0")
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebodys", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	foreign, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: eth.Index, Flags: link.XDPDriverMode})
	if err != nil {
		t.Fatal(err)
	}
	attachment := i.mustAttach(t, eth)
	if len(attachment.Reasons) != 1 || !strings.Contains(attachment.Reasons[0], "another XDP program is attached: somebodys") {
		t.Errorf("reasons %q", attachment.Reasons)
	}
	if id, _ := infoOf(t, program).ID(); see(t, "eth0").XDP != uint32(id) {
		t.Error("the program of somebody else is gone")
	}
	foreign.Close()
	eventually(t, func() error {
		attachment, err := i.Attach(eth)
		if err == nil && xdpOf(attachment) == "" {
			err = errNotYet
		}
		return err
	})
}

func infoOf(t *testing.T, program *ebpf.Program) *ebpf.ProgramInfo {
	t.Helper()
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// TestReadDriver asks real drivers.
func TestReadDriver(t *testing.T) {
	enterNamespace(t)
	addVeth(t, "eth0")
	if got, err := readDriver("eth0"); err != nil || got.name != "veth" || got.queues < 1 || got.maxQueues < got.queues {
		t.Errorf("driver %+v, error %v", got, err)
	}
	if got, err := readDriver("nothing"); err == nil {
		t.Errorf("a device that is not there has the driver %+v", got)
	}
}
