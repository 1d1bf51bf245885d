package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// flowView is a flow as people read it. Its JSON is documented in docs/cli.md.
type flowView struct {
	Protocol string         `json:"protocol"`
	Edge     string         `json:"edge"` // "node", "pod N" for the Nth pod edge, or "any" where a foreign flow's is not known
	Client   netip.AddrPort `json:"client"`
	Frontend netip.AddrPort `json:"frontend"`
	Source   netip.AddrPort `json:"source"`  // what the backend sees as the client
	Backend  netip.AddrPort `json:"backend"` // of a foreign flow: none
	Service  string         `json:"service"` // its name; "" of a foreign flow
	State    string         `json:"state"`
	Action   string         `json:"action"`
	Idle     time.Duration  `json:"idleNanoseconds"` // since either side was last heard
	Embryo   bool           `json:"embryo"`          // may be evicted by younger ones
	Whole    bool           `json:"whole"`           // all halves are there: both, or the one of a flow whose backend answers past this node
}

// flowTable is one of the tables of flows, as it was read.
type flowTable struct {
	flows  map[maps.FlowKey]maps.Flow
	embryo bool
}

// views returns the flows of a table: one for each forward half, each foreign flow, and each reverse half that has
// lost its forward one. Of a flow that several backends have been asked for, the one that its forward half leads to.
func (t flowTable) views(names map[uint32]string, clock clock) []flowView {
	views := make([]flowView, 0, len(t.flows)/2+1)
	for key, flow := range t.flows {
		if flow.Action&^maps.FlowEnded == maps.FlowForeign {
			views = append(views, t.viewForeign(key, flow, clock))
			continue
		}
		if flow.Action&^maps.FlowEnded == maps.FlowTunnel {
			views = append(views, t.viewTunnel(key, flow, names, clock))
			continue
		}
		other := otherKey(key, flow)
		peer, whole := t.flows[other]
		if flow.Half == maps.FlowHalfReverse {
			if whole || flow.Retry != 0 || flow.State == maps.FlowLost {
				continue
			}
			key, flow = other, reversed(key, flow)
		}
		view := t.view(key, flow, names, clock)
		if whole {
			view.Whole = true
			view.Idle = min(view.Idle, clock.since(peer.LastSeen))
			view.State = viewState(flow.State, peer.State)
		}
		views = append(views, view)
	}
	return views
}

// view returns a flow by its forward half.
func (t flowTable) view(key maps.FlowKey, flow maps.Flow, names map[uint32]string, clock clock) flowView {
	name, known := names[flow.Service]
	if !known {
		name = fmt.Sprintf("service %d", flow.Service)
	}
	return flowView{
		Protocol: compile.Protocol(key.Protocol).String(),
		Edge:     viewEdge(key.Edge),
		Client:   key.Tuple.SourceAddrPort(),
		Frontend: key.Tuple.DestinationAddrPort(),
		Source:   flow.To.SourceAddrPort(),
		Backend:  flow.To.DestinationAddrPort(),
		Service:  name,
		State:    viewState(flow.State, maps.FlowUnanswered),
		Action:   viewAction(flow.Action),
		Idle:     clock.since(flow.LastSeen),
		Embryo:   t.embryo,
	}
}

// viewTunnel returns a flow whose packets go to the backend's node as the client has sent them. It has one half.
func (t flowTable) viewTunnel(key maps.FlowKey, flow maps.Flow, names map[uint32]string, clock clock) flowView {
	view := t.view(key, flow, names, clock)
	view.Source, view.Whole = view.Client, true
	return view
}

// viewForeign returns a flow that is not ours: its one entry is keyed by what comes in.
func (t flowTable) viewForeign(key maps.FlowKey, flow maps.Flow, clock clock) flowView {
	client := key.Tuple.SourceAddrPort()
	return flowView{
		Protocol: compile.Protocol(key.Protocol).String(),
		Edge:     viewEdge(key.Edge),
		Client:   client,
		Frontend: key.Tuple.DestinationAddrPort(),
		Source:   client,
		State:    "foreign",
		Action:   viewAction(flow.Action),
		Idle:     clock.since(flow.LastSeen),
		Embryo:   t.embryo,
		Whole:    true,
	}
}

