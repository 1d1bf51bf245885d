package main

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-lb/weir/maps"
)

// diff compares, with addresses as a whole.
func diff(want, got any) string {
	return cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }))
}

// tupleOf returns the tuple of a packet from one address to another.
func tupleOf(source, destination string) maps.Tuple {
	return maps.TupleOf(netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination))
}

// pairOf returns both halves of a flow, each with a time and a state.
func pairOf(edge uint16, protocol uint8, from, to maps.Tuple, forward, reverse maps.Flow) map[maps.FlowKey]maps.Flow {
	forward.To, forward.Half = to, maps.FlowHalfForward
	reverse.To, reverse.Half = from.Reverse(), maps.FlowHalfReverse
	return map[maps.FlowKey]maps.Flow{
		{Tuple: from, Edge: edge, Protocol: protocol}:         forward,
		{Tuple: to.Reverse(), Edge: edge, Protocol: protocol}: reverse,
	}
}

func TestFlowViews(t *testing.T) {
	now := clock{now: 1000, tick: 4 * time.Millisecond}
	names := map[uint32]string{7: "default/web:http/TCP/IPv4"}
	forwarded := pairOf(0, 6,
		tupleOf("192.0.2.10:40000", "203.0.113.1:80"), tupleOf("198.51.100.1:61000", "10.0.2.5:8080"),
		maps.Flow{LastSeen: 900, Service: 7, Action: maps.FlowForward, State: maps.FlowEstablished},
		maps.Flow{LastSeen: 950, Service: 7, Action: maps.FlowForward, State: maps.FlowClosing})
	want := flowView{
		Protocol: "TCP", Edge: "node", Client: netip.MustParseAddrPort("192.0.2.10:40000"),
		Frontend: netip.MustParseAddrPort("203.0.113.1:80"), Source: netip.MustParseAddrPort("198.51.100.1:61000"),
		Backend: netip.MustParseAddrPort("10.0.2.5:8080"), Service: "default/web:http/TCP/IPv4",
		State: "closing", Action: "forward", Idle: 200 * time.Millisecond, Whole: true,
	}
	forwardKey := maps.FlowKey{Tuple: tupleOf("192.0.2.10:40000", "203.0.113.1:80"), Protocol: 6}
	reverseKey := maps.FlowKey{Tuple: tupleOf("10.0.2.5:8080", "198.51.100.1:61000"), Protocol: 6}

	t.Run("pair", func(t *testing.T) {
		got := flowTable{flows: forwarded}.views(names, now)
		if difference := diff([]flowView{want}, got); difference != "" {
			t.Error(difference)
		}
	})
	for _, lone := range []struct {
		name  string
		key   maps.FlowKey
		idle  time.Duration
		state string
	}{
		{"forward half alone", forwardKey, 400 * time.Millisecond, "established"},
		{"reverse half alone", reverseKey, 200 * time.Millisecond, "closing"},
	} {
		t.Run(lone.name, func(t *testing.T) {
			half := map[maps.FlowKey]maps.Flow{lone.key: forwarded[lone.key]}
			want := want
			want.Idle, want.State, want.Whole = lone.idle, lone.state, false
			if difference := diff([]flowView{want}, flowTable{flows: half}.views(names, now)); difference != "" {
				t.Error(difference)
			}
		})
	}
}

// Backends that were asked and did not get a flow are not listed, whether it is still there or not.
func TestTriesAreNoFlows(t *testing.T) {
	client := tupleOf("192.0.2.10:40000", "203.0.113.1:80")
	flows := pairOf(0, 6, client, tupleOf("192.0.2.10:40000", "10.0.2.5:8080"), maps.Flow{}, maps.Flow{})
	for _, lost := range []maps.Flow{{State: maps.FlowLost}, {Retry: 1}} {
		tried := tupleOf(fmt.Sprintf("10.0.2.%d:8080", 6+lost.Retry), "192.0.2.10:40000")
		lost.To, lost.Half = client.Reverse(), maps.FlowHalfReverse
		flows[maps.FlowKey{Tuple: tried, Protocol: 6}] = lost
	}
	if got := (flowTable{flows: flows}).views(nil, clock{}); len(got) != 1 || got[0].Backend.Addr().String() != "10.0.2.5" {
		t.Errorf("listed: %+v", got)
	}
	delete(flows, maps.FlowKey{Tuple: client, Protocol: 6})
	delete(flows, maps.FlowKey{Tuple: tupleOf("10.0.2.5:8080", "192.0.2.10:40000"), Protocol: 6})
	if got := (flowTable{flows: flows}).views(nil, clock{}); len(got) != 0 {
		t.Errorf("listed without a flow: %+v", got)
	}
}

