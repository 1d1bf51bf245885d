package devices

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/loader"
	weirmaps "github.com/weir-lb/weir/maps"
)

// edgeOn waits until a device has been asked to be attached at an edge.
func edgeOn(t *testing.T, attacher *fakeAttacher, link netlink.Link, edge weirmaps.EdgeKind) {
	t.Helper()
	eventually(t, func() error {
		if got := attacher.on(link.Attrs().Index); got.Edge != edge {
			return fmt.Errorf("%s is to be attached as %+v, want edge %d", link.Attrs().Name, got, edge)
		}
		return nil
	})
}

// TestFollowsDevices makes the devices of a node one by one, and takes some away.
func TestFollowsDevices(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	uplink := w.veth("eth0", w.newPod())
	w.addAddress("eth0", "192.0.2.1/24", "2001:db8::1/64")
	m := w.run(Options{Set: set, Attacher: attacher})
	edgeOn(t, attacher, uplink, weirmaps.EdgeNode)

	bridge := w.add(&netlink.Bridge{LinkAttrs: named("cni0")})
	w.addAddress("cni0", "10.1.1.1/24")
	pod := w.veth("veth1", w.newPod())
	if err := netlink.LinkSetMaster(pod, bridge); err != nil {
		t.Fatal(err)
	}
	edgeOn(t, attacher, pod, weirmaps.EdgePod)
	hasDevice(t, set, pod, func(d weirmaps.Device) bool {
		return d.Edge == weirmaps.EdgePod && d.EdgeId != 0 && d.Master == uint32(bridge.Attrs().Index) &&
			d.Ipv4.Addr().String() == "10.1.1.1" && d.Ipv6.Addr().String() == "2001:db8::1" &&
			net.HardwareAddr(d.Mac[:]).String() == pod.Attrs().HardwareAddr.String()
	})
	hasDevice(t, set, bridge, func(d weirmaps.Device) bool {
		return d.Edge == weirmaps.EdgeNone && d.Flags == weirmaps.DeviceToPods && d.Ipv4.Addr().String() == "10.1.1.1"
	})
	eventually(t, func() error {
		if got := nodeAddresses(t, set); !slices.Equal(got, []string{"10.1.1.1", "192.0.2.1", "2001:db8::1"}) {
			return fmt.Errorf("addresses of the node: %v", got)
		}
		return nil
	})

	w.remove("veth1")
	eventually(t, func() error {
		if _, err := readDevice(set, pod); err == nil || attacher.Known(pod.Attrs().Index) {
			return errors.New("the pod's device is still there")
		}
		return nil
	})
	w.removeAddress("cni0", "10.1.1.1/24")
	eventually(t, func() error {
		if got := nodeAddresses(t, set); slices.Contains(got, "10.1.1.1") {
			return fmt.Errorf("addresses of the node: %v", got)
		}
		return nil
	})
	if problems := m.Problems(); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
}

// TestC03 has a bridge whose ports count as the pods' (BridgeInterface): those of the node edge are marked.
func TestC03_InsideDevices(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	w.run(Options{Set: set, Attacher: attacher, Inside: func(name, master string) bool { return name == "br0" || master == "br0" }})
	bridge := w.add(&netlink.Bridge{LinkAttrs: named("br0")})
	port := w.add(&netlink.Tuntap{LinkAttrs: named("tap0"), Mode: netlink.TUNTAP_MODE_TAP, NonPersist: false})
	other := w.add(&netlink.Tuntap{LinkAttrs: named("tap1"), Mode: netlink.TUNTAP_MODE_TAP, NonPersist: false})
	hasDevice(t, set, port, func(d weirmaps.Device) bool { return d.Edge == weirmaps.EdgeNode && d.Flags == 0 })
	if err := netlink.LinkSetMaster(port, bridge); err != nil {
		t.Fatal(err)
	}
	hasDevice(t, set, port, func(d weirmaps.Device) bool { return d.Edge == weirmaps.EdgeNode && d.Flags == weirmaps.DeviceInside })
	hasDevice(t, set, other, func(d weirmaps.Device) bool { return d.Edge == weirmaps.EdgeNode && d.Flags == 0 })
}

// TestFollowsKinds looks at devices of other kinds: without an Ethernet header, an overlay, under a VLAN.
func TestFollowsKinds(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	w.run(Options{Set: set, Attacher: attacher})
	eth := w.veth("eth0", w.newPod())
	w.addAddress("eth0", "192.0.2.1/24")
	vxlan := w.add(&netlink.Vxlan{LinkAttrs: named("flannel.1"), VxlanId: 1, VtepDevIndex: eth.Attrs().Index, Port: 8472})
	tun := w.add(&netlink.Tuntap{LinkAttrs: named("tun0"), Mode: netlink.TUNTAP_MODE_TUN, NonPersist: false})

	edgeOn(t, attacher, vxlan, weirmaps.EdgeNode)
	hasDevice(t, set, vxlan, func(d weirmaps.Device) bool {
		return d.Edge == weirmaps.EdgeNode && d.Flags == 0 && d.Ipv4.Addr().String() == "192.0.2.1"
	})
	hasDevice(t, set, tun, func(d weirmaps.Device) bool {
		return d.Edge == weirmaps.EdgeNode && d.Flags == weirmaps.DeviceNoEthernet && d.Mac == [6]uint8{}
	})
	if got := attacher.on(tun.Attrs().Index); got.Ethernet {
		t.Errorf("the attacher is told of %+v", got)
	}
}

