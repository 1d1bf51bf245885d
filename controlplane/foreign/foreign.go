// Package foreign records the connections that somebody else translates, as kube-proxy does, and that were there before
// the programs: as foreign flows (bpf/foreign.h), whose packets pass untouched. What conntrack does not know, no flow
// knows and is in the middle of a connection is nobody's then, and programs may reset it.
package foreign

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/conntrack"
	"github.com/weir-lb/weir/maps"
)

// retry is the pause before another look, where one has failed.
const retry = 10 * time.Second

// Options are what a Recorder works with.
type Options struct {
	Set       *maps.Set
	SNATPorts compile.PortRange
	Jiffies   func() (uint32, error) // the time of the programs
	Ready     []<-chan struct{}      // closed when the maps hold all services, and the devices have their programs
	Log       *zap.Logger
}

// Recorder records foreign flows once.
type Recorder struct {
	options  Options
	recorded atomic.Pointer[Found]
}

// New returns a recorder. Nothing happens until Run.
func New(options Options) *Recorder { return &Recorder{options: options} }

// Found is what there was.
type Found struct {
	Connections int // to frontends
	Answers     int // whose answers come to a port of the node that is ours
}

// Found returns what was recorded; nil: that has not been done yet.
func (r *Recorder) Found() *Found { return r.recorded.Load() }