// otherKey returns the key of the other half.
func otherKey(key maps.FlowKey, flow maps.Flow) maps.FlowKey {
	return maps.FlowKey{Tuple: flow.To.Reverse(), Edge: key.Edge, Protocol: key.Protocol}
}

// reversed returns what the other half would be.
func reversed(key maps.FlowKey, flow maps.Flow) maps.Flow {
	flow.To = key.Tuple.Reverse()
	return flow
}

// viewEdge names an edge by its id.
func viewEdge(id uint16) string {
	switch id {
	case 0:
		return "node"
	case maps.EdgeIDForeign:
		return "any"
	}
	return fmt.Sprintf("pod %d", id)
}

// viewState names the state of a flow by those of its halves: it closes as soon as one side does, and is closed
// when both have, or one was reset.
func viewState(forward, reverse maps.FlowState) string {
	switch {
	case forward == maps.FlowClosed || reverse == maps.FlowClosed:
		return "closed"
	case forward == maps.FlowClosing && reverse == maps.FlowClosing:
		return "closed"
	case forward == maps.FlowClosing || reverse == maps.FlowClosing:
		return "closing"
	case forward == maps.FlowEstablished || reverse == maps.FlowEstablished:
		return "established"
	case forward == maps.FlowAnswered || reverse == maps.FlowAnswered:
		return "answered"
	default:
		return "unanswered"
	}
}

// viewAction names what is done with a flow's packets.
func viewAction(action maps.FlowAction) string {
	switch action &^ maps.FlowEnded {
	case maps.FlowStack:
		return "stack"
	case maps.FlowForward:
		return "forward"
	case maps.FlowReturn:
		return "return"
	case maps.FlowForeign:
		return "foreign"
	case maps.FlowHost:
		return "host"
	case maps.FlowTunnel:
		return "tunnel"
	default:
		return fmt.Sprintf("action %d", action)
	}
}

// flowFilter says which flows are wanted. What is empty does not matter.
type flowFilter struct {
	service         string
	client, backend addressFilter
}

// wants tells whether a flow passes.
func (f flowFilter) wants(view flowView) bool {
	return (f.service == "" || named(view.Service, f.service)) &&
		f.client.wants(view.Client) && f.backend.wants(view.Backend)
}

// addressFilter is a prefix of addresses, and a port unless that is 0. The zero one lets everything pass.
type addressFilter struct {
	prefix netip.Prefix
	port   uint16
}

// parseAddressFilter reads "address", "address:port" or "prefix/length".
func parseAddressFilter(text string) (addressFilter, error) {
	if text == "" {
		return addressFilter{}, nil
	}
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return addressFilter{prefix: prefix.Masked()}, nil
	}
	if address, err := netip.ParseAddr(text); err == nil {
		return addressFilter{prefix: netip.PrefixFrom(address, address.BitLen())}, nil
	}
	both, err := netip.ParseAddrPort(text)
	if err != nil {
		return addressFilter{}, fmt.Errorf("%q is not an address, address:port or prefix", text)
	}
	return addressFilter{prefix: netip.PrefixFrom(both.Addr(), both.Addr().BitLen()), port: both.Port()}, nil
}

func (f addressFilter) wants(address netip.AddrPort) bool {
	if !f.prefix.IsValid() {
		return true
	}
	return address.IsValid() && f.prefix.Contains(address.Addr()) && (f.port == 0 || f.port == address.Port())
}

// sortFlows orders flows: those heard last first.
func sortFlows(views []flowView) {
	slices.SortFunc(views, func(a, b flowView) int {
		return cmp.Or(
			cmp.Compare(a.Idle, b.Idle),
			a.Client.Compare(b.Client),
			a.Frontend.Compare(b.Frontend),
			cmp.Compare(a.Protocol, b.Protocol),
		)
	})
}