// TestFollowsVLANs tells the attacher of devices under VLANs.
func TestFollowsVLANs(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	w.run(Options{Set: set, Attacher: attacher})
	eth := w.veth("eth0", w.newPod())
	w.addAddress("eth0", "192.0.2.1/24")
	edgeOn(t, attacher, eth, weirmaps.EdgeNode)
	if got := attacher.on(eth.Attrs().Index); got.Parent || !got.Ethernet {
		t.Errorf("the attacher is told of %+v", got)
	}
	attrs := named("eth0.7")
	attrs.ParentIndex = eth.Attrs().Index
	if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 7}); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no VLAN devices")
	} else if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if !attacher.on(eth.Attrs().Index).Parent {
			return errors.New("the attacher is not told that a VLAN is on eth0")
		}
		return nil
	})
}

// TestFollowsMoves sees a veth whose other end goes to a pod later, and one whose other end comes back.
func TestFollowsMoves(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	w.run(Options{Set: set, Attacher: attacher})
	near := w.add(&netlink.Veth{LinkAttrs: named("veth1"), PeerName: "peer1"})
	edgeOn(t, attacher, near, weirmaps.EdgeNode)
	pod := w.newPod()
	if err := netlink.LinkSetNsFd(w.link("peer1"), int(pod)); err != nil {
		t.Fatal(err)
	}
	edgeOn(t, attacher, near, weirmaps.EdgePod)

	inside, err := netlink.NewHandleAt(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	peer, err := inside.LinkByName("peer1")
	if err != nil {
		t.Fatal(err)
	}
	if err := inside.LinkSetNsFd(peer, int(w.here)); err != nil {
		t.Fatal(err)
	}
	edgeOn(t, attacher, near, weirmaps.EdgeNode)
}

// TestFollowsUplink makes a veth the node's own by a default route, and by an address with a network.
func TestFollowsUplink(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	w.run(Options{Set: set, Attacher: attacher})
	for _, family := range []struct{ address, to string }{{"10.0.0.5/32", "0.0.0.0/0"}, {"2001:db8::5/128", "::/0"}} {
		link := w.veth("eth0", w.newPod())
		w.addAddress("eth0", family.address)
		edgeOn(t, attacher, link, weirmaps.EdgePod)
		_, everywhere, _ := net.ParseCIDR(family.to)
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere, Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatal(err)
		}
		edgeOn(t, attacher, link, weirmaps.EdgeNode)
		if err := netlink.RouteDel(route); err != nil {
			t.Fatal(err)
		}
		edgeOn(t, attacher, link, weirmaps.EdgePod)
		w.addAddress("eth0", "198.51.100.1/24")
		edgeOn(t, attacher, link, weirmaps.EdgeNode)
		w.remove("eth0")
	}
}

// TestDefaultRoutesOnly hears of a default route, and of none of the others before it.
func TestDefaultRoutesOnly(t *testing.T) {
	w := newWorld(t)
	link := w.veth("eth0", w.newPod())
	w.addAddress("eth0", "192.0.2.1/24", "2001:db8::1/64")
	socket, err := subscribe()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	// The kernel still makes the routes of the new addresses, and the filter came after the subscription.
	heardRoutes(t, socket)
	for _, to := range []string{"10.0.0.0/8", "fd00::/8", "0.0.0.0/0", "::/0"} {
		_, network, _ := net.ParseCIDR(to)
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: network, Scope: netlink.SCOPE_LINK}); err != nil {
			t.Fatal(err)
		}
	}
	if heard := heardRoutes(t, socket); !slices.Equal(heard, []byte{0, 0}) {
		t.Errorf("heard of routes with prefix lengths %v, want two default routes", heard)
	}
}

// heardRoutes returns the prefix lengths of new routes that a socket hears of within a while.
func heardRoutes(t *testing.T, socket *nl.NetlinkSocket) (lengths []byte) {
	t.Helper()
	limit := unix.NsecToTimeval(int64(200 * time.Millisecond))
	if err := socket.SetReceiveTimeout(&limit); err != nil {
		t.Fatal(err)
	}
	for {
		messages, _, err := socket.Receive()
		if err != nil {
			return lengths
		}
		for _, message := range messages {
			if message.Header.Type == unix.RTM_NEWROUTE {
				lengths = append(lengths, nl.DeserializeRtMsg(message.Data).Dst_len)
			}
		}
	}
}