// Run records what there is as soon as the programs meet packets, and tells them.
func (r *Recorder) Run(ctx context.Context) error {
	for _, ready := range r.options.Ready {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
		}
	}
	for {
		begin := time.Now()
		found, err := r.record()
		if err == nil {
			r.recorded.Store(&found)
			r.options.Log.Info("connections that others translate pass untouched", zap.Int("connections", found.Connections),
				zap.Int("answers", found.Answers), zap.Duration("took", time.Since(begin)))
			<-ctx.Done()
			return nil
		}
		r.options.Log.Error("look for connections that others translate; until then, what is of no flow passes", zap.Error(err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

// record writes a foreign flow for each connection, and then that all are known.
func (r *Recorder) record() (Found, error) {
	w, err := r.newWriter()
	if err != nil {
		return Found{}, err
	}
	var failed error
	err = conntrack.Each(func(c conntrack.Connection) bool {
		failed = w.add(c)
		return failed == nil
	})
	if errors.Is(failed, unix.E2BIG) {
		r.options.Log.Warn("no room for more foreign flows: connections that others translate may be reset", zap.Int("recorded", w.found.Connections))
		failed = nil
	}
	if err := errors.Join(err, failed); err != nil {
		return w.found, err
	}
	if err := r.options.Set.ChangeLive(func(settings *maps.LiveSettings) { settings.ConnectionsKnown = 1 }); err != nil {
		return w.found, fmt.Errorf("tell the programs that connections are known: %w", err)
	}
	return w.found, nil
}

// newWriter reads what connections are compared with.
func (r *Recorder) newWriter() (*writer, error) {
	now, err := r.options.Jiffies()
	if err != nil {
		return nil, err
	}
	w := &writer{
		set: r.options.Set, flows: r.options.Set.FlowTable(), now: now, snatPorts: r.options.SNATPorts,
		services: map[endpoint]uint32{}, nodeAddrs: map[netip.Addr]struct{}{},
	}
	return w, w.read()
}

// endpoint is an address and port of a protocol. It has no pointer in it: there are as many as backends.
type endpoint struct {
	address  maps.Address
	port     uint16
	protocol uint8
}

func endpointOf(at netip.AddrPort, protocol uint8) endpoint {
	return endpoint{maps.AddressOf(at.Addr()), at.Port(), protocol}
}

// backend is how flows name one.
type backend struct{ index, generation uint32 }

// writer writes foreign flows.
type writer struct {
	set       *maps.Set
	flows     maps.FlowTable
	now       uint32
	snatPorts compile.PortRange
	services  map[endpoint]uint32  // ids by frontend; a NodePort's address is the unspecified one
	backends  map[endpoint]backend // nil: they have not been asked for
	nodeAddrs map[netip.Addr]struct{}
	found     Found
}

// read reads frontends, and the node's addresses.
func (w *writer) read() error {
	ids := map[uint32]uint32{}
	return errors.Join(
		maps.Each(w.set.Services, func(index uint32, record maps.Service) bool {
			if record.Generation != 0 {
				ids[index] = record.Id
			}
			return true
		}),
		maps.Each(w.set.Frontends, func(key maps.FrontendKey, value maps.Frontend) bool {
			w.services[endpointOf(key.AddrPort(), key.Protocol)] = ids[value.Index()]
			return true
		}),
		maps.EachKey(w.set.NodeAddrs, func(address maps.Address) { w.nodeAddrs[address.Addr()] = struct{}{} }),
	)
}

// add records a connection if programs could take it for one of theirs.
func (w *writer) add(c conntrack.Connection) error {
	over := c.Original.Protocol == unix.IPPROTO_TCP && (c.State < conntrack.TCPSynReceived || c.State > conntrack.TCPLastAck)
	if c.Status&conntrack.SeenReply == 0 || over {
		return nil
	}
	if err := w.addAnswers(c.Reply); err != nil {
		return err
	}
	service, known := w.serviceOf(c.Original.Destination, c.Original.Protocol)
	_, ofNode := w.nodeAddrs[c.Original.Source.Addr()]
	if c.Status&conntrack.DstNAT == 0 || !known || ofNode { // what the node itself sends meets no program before it is translated
		return nil
	}
	of, err := w.backendAt(endpointOf(c.Reply.Source, c.Original.Protocol))
	if err != nil {
		return err
	}
	key := keyOf(c.Original, maps.EdgeIDForeign)
	added, err := w.put(key, maps.Flow{
		Half: maps.FlowHalfForward, Service: service, Backend: of.index, Generation: of.generation,
	})
	if added {
		w.found.Connections++
	}
	return err
}

// backendAt returns the backend at an address; the zero one if there is none. Most nodes have no connection that needs
// them, so they are read when one is first asked for.
func (w *writer) backendAt(where endpoint) (backend, error) {
	if w.backends != nil {
		return w.backends[where], nil
	}
	w.backends = map[endpoint]backend{}
	err := maps.Each(w.set.Backends, func(index uint32, record maps.Backend) bool {
		if record.Generation != 0 {
			w.backends[endpoint{record.Address, record.Port, record.Protocol}] = backend{index, record.Generation}
		}
		return true
	})
	return w.backends[where], err
}

// addAnswers records answers that come to the node itself, at a port by which it could be ours, as node_egress does for
// connections that it sees begin.
func (w *writer) addAnswers(reply conntrack.Tuple) error {
	to := reply.Destination
	if _, ofNode := w.nodeAddrs[to.Addr()]; !ofNode {
		return nil
	}
	if _, nodePort := w.nodePort(to, reply.Protocol); !nodePort && !w.snatPorts.Contains(to.Port()) {
		return nil
	}
	added, err := w.put(keyOf(reply, 0), maps.Flow{Half: maps.FlowHalfReverse})
	if added {
		w.found.Answers++
	}
	return err
}

// put writes a flow where there is none.
func (w *writer) put(key maps.FlowKey, flow maps.Flow) (added bool, err error) {
	flow.Seal, flow.LastSeen, flow.Action, flow.State = key.Seal(), w.now, maps.FlowForeign, maps.FlowEstablished
	err = w.flows.Add(key, flow)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return false, nil
	}
	return err == nil, err
}

// serviceOf returns the id of the service that a destination is a frontend of.
func (w *writer) serviceOf(to netip.AddrPort, protocol uint8) (id uint32, known bool) {
	if id, known = w.services[endpointOf(to, protocol)]; known {
		return id, true
	}
	if _, ofNode := w.nodeAddrs[to.Addr()]; !ofNode {
		return 0, false
	}
	return w.nodePort(to, protocol)
}

func (w *writer) nodePort(to netip.AddrPort, protocol uint8) (id uint32, known bool) {
	anywhere := netip.IPv4Unspecified()
	if to.Addr().Is6() {
		anywhere = netip.IPv6Unspecified()
	}
	id, known = w.services[endpointOf(netip.AddrPortFrom(anywhere, to.Port()), protocol)]
	return id, known
}

func keyOf(t conntrack.Tuple, edge uint16) maps.FlowKey {
	return maps.FlowKey{Tuple: maps.TupleOf(t.Source, t.Destination), Edge: edge, Protocol: t.Protocol}
}
