// Package loader puts the programs into the kernel: loads them over the shared maps, attaches them to
// devices, pins and replaces them, and takes all of it away again.
package loader

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sync/errgroup"

	"github.com/weir-lb/weir/maps"
)

// Constants are what is fixed when the programs are loaded; bpf/config.h describes them.
type Constants struct {
	SNATPortMin      uint16 // the source ports SNAT hands out, both ends included
	SNATPortMax      uint16
	JiffiesPerSecond uint32 // CONFIG_HZ
	InsideBySource   bool   // at the node edge, sources in map inside_sources count as inside
	MasqueradeMark   uint32 // the bit that what goes to a ClusterIP is marked with; 0: it is not
	PolicyMark       uint32 // the bit that what policies of XFRM may concern is marked with
	Quarantine       uint32 // seconds that a silent backend gets no new flows; 0: it gets them
	XDPFrags         bool   // XDP programs may take packets in several buffers
	CsumIPv6Flag     bool   // the kernel knows BPF_F_IPV6
	SetRetval        bool   // the kernel has bpf_set_retval
	NoAtomics        bool   // the kernel knows no atomic instruction but the addition
	NodeNetNS        uint64 // cookie of the node's network namespace; 0: namespaces are not told apart
	SocketHostOnly   bool   // the socket edge serves the sockets of that namespace alone
}

// variables returns the constants under their names in C.
func (c Constants) variables() map[string]any {
	flag := map[bool]uint8{true: 1}
	return map[string]any{
		"snat_port_min":      c.SNATPortMin,
		"snat_port_max":      c.SNATPortMax,
		"jiffies_per_second": c.JiffiesPerSecond,
		"inside_by_source":   flag[c.InsideBySource],
		"masquerade_mark":    c.MasqueradeMark,
		"policy_mark":        c.PolicyMark,
		"quarantine_seconds": c.Quarantine,
		"xdp_frags":          flag[c.XDPFrags],
		"csum_ipv6_flag":     flag[c.CsumIPv6Flag],
		"have_set_retval":    flag[c.SetRetval],
		"node_netns":         c.NodeNetNS,
		"socket_host_only":   flag[c.SocketHostOnly],
		"crc32c_zeros":       *newCRC32CTable(),
	}
}

// Programs are the loaded programs; each is described at the head of its .bpf.c.
type Programs struct {
	NodeXDP     *ebpf.Program `ebpf:"node_xdp"`
	NodeIngress *ebpf.Program `ebpf:"node_ingress"`
	NodeEgress  *ebpf.Program `ebpf:"node_egress"`
	PodIngress  *ebpf.Program `ebpf:"pod_ingress"`
	PodEgress   *ebpf.Program `ebpf:"pod_egress"`

	SweepFlowsIPv4 *ebpf.Program `ebpf:"sweep_flows_ipv4"`
	SweepFlowsIPv6 *ebpf.Program `ebpf:"sweep_flows_ipv6"`
	SweepEmbryos   *ebpf.Program `ebpf:"sweep_embryos"`

	SocketConnect4     *ebpf.Program `ebpf:"socket_connect4"`
	SocketConnect6     *ebpf.Program `ebpf:"socket_connect6"`
	SocketSendmsg4     *ebpf.Program `ebpf:"socket_sendmsg4"`
	SocketSendmsg6     *ebpf.Program `ebpf:"socket_sendmsg6"`
	SocketRecvmsg4     *ebpf.Program `ebpf:"socket_recvmsg4"`
	SocketRecvmsg6     *ebpf.Program `ebpf:"socket_recvmsg6"`
	SocketGetpeername4 *ebpf.Program `ebpf:"socket_getpeername4"`
	SocketGetpeername6 *ebpf.Program `ebpf:"socket_getpeername6"`
	SocketBind4        *ebpf.Program `ebpf:"socket_bind4"`
	SocketBind6        *ebpf.Program `ebpf:"socket_bind6"`
	SocketRelease      *ebpf.Program `ebpf:"socket_release"`
	set                *maps.Set     // what they were loaded over
	constants          Constants

	// twin loads a program another time: the kernel takes a program only once on a side of a device.
	twin func(name string) (*ebpf.Program, error)
}

// newPrograms returns no programs yet, to be loaded over the maps of the set.
func newPrograms(set *maps.Set, constants Constants) *Programs {
	p := &Programs{set: set, constants: constants}
	p.twin = p.loadAgain
	return p
}

// objects are the compiled objects, each with its programs.
func objects() []func() (*ebpf.CollectionSpec, error) {
	return []func() (*ebpf.CollectionSpec, error){
		loadNodeXdp, loadNodeIngress, loadNodeEgress, loadPodIngress, loadPodEgress, loadSweep,
		loadSocketConnect, loadSocketSendmsg, loadSocketRecvmsg, loadSocketGetpeername, loadSocketBind,
		loadSocketRelease,
	}
}