// TestNamedDevices takes the node edge from the operator: what is not there is an error if it is all, else waited for.
func TestNamedDevices(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	eth := w.veth("eth0", w.newPod())
	w.addAddress("eth0", "192.0.2.1/24")
	other := w.add(&netlink.Veth{LinkAttrs: named("eth1"), PeerName: "peer"})

	_, err := New(Options{Set: set, Attacher: attacher, Log: zapFor(t), Patterns: []string{"bond*"}})
	if err == nil || !strings.Contains(err.Error(), "bond*") || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("error %v, want one that names bond* and what there is", err)
	}
	if _, err := New(Options{Set: set, Attacher: attacher, Log: zapFor(t), Patterns: []string{"eth["}}); err == nil {
		t.Error("eth[ is taken for a pattern")
	}

	m := w.run(Options{Set: set, Attacher: attacher, Patterns: []string{"eth0", "bond*"}})
	edgeOn(t, attacher, eth, weirmaps.EdgeNode)
	if attacher.Known(other.Attrs().Index) {
		t.Error("eth1 is served, and was not named")
	}
	if problems := m.Problems(); len(problems) != 1 || problems[0].Object != "Device bond*" {
		t.Errorf("problems: %v, want that bond* is missing", problems)
	}
	bond := w.veth("bond0", w.newPod())
	edgeOn(t, attacher, bond, weirmaps.EdgeNode)
	eventually(t, func() error {
		if problems := m.Problems(); len(problems) > 0 {
			return fmt.Errorf("problems: %v", problems)
		}
		return nil
	})
}

// TestFailedAttach reports a device that cannot be served, serves the others, and tries again.
func TestFailedAttach(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	attacher.setFailure("veth1", errors.New("attach to veth1: no"))
	m := w.run(Options{Set: set, Attacher: attacher})
	bad, good := w.veth("veth1", w.newPod()), w.veth("veth2", w.newPod())
	edgeOn(t, attacher, good, weirmaps.EdgePod)
	if problems := m.Problems(); len(problems) != 1 || problems[0].Message != "attach to veth1: no" {
		t.Errorf("problems: %v", problems)
	}
	attacher.setFailure("veth1", nil)
	edgeOn(t, attacher, bad, weirmaps.EdgePod)
	eventually(t, func() error {
		if problems := m.Problems(); len(problems) > 0 {
			return fmt.Errorf("problems: %v", problems)
		}
		return nil
	})
}

// TestPrimary waits for Node.status before it changes where NodePorts answer (rule N02), and follows it (rule N03).
func TestPrimary(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	if err := set.NodeAddrs.Put(weirmaps.AddressOf(netip.MustParseAddr("192.0.2.1")), uint32(0)); err != nil {
		t.Fatal(err)
	}
	w.veth("eth0", w.newPod())
	w.addAddress("eth0", "192.0.2.1/24", "198.51.100.1/24")
	m := w.run(Options{Set: set, Attacher: attacher, NodePorts: NodePortAddresses{Primary: true}})
	if got := nodeAddresses(t, set); !slices.Equal(got, []string{"192.0.2.1"}) || len(m.Problems()) != 1 {
		t.Errorf("addresses %v and problems %v before Node.status is known", got, m.Problems())
	}
	for _, primary := range []string{"198.51.100.1", "192.0.2.1"} {
		m.SetPrimary([]netip.Addr{netip.MustParseAddr(primary), netip.MustParseAddr("203.0.113.1")})
		eventually(t, func() error {
			if got := nodeAddresses(t, set); !slices.Equal(got, []string{primary}) {
				return fmt.Errorf("addresses of the node: %v, want %s", got, primary)
			}
			return nil
		})
	}
	if problems := m.Problems(); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
}

// TestTouch has programs looked at again when a device changes in a way that does not matter, or gets a filter.
func TestTouch(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	w.run(Options{Set: set, Attacher: attacher})
	link := w.veth("veth1", w.newPod())
	edgeOn(t, attacher, link, weirmaps.EdgePod)
	settled := func() int {
		last := -1
		eventually(t, func() error {
			attacher.mu.Lock()
			defer attacher.mu.Unlock()
			if attacher.attaches != last {
				last = attacher.attaches
				return errors.New("still busy")
			}
			return nil
		})
		return last
	}
	for what, touch := range map[string]func() error{
		"an alias": func() error { return netlink.LinkSetAlias(link, "touched") },
		"a qdisc": func() error {
			return netlink.QdiscAdd(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
			}, QdiscType: "clsact"})
		},
	} {
		before := settled()
		if err := touch(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			attacher.mu.Lock()
			defer attacher.mu.Unlock()
			if attacher.attaches == before {
				return fmt.Errorf("nobody looked at the programs after %s came", what)
			}
			return nil
		})
	}
}

var _ Attacher = (*loader.Attacher)(nil)
