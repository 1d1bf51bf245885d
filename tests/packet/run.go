package packet

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/loader"
)

// Program is one of the programs that packets meet.
type Program string

// The programs, by their names in C.
const (
	NodeXDP     Program = "node_xdp"
	NodeIngress Program = "node_ingress"
	NodeEgress  Program = "node_egress"
	PodIngress  Program = "pod_ingress"
	PodEgress   Program = "pod_egress"
)

// XDP tells whether it runs before there is a socket buffer.
func (p Program) XDP() bool { return p == NodeXDP }

// of returns the loaded program.
func (p Program) of(programs *loader.Programs) *ebpf.Program {
	switch p {
	case NodeXDP:
		return programs.NodeXDP
	case NodeIngress:
		return programs.NodeIngress
	case NodeEgress:
		return programs.NodeEgress
	case PodIngress:
		return programs.PodIngress
	default:
		return programs.PodEgress
	}
}

// Verdict is what becomes of a packet.
type Verdict string

// The verdicts.
const (
	Pass     Verdict = "pass"               // on to the next program and the stack: XDP_PASS, TCX_NEXT
	Drop     Verdict = "drop"               // XDP_DROP, TC_ACT_SHOT
	Transmit Verdict = "transmit"           // back out of the device: XDP_TX
	Redirect Verdict = "redirect"           // out of a device: XDP_REDIRECT, TC_ACT_REDIRECT
	unknown  Verdict = "an unknown verdict" // none of ours
)

func (p Program) verdict(code uint32) Verdict {
	codes := map[uint32]Verdict{0xffffffff: Pass, 2: Drop, 7: Redirect}
	if p.XDP() {
		codes = map[uint32]Verdict{2: Pass, 1: Drop, 3: Transmit, 4: Redirect}
	}
	if verdict, ok := codes[code]; ok {
		return verdict
	}
	return unknown
}

// Result is what a program made of a packet.
type Result struct {
	Verdict Verdict
	Packet  []byte
}

// Room for what a program puts before a packet: an ICMP error's headers.
const growth = 64

// Offsets and sizes of struct __sk_buff and struct xdp_md (linux/bpf.h).
const (
	skbSize        = 192
	skbMark        = 8
	skbCameBy      = 36 // ingress_ifindex: of a packet that the node forwards
	skbIfindex     = 40
	skbGSOSize     = 176
	xdpSize        = 24
	xdpDataEnd     = 4
	xdpIfindex     = 12
	checkComplete  = 1 << 2 // BPF_F_TEST_SKB_CHECKSUM_COMPLETE
	largestPacket  = 4096 - 512
	shortestPacket = 14 // the kernel wants an Ethernet header
)

// Runner runs programs on packets. The packets it returns are valid until the next run.
type Runner struct {
	programs *loader.Programs
	skb      [skbSize]byte
	skbOut   [skbSize]byte
	xdp      [xdpSize]byte
	out      [largestPacket + growth]byte
}

// Run runs a program on a packet that is on a device.
func (r *Runner) Run(program Program, device *Device, packet []byte) (Result, error) {
	return r.run(program, device, packet, 0, 0)
}

// RunGSO runs a tc program on a packet that stands for segments with that many bytes of payload.
func (r *Runner) RunGSO(program Program, device *Device, packet []byte, size uint32) (Result, error) {
	return r.run(program, device, packet, size, 0)
}

// RunSummed runs a tc program on a packet of which the device has summed all (CHECKSUM_COMPLETE). It is an
// error if that sum is wrong behind the program.
func (r *Runner) RunSummed(program Program, device *Device, packet []byte) (Result, error) {
	return r.run(program, device, packet, 0, checkComplete)
}

// RunForwarded runs a tc program on a packet that leaves by a device and has come by another one.
func (r *Runner) RunForwarded(program Program, by, device *Device, packet []byte) (Result, error) {
	binary.NativeEndian.PutUint32(r.skb[skbCameBy:], uint32(by.Index))
	defer binary.NativeEndian.PutUint32(r.skb[skbCameBy:], 0)
	return r.run(program, device, packet, 0, 0)
}

func (r *Runner) run(program Program, device *Device, packet []byte, gso, flags uint32) (Result, error) {
	options := ebpf.RunOptions{Data: packet, DataOut: r.out[:], Flags: flags}
	if program.XDP() {
		binary.NativeEndian.PutUint32(r.xdp[xdpDataEnd:], uint32(len(packet)))
		binary.NativeEndian.PutUint32(r.xdp[xdpIfindex:], uint32(device.Index))
		options.Context = r.xdp[:]
	} else {
		binary.NativeEndian.PutUint32(r.skb[skbIfindex:], uint32(device.Index))
		binary.NativeEndian.PutUint32(r.skb[skbGSOSize:], gso)
		options.Context, options.ContextOut = r.skb[:], r.skbOut[:]
	}
	code, err := program.of(r.programs).Run(&options)
	if err != nil {
		return Result{}, fmt.Errorf("%s on %s: %w", program, device.Name, err)
	}
	return Result{program.verdict(code), options.DataOut}, nil
}

// Mark returns the mark that the last packet of a tc program has got.
func (r *Runner) Mark() uint32 { return binary.NativeEndian.Uint32(r.skbOut[skbMark:]) }
