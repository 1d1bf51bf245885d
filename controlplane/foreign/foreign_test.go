package foreign

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/apply"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/conntrack"
	"github.com/weir-lb/weir/maps"
)

const (
	vip, nodePort, pod, other = "10.96.0.1:80", "192.0.2.1:30080", "10.1.1.1:8080", "10.1.1.9:8080"
	translated                = conntrack.SeenReply | conntrack.DstNAT
)

// bench is a recorder, with maps that have a service.
func bench(t *testing.T) (*Recorder, *maps.Set) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes maps")
	}
	set, err := maps.New(maps.Sizes{
		Services: 8, Frontends: 8, Backends: 8, SlotBlocks: 64, FlowsIPv4: 8, FlowsIPv6: 8, Embryos: 64, Devices: 4,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	applier, err := apply.New(set, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	err = applier.Sync([]compile.Service{{
		ID: compile.ID{Namespace: "default", Name: "web", Protocol: compile.TCP, Family: compile.IPv4},
		Frontends: []compile.Frontend{
			{Kind: compile.ClusterIP, Address: netip.MustParseAddrPort(vip)},
			{Kind: compile.NodePort, Address: netip.MustParseAddrPort("0.0.0.0:30080")},
		},
		Inside: []compile.Backend{{Address: netip.MustParseAddrPort(pod)}},
	}})
	node := maps.AddressOf(netip.MustParseAddr("192.0.2.1"))
	if err := errors.Join(err, set.NodeAddrs.Put(&node, uint32(1))); err != nil {
		t.Fatal(err)
	}
	return New(Options{
		Set: set, SNATPorts: compile.PortRange{First: 61000, Last: 65535}, Log: zap.NewNop(),
		Jiffies: func() (uint32, error) { return 4711, nil },
	}), set
}

// connection returns one of TCP.
func connection(client, to, server, answersTo string, status uint32, state uint8) conntrack.Connection {
	tuple := func(from, to string) conntrack.Tuple {
		return conntrack.Tuple{Source: netip.MustParseAddrPort(from), Destination: netip.MustParseAddrPort(to), Protocol: unix.IPPROTO_TCP}
	}
	return conntrack.Connection{Original: tuple(client, to), Reply: tuple(server, answersTo), Status: status, State: state}
}

func TestWhatIsRecorded(t *testing.T) {
	const client, established = "192.0.2.10:40000", 3
	toVIP := keyOf(connection(client, vip, pod, client, 0, 0).Original, maps.EdgeIDForeign)
	answers := func(from, to string) maps.FlowKey { return keyOf(connection(from, to, from, to, 0, 0).Original, 0) }
	for _, test := range []struct {
		what       string
		connection conntrack.Connection
		want       []maps.FlowKey
	}{
		{"to a ClusterIP", connection(client, vip, pod, client, translated, established), []maps.FlowKey{toVIP}},
		{"to an endpoint of before", connection(client, vip, other, client, translated, established), []maps.FlowKey{toVIP}},
		{"half closed", connection(client, vip, pod, client, translated, 5), []maps.FlowKey{toVIP}},
		{"to a NodePort", connection(client, nodePort, pod, client, translated, established), []maps.FlowKey{
			keyOf(connection(client, nodePort, pod, client, 0, 0).Original, maps.EdgeIDForeign),
		}},
		{"masqueraded, in our range of ports", connection(client, vip, pod, "192.0.2.1:61234", translated, established), []maps.FlowKey{
			answers(pod, "192.0.2.1:61234"), toVIP,
		}},
		{"masqueraded, on another port", connection(client, vip, pod, "192.0.2.1:40000", translated, established), []maps.FlowKey{toVIP}},
		{"the node's own, from a NodePort", connection(nodePort, "192.0.2.10:443", "192.0.2.10:443", nodePort, conntrack.SeenReply, established), []maps.FlowKey{
			answers("192.0.2.10:443", nodePort),
		}},
		{"to no frontend", connection(client, "10.96.0.2:80", pod, client, translated, established), nil},
		{"to another port", connection(client, "10.96.0.1:81", pod, client, translated, established), nil},
		{"to a NodePort's number elsewhere", connection(client, "192.0.2.7:30080", pod, client, translated, established), nil},
		{"not translated", connection(client, vip, vip, client, conntrack.SeenReply, established), nil},
		{"not answered", connection(client, vip, pod, client, conntrack.DstNAT, established), nil},
		{"being opened", connection(client, vip, pod, client, translated, 1), nil},
		{"over", connection(client, vip, pod, client, translated, 7), nil},
		{"the node's own to a ClusterIP", connection("192.0.2.1:40000", vip, pod, "192.0.2.1:40000", translated, established), nil},
	} {
		t.Run(test.what, func(t *testing.T) {
			r, set := bench(t)
			w, err := r.newWriter()
			if err == nil {
				err = errors.Join(w.add(test.connection), w.add(test.connection))
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []maps.FlowKey
			err = set.FlowTable().Each(func(key maps.FlowKey, flow maps.Flow) bool {
				got = append(got, key)
				if flow.Seal != key.Seal() || flow.LastSeen != 4711 || flow.Action != maps.FlowForeign || flow.State != maps.FlowEstablished {
					t.Errorf("%+v is %+v", key, flow)
				}
				return true
			})
			slices.SortFunc(got, func(a, b maps.FlowKey) int { return int(a.Edge) - int(b.Edge) })
			if err != nil || !slices.Equal(got, test.want) || w.found.Connections+w.found.Answers != len(test.want) {
				t.Errorf("recorded %+v (%+v, %v), want %+v", got, w.found, err, test.want)
			}
		})
	}
}

// A foreign flow to a backend of ours ends with it, as our own (D01).
func TestForeignFlowsNameTheirBackend(t *testing.T) {
	r, set := bench(t)
	w, err := r.newWriter()
	if err != nil {
		t.Fatal(err)
	}
	c := connection("192.0.2.10:40000", vip, pod, "192.0.2.10:40000", translated, 3)
	if err := w.add(c); err != nil {
		t.Fatal(err)
	}
	flow, err := set.FlowTable().Lookup(keyOf(c.Original, maps.EdgeIDForeign))
	if err != nil {
		t.Fatal(err)
	}
	var backend maps.Backend
	if err := set.Backends.Lookup(flow.Backend, &backend); err != nil || flow.Generation != backend.Generation || flow.Backend == 0 || flow.Service == 0 {
		t.Errorf("%+v names the backend %+v (%v)", flow, backend, err)
	}
}

// Where nothing is tracked there is nothing to record, and programs may reset what is nobody's.
func TestNothingTracked(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and with it the namespace
	r, set := bench(t)
	here, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	found, err := r.record()
	var settings maps.LiveSettings
	err = errors.Join(err, set.LiveConfig.Lookup(uint32(0), &settings))
	if err != nil || found != (Found{}) || settings.ConnectionsKnown != 1 {
		t.Errorf("found %+v, settings %+v (%v)", found, settings, err)
	}
}

// A table that is full takes what it can.
func TestNoRoom(t *testing.T) {
	r, _ := bench(t)
	w, err := r.newWriter()
	if err != nil {
		t.Fatal(err)
	}
	for port := uint16(1000); ; port++ {
		c := connection(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.10"), port).String(), vip, pod, "192.0.2.10:1", translated, 3)
		err := w.add(c)
		if errors.Is(err, unix.E2BIG) {
			break
		}
		if err != nil || port > 1100 {
			t.Fatalf("connection %d: %v", port, err)
		}
	}
	if w.found.Connections != 8 {
		t.Errorf("%d are recorded where there is room for 8", w.found.Connections)
	}
	if _, err := w.flows.Lookup(maps.FlowKey{}); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Error(err)
	}
}
