// Package namespaces knows the network namespaces of this host: their cookies, by which programs tell them apart, their
// addresses, and whether their sockets are served at the socket edge or left to the packet edges. It keeps the maps
// namespaces and left_cgroups.
//
// A namespace is found by a process in it or by a mount of it. There is nothing in the kernel that tells when one comes:
// the registry looks again when it is told that devices have come, and else after a while that grows with what
// looking costs.
package namespaces

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-lb/weir/controlplane/compile"
	weirmaps "github.com/weir-lb/weir/maps"
)

const (
	// lookEvery is the longest time between two looks, unless one takes more than a costLimit-th of it.
	lookEvery = 10 * time.Second
	costLimit = 100
	// lookPause is the shortest time between two looks.
	lookPause = 50 * time.Millisecond
)

// afterTouch is when it is looked again after a device has come: its addresses come later.
var afterTouch = []time.Duration{200 * time.Millisecond, time.Second, 3 * time.Second}

// Options are what a Registry works with.
type Options struct {
	Set *weirmaps.Set
	Log *zap.Logger

	// ClusterIP returns the Service whose ClusterIP an address is. Nil: nobody's is.
	ClusterIP func(address netip.Addr) (service types.NamespacedName, is bool)

	// CgroupRoot is where the cgroups of pods are looked for; empty: nowhere.
	CgroupRoot string

	// Changed is called after problems may have changed. It must be quick. May be nil.
	Changed func()
}

// Registry follows the network namespaces of the host.
type Registry struct {
	options Options
	node    uint64 // cookie of the node's own namespace

	looking sync.Mutex // held while the maps are brought up to date
	records *records
	found   map[inode]namespace
	failed  error           // of the last look
	unsure  map[uint64]bool // came while a pod was awaited that is to be left
	cgroups map[string]uint64

	mu       sync.Mutex
	given    *[]compile.Pod // pods are these; nil before the first
	pods     pods
	touched  chan struct{} // holds a token when devices have come
	repod    chan struct{} // holds a token when the pods are others
	problems []compile.Problem
}

// New looks at all network namespaces. The calling thread's is the node's own.
func New(options Options) (*Registry, error) {
	node, err := Cookie()
	if err != nil {
		return nil, err
	}
	records, err := readRecords(options.Set)
	if err != nil {
		return nil, err
	}
	r := &Registry{
		options: options, node: node, records: records, unsure: map[uint64]bool{}, pods: sortPods(nil),
		touched: make(chan struct{}, 1), repod: make(chan struct{}, 1),
	}
	// Without an entry its sockets are left alone: what a predecessor has written of others stays until the pods are known.
	wanted := map[uint64]weirmaps.Namespace{node: {}}
	for cookie, record := range records.namespaces {
		wanted[cookie] = record
	}
	return r, records.setNamespaces(wanted)
}

// SetPods says which pods are on this node.
func (r *Registry) SetPods(all []compile.Pod) {
	r.mu.Lock()
	same := r.given != nil && reflect.DeepEqual(all, *r.given)
	r.given, r.pods = &all, sortPods(all)
	r.mu.Unlock()
	if !same { // Pods change all the time, in what does not matter here
		wake(r.repod)
	}
}

// TouchClusterIPs says that others may be ClusterIPs.
func (r *Registry) TouchClusterIPs() {
	r.looking.Lock()
	defer r.looking.Unlock()
	if r.found == nil {
		return // the first look is to come
	}
	r.mu.Lock()
	pods := r.pods
	r.mu.Unlock()
	local := r.localVIPs()
	r.report(pods, local[r.node], errors.Join(r.failed, r.writeVIPs(local)))
}

// Touch says that namespaces may have come or gone.
func (r *Registry) Touch() { wake(r.touched) }

func wake(tokens chan struct{}) {
	select {
	case tokens <- struct{}{}:
	default:
	}
}

// Problems lists what is wrong.
func (r *Registry) Problems() []compile.Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.problems)
}

// Visit calls f in every network namespace, one after another, on a thread that does nothing else.
func (r *Registry) Visit(f func() error) error {
	return visit(func(inode) error { return f() })
}

// Run keeps the maps up to date until the context ends. It begins when the pods have been said.
func (r *Registry) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-r.repod:
	}
	next, steps := time.Duration(0), []time.Duration(nil)
	for {
		took := r.look()
		pause := max(lookPause, costLimit*took)
		next = max(lookEvery, pause)
		if len(steps) > 0 {
			next, steps = max(steps[0], pause), steps[1:]
		}
		wait := time.NewTimer(next)
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-wait.C:
		case <-r.touched:
			steps = afterTouch
		case <-r.repod:
		}
		wait.Stop()
		if sleep(ctx, min(pause, lookEvery)) != nil {
			return nil
		}
	}
}

func sleep(ctx context.Context, pause time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
		return nil
	}
}

