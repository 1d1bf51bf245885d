package lab

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// makeNICs makes the veths around the nodes behave as NICs do to an XDP program on them. Whoever is at their other ends
// puts complete checksums into packets, and has an XDP program there that lets everything pass: without one, a veth
// takes what comes by XDP_TX or redirect into its ring and never looks at it.
func (l *Lab) makeNICs() error {
	if !l.Options.RealNICs {
		return nil
	}
	if l.lan != nil {
		return l.makeNICsOfSwitch()
	}
	ends := []wireEnd{{l.Client, "eth0"}, {l.Node2, "eth0"}}
	if l.Options.TwoAgents {
		ends = append(ends, wireEnd{l.Client, "eth1"})
	}
	for _, end := range ends {
		if err := errors.Join(end.completeChecksums(), l.passXDP(end.host, end.device)); err != nil {
			return err
		}
	}
	if l.Options.TwoAgents {
		return wireEnd{l.Node1, "eth1"}.completeChecksums()
	}
	return nil
}

// makeNICsOfSwitch is makeNICs where one switch connects everybody.
func (l *Lab) makeNICsOfSwitch() error {
	var err error
	for _, node := range l.Nodes() {
		err = errors.Join(err, l.passXDP(l.lan, node.Role))
	}
	for _, host := range []*Host{l.Client, l.Node2} {
		err = errors.Join(err, wireEnd{host, "eth0"}.completeChecksums())
	}
	if l.Options.TwoAgents {
		err = errors.Join(err, wireEnd{l.Node1, "eth0"}.completeChecksums())
	}
	return err
}

// wireEnd is a device at the end of a wire.
type wireEnd struct {
	host   *Host
	device string
}

// completeChecksums makes packets leave the device as they would be on a wire.
func (e wireEnd) completeChecksums() error {
	_, err := e.host.Run("", "ethtool", "-K", e.device, "tx", "off")
	return err
}

// passXDP attaches an XDP program that lets everything pass.
func (l *Lab) passXDP(host *Host, device string) error {
	const pass = 2 // XDP_PASS
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.XDP,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
		License:      "GPL",
		Flags:        unix.BPF_F_XDP_HAS_FRAGS,
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
