package devices

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	weirmaps "github.com/weir-lb/weir/maps"
)

// TestEdgeIDs gives all devices of a pod one id, and keeps it over a restart; a device that has taken a gone one's
// index has another.
func TestEdgeIDs(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	first := w.run(Options{Set: set, Attacher: attacher})
	pod := w.newPod()
	one := w.veth("veth1", pod)
	two := w.add(&netlink.Veth{LinkAttrs: named("veth2"), PeerName: "eth1", PeerNamespace: netlink.NsFd(pod)})
	other := w.veth("veth3", w.newPod())
	id := func(link netlink.Link) uint16 {
		hasDevice(t, set, link, func(d weirmaps.Device) bool { return d.EdgeId != 0 })
		device, _ := readDevice(set, link)
		return device.EdgeId
	}
	if id(one) != id(two) || id(one) == id(other) {
		t.Errorf("ids %d and %d of one pod, %d of another", id(one), id(two), id(other))
	}
	ofOne, ofOther := id(one), id(other)
	first.stop()

	index := other.Attrs().Index
	w.remove("veth3")
	delete(attacher.devices, index) // as the kernel does it
	attrs := named("veth4")
	attrs.Index = index
	next := w.add(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(w.newPod())})
	second := w.run(Options{Set: set, Attacher: attacher})
	if id(one) != ofOne {
		t.Errorf("the id changed from %d to %d in a restart", ofOne, id(one))
	}
	if got := id(next); got == ofOther || got == ofOne {
		t.Errorf("another pod's device has the id %d, as had a pod that is gone", got)
	}
	second.stop()
	if second.records.writes != 1 {
		t.Errorf("%d entries written after the restart, want one: that of the new device", second.records.writes)
	}
}

// TestEdgeIDOfSuccessor gives another id to a namespace that comes after one with the kernel's same number for it.
func TestEdgeIDOfSuccessor(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	w.run(Options{Set: set, Attacher: attacher})
	pod := w.newPod()
	var ids []uint16
	for range 3 {
		link := w.veth("veth1", pod)
		hasDevice(t, set, link, func(d weirmaps.Device) bool { return d.EdgeId != 0 && !slices.Contains(ids, d.EdgeId) })
		device, _ := readDevice(set, link)
		ids = append(ids, device.EdgeId)
		w.remove("veth1")
	}
}

// TestRestartWritesNothing finds everything as it should be.
func TestRestartWritesNothing(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	w.veth("eth0", w.newPod())
	w.addAddress("eth0", "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "2001:db8::2/64")
	for i := range 5 {
		w.veth(fmt.Sprintf("veth%d", i), w.newPod())
	}
	options := Options{Set: set, Attacher: attacher}
	w.run(options).stop()
	again := w.run(options)
	again.stop()
	if again.records.writes != 0 {
		t.Errorf("%d entries written, want none", again.records.writes)
	}
}

// TestOverrun loses notifications, and finds everything nonetheless.
func TestOverrun(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	goes := w.veth("goes", w.newPod())
	m, err := New(Options{Set: set, Attacher: attacher, Log: zapFor(t)})
	if err != nil {
		t.Fatal(err)
	}
	before := m.listener
	if err := before.socket.SetReceiveBufferSize(4096, true); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		w.add(&netlink.Bridge{LinkAttrs: named(fmt.Sprintf("br%d", i))})
	}
	w.remove("goes")
	pod := w.veth("veth1", w.newPod())
	w.addAddress("br39", "203.0.113.9/32")
	w.runManager(m)
	edgeOn(t, attacher, pod, weirmaps.EdgePod)
	eventually(t, func() error {
		if _, err := readDevice(set, goes); err == nil || attacher.Known(goes.Attrs().Index) {
			return errors.New("a device is served that is gone")
		}
		if got := nodeAddresses(t, set); !slices.Contains(got, "203.0.113.9") {
			return fmt.Errorf("addresses of the node: %v", got)
		}
		return nil
	})
	later := w.veth("veth2", w.newPod())
	edgeOn(t, attacher, later, weirmaps.EdgePod)
	if m.listener == before {
		t.Error("no notification was lost: this proves nothing")
	}
}

// TestLostBehindOthers learns that notifications were lost while it takes in others.
func TestLostBehindOthers(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	m, err := New(Options{Set: set, Attacher: attacher, Log: zapFor(t)})
	if err != nil {
		t.Fatal(err)
	}
	m.listener.heard <- notification{err: unix.ENOBUFS}
	old := m.listener
	if _, err := m.take(notification{}); err != nil {
		t.Fatal(err)
	}
	if m.listener == old {
		t.Error("it goes on with a socket that has lost something")
	}
	w.runManager(m)
	edgeOn(t, attacher, w.veth("veth1", w.newPod()), weirmaps.EdgePod)
}