// look looks at all namespaces and brings the maps up to date. It returns how long that took.
func (r *Registry) look() time.Duration {
	r.looking.Lock()
	defer r.looking.Unlock()
	begin := time.Now()
	found := map[inode]namespace{}
	failed := visit(func(id inode) error {
		n, err := readNamespace()
		if err == nil {
			found[id] = n
		}
		return err
	})
	r.found = found
	r.mu.Lock()
	pods := r.pods
	r.mu.Unlock()
	r.cgroups = findCgroups(r.options.CgroupRoot, pods.host)
	local := r.localVIPs()
	r.failed = errors.Join(failed, r.write(pods))
	r.report(pods, local[r.node], errors.Join(r.failed, r.writeVIPs(local)))
	return time.Since(begin)
}

// write brings the maps up to date with what was found.
func (r *Registry) write(pods pods) error {
	cgroups := map[uint64]uint32{}
	for _, id := range r.cgroups {
		cgroups[id] = 1
	}
	if err := r.records.setCgroups(cgroups); err != nil {
		return err
	}
	return r.records.setNamespaces(r.wanted(pods))
}

// localVIP is a ClusterIP that is an address of a namespace.
type localVIP struct {
	address netip.Addr
	device  int
	service string
}

// localVIPs returns the ClusterIPs that are addresses of namespaces, by their cookies, in order.
func (r *Registry) localVIPs() map[uint64][]localVIP {
	local := map[uint64][]localVIP{}
	if r.options.ClusterIP == nil {
		return local
	}
	for _, n := range r.found {
		for address, device := range n.addresses {
			service, is := r.options.ClusterIP(address)
			if is && device != n.ipvs {
				local[n.cookie] = append(local[n.cookie], localVIP{address, device, service.String()})
			}
		}
		slices.SortFunc(local[n.cookie], func(a, b localVIP) int { return a.address.Compare(b.address) })
	}
	return local
}

// writeVIPs brings the map local_vips up to date.
func (r *Registry) writeVIPs(local map[uint64][]localVIP) error {
	wanted := map[weirmaps.LocalVIP]uint32{}
	for cookie, vips := range local {
		for _, vip := range vips {
			wanted[weirmaps.LocalVIP{Cookie: cookie, Address: weirmaps.AddressOf(vip.address)}] = uint32(vip.device)
		}
	}
	return r.records.setVIPs(wanted)
}

// wanted is what the map namespaces shall hold. A namespace that comes while a pod is awaited whose sockets are to be
// left may be its: it is left until the pod has been found, or another one claims it.
func (r *Registry) wanted(pods pods) map[uint64]weirmaps.Namespace {
	awaited := len(pods.unresolved(r.found)) > 0
	wanted := map[uint64]weirmaps.Namespace{}
	unsure := map[uint64]bool{}
	for _, n := range r.found {
		record := weirmaps.Namespace{}
		if n.ipv4.IsValid() {
			record.Ipv4 = weirmaps.AddressOf(n.ipv4)
		}
		if n.ipv6.IsValid() {
			record.Ipv6 = weirmaps.AddressOf(n.ipv6)
		}
		record.Flags = r.flags(n, pods, awaited, unsure)
		wanted[n.cookie] = record
	}
	r.unsure = unsure
	return wanted
}

func (r *Registry) flags(n namespace, pods pods, awaited bool, unsure map[uint64]bool) uint32 {
	if n.cookie == r.node {
		if len(r.cgroups) > 0 {
			return weirmaps.NamespaceCgroups
		}
		return 0
	}
	claimed, left := pods.claim(n)
	_, known := r.records.namespaces[n.cookie]
	if !claimed && awaited && (!known || r.unsure[n.cookie]) {
		unsure[n.cookie] = true
		left = true
	}
	if left {
		return weirmaps.NamespaceLeft
	}
	return 0
}

// report tells what is wrong. Local are the ClusterIPs that are addresses of the node.
func (r *Registry) report(pods pods, local []localVIP, failed error) {
	var problems []compile.Problem
	if failed != nil {
		problems = append(problems, compile.Problem{Object: "Node", Reason: "NamespacesNotKnown", Message: failed.Error()})
	}
	for _, pod := range pods.host {
		if _, found := r.cgroups[pod.UID]; !found {
			problems = append(problems, problemCgroup(pod, r.options.CgroupRoot))
		}
	}
	for _, vip := range local {
		problems = append(problems, problemLocal(vip))
	}
	r.mu.Lock()
	changed := !slices.Equal(problems, r.problems)
	r.problems = problems
	r.mu.Unlock()
	if !changed {
		return
	}
	if failed != nil {
		r.options.Log.Warn("look at the network namespaces", zap.Error(failed))
	}
	if r.options.Changed != nil {
		r.options.Changed()
	}
}

// problemLocal says that a ClusterIP is an address of the node.
func problemLocal(vip localVIP) compile.Problem {
	return compile.Problem{
		Object: "Service " + vip.service, Reason: "ClusterIPLocal",
		Message: fmt.Sprintf("its ClusterIP %s is also an address of the node itself: where a socket listens on exactly that address, as NodeLocal DNSCache does, that socket answers the node's processes and pods, not the Service", vip.address),
	}
}