func TestForeignView(t *testing.T) {
	table := flowTable{flows: map[maps.FlowKey]maps.Flow{
		{Tuple: tupleOf("[2001:db8::9]:443", "[2001:db8::1]:30080"), Protocol: 17}: {
			LastSeen: 1001, Action: maps.FlowForeign, Half: maps.FlowHalfReverse, State: maps.FlowEstablished,
		},
	}}
	want := []flowView{{
		Protocol: "UDP", Edge: "node", Client: netip.MustParseAddrPort("[2001:db8::9]:443"),
		Frontend: netip.MustParseAddrPort("[2001:db8::1]:30080"), Source: netip.MustParseAddrPort("[2001:db8::9]:443"),
		State: "foreign", Action: "foreign", Whole: true,
	}}
	got := table.views(nil, clock{now: 1000, tick: time.Millisecond}) // seen after the clock was read
	if difference := diff(want, got); difference != "" {
		t.Error(difference)
	}
}

// TestTunnelView: the one half is the whole flow, and the backend sees the client.
func TestTunnelView(t *testing.T) {
	table := flowTable{flows: map[maps.FlowKey]maps.Flow{
		{Tuple: tupleOf("192.0.2.10:40000", "203.0.113.1:80"), Protocol: 6}: {
			To: tupleOf("198.51.100.1:0", "10.0.2.5:8080"), Service: 7, LastSeen: 990,
			Action: maps.FlowTunnel | maps.FlowEnded, Half: maps.FlowHalfForward, State: maps.FlowEstablished,
		},
	}}
	want := []flowView{{
		Protocol: "TCP", Edge: "node", Client: netip.MustParseAddrPort("192.0.2.10:40000"),
		Frontend: netip.MustParseAddrPort("203.0.113.1:80"), Source: netip.MustParseAddrPort("192.0.2.10:40000"),
		Backend: netip.MustParseAddrPort("10.0.2.5:8080"), Service: "default/web:/TCP/IPv4",
		State: "established", Action: "tunnel", Idle: 10 * time.Millisecond, Whole: true,
	}}
	got := table.views(map[uint32]string{7: "default/web:/TCP/IPv4"}, clock{now: 1000, tick: time.Millisecond})
	if difference := diff(want, got); difference != "" {
		t.Error(difference)
	}
	if state := got[0].describeState(); state != "established, tunnel" {
		t.Errorf("its state reads %q", state)
	}
}

// TestClockWraps measures an age across the 2^32nd jiffy.
func TestClockWraps(t *testing.T) {
	if got := (clock{now: 10, tick: time.Millisecond}).since(0xfffffff6); got != 20*time.Millisecond {
		t.Errorf("20 ticks ago is %s", got)
	}
}

func TestFlowFilter(t *testing.T) {
	flow := flowView{
		Service: "default/web:http/TCP/IPv4",
		Client:  netip.MustParseAddrPort("192.0.2.10:40000"),
		Backend: netip.MustParseAddrPort("10.0.2.5:8080"),
	}
	foreign := flowView{Client: flow.Client}
	for _, test := range []struct {
		options       flowOptions
		flow, foreign bool
	}{
		{flowOptions{}, true, true},
		{flowOptions{service: "web"}, true, false},
		{flowOptions{service: "default/web"}, true, false},
		{flowOptions{service: "default/web:http"}, true, false},
		{flowOptions{service: "default/we"}, false, false},
		{flowOptions{service: "other/web"}, false, false},
		{flowOptions{client: "192.0.2.10"}, true, true},
		{flowOptions{client: "192.0.2.0/24"}, true, true},
		{flowOptions{client: "192.0.2.10:40000"}, true, true},
		{flowOptions{client: "192.0.2.10:40001"}, false, false},
		{flowOptions{client: "192.0.2.11"}, false, false},
		{flowOptions{backend: "10.0.2.5:8080"}, true, false},
		{flowOptions{backend: "10.0.2.0/24", client: "192.0.2.10"}, true, false},
		{flowOptions{backend: "10.0.3.0/24", client: "192.0.2.10"}, false, false},
	} {
		filter, err := test.options.filter()
		if err != nil {
			t.Fatal(err)
		}
		if got := filter.wants(flow); got != test.flow {
			t.Errorf("%+v wants the flow: %t", test.options, got)
		}
		if got := filter.wants(foreign); got != test.foreign {
			t.Errorf("%+v wants the foreign flow: %t", test.options, got)
		}
	}
}
