package lab

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// makeNICs makes the veths around node1 behave as NICs do to an XDP program on it. Client and node2 put complete
// checksums into their packets. And the other ends of node1's veths get an XDP program that lets everything pass:
// without one, a veth takes what comes by XDP_TX or redirect into its ring and never looks at it.
func (l *Lab) makeNICs() error {
	if !l.Options.RealNICs {
		return nil
	}
	for _, host := range []*Host{l.Client, l.Node2} {
		if _, err := host.Run("", "ethtool", "-K", "eth0", "tx", "off"); err != nil {
			return err
		}
	}
	if l.lan != nil {
		return l.passXDP(l.lan, l.Node1.Role)
	}
	return errors.Join(l.passXDP(l.Client, "eth0"), l.passXDP(l.Node2, "eth0"))
}

// passXDP attaches an XDP program that lets everything pass.
func (l *Lab) passXDP(host *Host, device string) error {
	const pass = 2 // XDP_PASS
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.XDP,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
		License:      "GPL",
	})
	if err != nil {
		return fmt.Errorf("load a program that passes everything: %w", err)
	}
	defer program.Close()
	index, err := host.Link(device)
	if err != nil {
		return err
	}
	return host.Do(func() error {
		attached, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: index.Attrs().Index, Flags: link.XDPDriverMode})
		if err != nil {
			return fmt.Errorf("attach XDP to %s in %s: %w", device, host.Name, err)
		}
		l.onClose(attached.Close)
		return nil
	})
}