// loadsAtOnce is how many objects the kernel verifies at the same time: on two CPUs that takes half as long, and 5 MB of the
// kernel's memory more.
const loadsAtOnce = 2

// Load loads the programs over the maps of the set. A program that the verifier refuses is an
// *ebpf.VerifierError in the chain.
func Load(set *maps.Set, constants Constants) (*Programs, error) {
	programs := newPrograms(set, constants)
	var group errgroup.Group
	group.SetLimit(loadsAtOnce)
	for _, read := range objects() {
		group.Go(func() error {
			spec, err := read()
			if err != nil {
				return fmt.Errorf("read a program object: %w", err)
			}
			return programs.load(spec)
		})
	}
	if err := group.Wait(); err != nil {
		return nil, errors.Join(err, programs.Close())
	}
	return programs, nil
}

// load loads one object and takes its programs.
func (p *Programs) load(spec *ebpf.CollectionSpec) error {
	for name, value := range p.constants.variables() {
		variable, ok := spec.Variables[name]
		if !ok {
			continue // no program of this object asks for it
		}
		if err := variable.Set(value); err != nil {
			return fmt.Errorf("set constant %s: %w", name, err)
		}
	}
	if p.constants.NoAtomics {
		swapPlainly(spec)
	}
	if p.constants.XDPFrags {
		TakeXDPFrags(spec)
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: sharedMaps(spec, p.set)})
	if err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	defer collection.Close()
	for name, handle := range p.fields {
		if program := collection.DetachProgram(name); program != nil {
			*handle = program
		}
	}
	return nil
}

// swapPlainly makes plain stores of the compare-and-swaps of an object. Each stands behind a comparison with the same
// value, so that it leaves R0 as if it had succeeded.
func swapPlainly(spec *ebpf.CollectionSpec) {
	for _, program := range spec.Programs {
		for i, ins := range program.Instructions {
			if ins.OpCode.AtomicOp() == asm.CmpXchg {
				program.Instructions[i] = plainStore(ins)
			}
		}
	}
}

// plainStore keeps what belongs to an instruction: its place in the source, and jumps to it.
func plainStore(swap asm.Instruction) asm.Instruction {
	store := asm.StoreMem(swap.Dst, swap.Offset, swap.Src, swap.OpCode.Size())
	store.Metadata = swap.Metadata
	return store
}

// sharedMaps returns the maps of the set that an object uses, and makes it expect their sizes.
func sharedMaps(spec *ebpf.CollectionSpec, set *maps.Set) map[string]*ebpf.Map {
	shared := make(map[string]*ebpf.Map)
	for name, m := range set.Replacements() {
		if definition, ok := spec.Maps[name]; ok {
			definition.MaxEntries = m.MaxEntries()
			shared[name] = m
		}
	}
	return shared
}

// fields yields the name of every program and where its handle is kept.
func (p *Programs) fields(yield func(name string, handle **ebpf.Program) bool) {
	value := reflect.ValueOf(p).Elem()
	for i := range value.NumField() {
		name, ok := value.Type().Field(i).Tag.Lookup("ebpf")
		if !ok {
			continue
		}
		if !yield(name, value.Field(i).Addr().Interface().(**ebpf.Program)) {
			return
		}
	}
}

// loadAgain loads a program another time.
func (p *Programs) loadAgain(name string) (*ebpf.Program, error) {
	for _, read := range objects() {
		spec, err := read()
		if err != nil {
			return nil, fmt.Errorf("read a program object: %w", err)
		}
		if _, has := spec.Programs[name]; !has {
			continue
		}
		again := newPrograms(p.set, p.constants)
		if err := again.load(spec); err != nil {
			return nil, err
		}
		program := again.ByName()[name]
		for other, handle := range again.fields {
			if other == name {
				*handle = nil
			}
		}
		return program, again.Close()
	}
	return nil, fmt.Errorf("no program is called %s", name)
}

// ByName returns the programs by their names in C.
func (p *Programs) ByName() map[string]*ebpf.Program {
	programs := make(map[string]*ebpf.Program)
	for name, handle := range p.fields {
		programs[name] = *handle
	}
	return programs
}

// VerifiedInstructions returns how many instructions the verifier went through, by program.
func (p *Programs) VerifiedInstructions() (map[string]uint32, error) {
	counts := make(map[string]uint32)
	for name, program := range p.ByName() {
		info, err := program.Info()
		if err != nil {
			return nil, fmt.Errorf("read about program %s: %w", name, err)
		}
		if count, ok := info.VerifiedInstructions(); ok {
			counts[name] = count
		}
	}
	return counts, nil
}

// Close closes the handles. Attached and pinned programs live on.
func (p *Programs) Close() error {
	var failed error
	for _, handle := range p.fields {
		if *handle != nil {
			failed = errors.Join(failed, (*handle).Close())
		}
	}
	return failed
}
