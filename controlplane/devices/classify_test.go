package devices

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/maps"
)

// etherDevice returns an Ethernet device of this namespace, up.
func etherDevice(index int, name, kind string, prefixes ...string) *device {
	d := &device{
		index: index, name: name, kind: kind, hardware: unix.ARPHRD_ETHER, up: true, namespace: hereNamespace,
		mac: [6]byte{2, 0, 0, 0, 0, byte(index)},
	}
	for _, prefix := range prefixes {
		d.addresses = append(d.addresses, address{prefix: netip.MustParsePrefix(prefix)})
	}
	return d
}

// with changes a device, for tables.
func with(d *device, change func(*device)) *device {
	change(d)
	return d
}

// podVeth returns a veth whose other end is in the namespace with that id.
func podVeth(index int, name string, namespace int, prefixes ...string) *device {
	return with(etherDevice(index, name, "veth", prefixes...), func(d *device) { d.namespace, d.lower = namespace, 2 })
}

func headerOf(hardware uint16) func(*device) { return func(d *device) { d.hardware = hardware } }
func portOf(master int) func(*device)        { return func(d *device) { d.master = master } }
func hasDefault(d *device)                   { d.routes = []defaultRoute{{table: unix.RT_TABLE_MAIN, metric: 100}} }

func byIndex(all ...*device) map[int]*device {
	devices := map[int]*device{}
	for _, d := range all {
		devices[d.index] = d
	}
	return devices
}

// summary names the roles of devices.
func summary(devices map[int]*device, patterns []string) map[string]string {
	roles := classify(devices, patterns)
	named := map[string]string{}
	for index, d := range devices {
		r := roles[index]
		text := map[maps.EdgeKind]string{maps.EdgeNone: "none", maps.EdgeNode: "node", maps.EdgePod: "pod"}[r.edge]
		if r.recorded && !r.attached {
			text += ", recorded"
		}
		if r.attached && !r.recorded {
			text += ", attached without a record"
		}
		if r.toPods {
			text += ", to pods"
		}
		if r.reason != "" {
			text += ", with a reason"
		}
		named[d.name] = text
	}
	return named
}

func TestClassify(t *testing.T) {
	loopback := with(etherDevice(1, "lo", "", "127.0.0.1/8"), func(d *device) { d.loopback, d.hardware = true, unix.ARPHRD_LOOPBACK })
	tests := []struct {
		name     string
		devices  map[int]*device
		patterns []string
		want     map[string]string
	}{
		{
			name: "routed veths, as Calico's",
			devices: byIndex(loopback,
				etherDevice(2, "eth0", "", "192.0.2.1/24"), podVeth(7, "cali1", 0), podVeth(8, "cali2", 1),
				with(etherDevice(9, "tunl0", "ipip", "10.1.1.0/32"), headerOf(unix.ARPHRD_TUNNEL))),
			want: map[string]string{"lo": "none", "eth0": "node", "cali1": "pod", "cali2": "pod", "tunl0": "node"},
		},
		{
			name: "the gateway's address on each pod's veth, as the ptp plugin of kind",
			devices: byIndex(
				podVeth(2, "eth0", 0, "172.18.0.2/16"), podVeth(7, "veth1", 1, "10.244.0.1/32"), podVeth(8, "veth2", 2, "10.244.0.1/32")),
			want: map[string]string{"eth0": "node", "veth1": "pod", "veth2": "pod"},
		},
		{
			name:    "an uplink without a network of its own has the default route",
			devices: byIndex(with(podVeth(2, "eth0", 0, "10.0.0.5/32"), hasDefault), podVeth(7, "veth1", 1)),
			want:    map[string]string{"eth0": "node", "veth1": "pod"},
		},
		{
			name:    "a link-local address is nobody's home",
			devices: byIndex(podVeth(7, "veth1", 1, "fe80::1/64", "169.254.1.1/16")),
			want:    map[string]string{"veth1": "pod"},
		},
		{
			name: "a bridge of pods and an overlay, as flannel's",
			devices: byIndex(
				etherDevice(2, "eth0", "", "192.0.2.1/24"), etherDevice(3, "cni0", "bridge", "10.1.1.1/24"),
				with(podVeth(7, "veth1", 0), portOf(3)), with(podVeth(8, "veth2", 1), portOf(3)),
				etherDevice(9, "flannel.1", "vxlan", "10.1.1.0/32")),
			want: map[string]string{
				"eth0": "node", "cni0": "none, recorded, to pods", "veth1": "pod", "veth2": "pod", "flannel.1": "node",
			},
		},
		{
			name: "the node's own bridge: its ports are the edge",
			devices: byIndex(
				etherDevice(3, "br0", "bridge", "192.0.2.1/24"), with(etherDevice(2, "eth0", ""), portOf(3)),
				with(podVeth(7, "veth1", 0), portOf(3))),
			want: map[string]string{"br0": "none, recorded", "eth0": "node", "veth1": "pod"},
		},
		{
			name:    "a bridge without ports leads nowhere",
			devices: byIndex(etherDevice(3, "docker0", "bridge", "172.17.0.1/16")),
			want:    map[string]string{"docker0": "none, recorded"},
		},
		{
			name: "a bond is the edge, its ports are known",
			devices: byIndex(
				etherDevice(4, "bond0", "bond", "192.0.2.1/24"), with(etherDevice(2, "eth0", ""), portOf(4)),
				with(etherDevice(3, "eth1", ""), portOf(4)),
				with(etherDevice(5, "bond0.7", "vlan", "198.51.100.1/24"), func(d *device) { d.lower = 4 })),
			want: map[string]string{"bond0": "node", "eth0": "node, recorded", "eth1": "node, recorded", "bond0.7": "node"},
		},
		{
			name: "a node that is a namespace itself, with a VLAN and a bond on its veths",
			devices: byIndex(
				podVeth(2, "wire0", 0), podVeth(3, "wire1", 0), with(podVeth(4, "wire2", 0), portOf(5)),
				etherDevice(5, "bond0", "bond", "198.51.100.1/24"),
				with(etherDevice(6, "vlan7", "vlan", "192.0.2.1/24"), func(d *device) { d.lower = 3 }), podVeth(7, "veth1", 1)),
			want: map[string]string{
				"wire0": "pod", "wire1": "node", "wire2": "node, recorded", "bond0": "node", "vlan7": "node", "veth1": "pod",
			},
		},
		{
			name: "a port of a VRF is an edge, the VRF is none",
			devices: byIndex(
				etherDevice(4, "red", "vrf"), with(etherDevice(2, "eth0", ""), portOf(4))),
			want: map[string]string{"red": "none", "eth0": "node"},
		},
		{
			name: "devices without an Ethernet header, or with another one",
			devices: byIndex(
				with(etherDevice(2, "wg0", "wireguard", "10.9.0.1/24"), headerOf(unix.ARPHRD_NONE)),
				with(etherDevice(3, "tun0", "tuntap"), headerOf(unix.ARPHRD_NONE)),
				with(etherDevice(4, "gre1", "gre"), headerOf(unix.ARPHRD_IPGRE)),
				with(etherDevice(5, "ib0", ""), headerOf(unix.ARPHRD_INFINIBAND))),
			want: map[string]string{"wg0": "node", "tun0": "node", "gre1": "node", "ib0": "none, with a reason"},
		},
		{
			name: "addresses of Services on dummies",
			devices: byIndex(
				etherDevice(2, "kube-ipvs0", "dummy", "10.96.0.1/32"), etherDevice(3, "nodelocaldns", "dummy", "169.254.20.10/32")),
			want: map[string]string{"kube-ipvs0": "none", "nodelocaldns": "none"},
		},
		{
			name:    "both ends of a veth in this namespace",
			devices: byIndex(etherDevice(2, "left", "veth"), etherDevice(3, "right", "veth")),
			want:    map[string]string{"left": "node", "right": "node"},
		},
		{
			name:    "the near end of a netkit pair",
			devices: byIndex(with(podVeth(7, "nk1", 0), func(d *device) { d.kind = "netkit" })),
			want:    map[string]string{"nk1": "pod"},
		},
		{
			name: "named devices are the only node edge; pods stay pods",
			devices: byIndex(
				etherDevice(2, "eth0", "", "192.0.2.1/24"), etherDevice(3, "bond1", "bond"), etherDevice(4, "cni0", "bridge"),
				with(podVeth(7, "veth1", 0), portOf(4)), podVeth(8, "uplink", 1, "198.51.100.1/24"),
				with(etherDevice(9, "enp3s0", "", "203.0.113.1/24"), func(d *device) { d.altNames = []string{"bond-like"} })),
			patterns: []string{"bond*"},
			want: map[string]string{
				"eth0": "none", "bond1": "node", "cni0": "none, recorded, to pods", "veth1": "pod", "uplink": "none", "enp3s0": "node",
			},
		},
		{
			name:     "a named bridge is the edge itself, a named veth is no pod's",
			devices:  byIndex(etherDevice(2, "br0", "bridge"), podVeth(7, "veth1", 0)),
			patterns: []string{"br0", "veth1"},
			want:     map[string]string{"br0": "node", "veth1": "node"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, summary(test.devices, test.patterns)); diff != "" {
				t.Errorf("roles (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHasVLANs(t *testing.T) {
	vlan := func(lower, namespace int) *device {
		return with(etherDevice(9, "vlan", "vlan"), func(d *device) { d.lower, d.namespace = lower, namespace })
	}
	if got := hasVLANs(byIndex(etherDevice(2, "eth0", ""), vlan(2, hereNamespace))); !got[2] || len(got) != 1 {
		t.Errorf("devices under VLANs: %v, want 2", got)
	}
	if got := hasVLANs(byIndex(etherDevice(2, "eth0", ""), vlan(2, 0))); len(got) != 0 {
		t.Errorf("devices under VLANs: %v, and the VLAN is on a device of another namespace", got)
	}
}

func TestSourceAddress(t *testing.T) {
	flagged := func(prefix string, flags uint32) address { return address{netip.MustParsePrefix(prefix), flags} }
	tests := []struct {
		name      string
		addresses []address
		ipv6      bool
		want      string
	}{
		{"the first", []address{flagged("192.0.2.1/24", 0), flagged("198.51.100.1/24", 0)}, false, "192.0.2.1"},
		{"not a secondary one", []address{flagged("192.0.2.2/24", unix.IFA_F_SECONDARY), flagged("192.0.2.1/24", 0)}, false, "192.0.2.1"},
		{"not a virtual one", []address{flagged("203.0.113.9/32", 0), flagged("192.0.2.1/24", 0)}, false, "192.0.2.1"},
		{"a lone one, if there is no other", []address{flagged("10.1.1.0/32", 0)}, false, "10.1.1.0"},
		{"not link-local", []address{flagged("169.254.1.1/16", 0)}, false, ""},
		{"of the family", []address{flagged("192.0.2.1/24", 0)}, true, ""},
		{"global", []address{flagged("fe80::1/64", 0), flagged("2001:db8::1/64", 0)}, true, "2001:db8::1"},
		{"not deprecated", []address{flagged("2001:db8::1/64", unix.IFA_F_DEPRECATED), flagged("2001:db8::2/64", 0)}, true, "2001:db8::2"},
		{"not tentative", []address{flagged("2001:db8::1/64", unix.IFA_F_TENTATIVE), flagged("2001:db8::2/64", 0)}, true, "2001:db8::2"},
		{"optimistic", []address{flagged("2001:db8::1/64", unix.IFA_F_TENTATIVE|unix.IFA_F_OPTIMISTIC)}, true, "2001:db8::1"},
		{"not a duplicate", []address{flagged("2001:db8::1/64", unix.IFA_F_DADFAILED)}, true, ""},
		{"not temporary", []address{flagged("2001:db8::1/64", unix.IFA_F_TEMPORARY), flagged("2001:db8::2/64", 0)}, true, "2001:db8::2"},
		{"the same one in any order", []address{flagged("2001:db8::2/64", 0), flagged("2001:db8::1/64", 0)}, true, "2001:db8::1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := &device{addresses: test.addresses}
			want, _ := netip.ParseAddr(test.want)
			if got := d.sourceAddress(test.ipv6); got != want {
				t.Errorf("source %v, want %v", got, want)
			}
		})
	}
}

// TestSource looks for the address that stands for the node where the device itself has none.
func TestSource(t *testing.T) {
	bridge := etherDevice(3, "cni0", "bridge", "10.1.1.1/24")
	pod := with(podVeth(7, "veth1", 0), portOf(3))
	routed := podVeth(8, "cali1", 1)
	gateway := podVeth(9, "ptp1", 2, "10.244.0.1/32")
	enslaved := with(etherDevice(10, "eth9", ""), portOf(11))
	vrf := etherDevice(11, "red", "vrf", "203.0.113.1/24")
	devices := byIndex(bridge, pod, routed, gateway, enslaved, vrf)
	primary := netip.MustParseAddr("192.0.2.1")
	for d, want := range map[*device]string{
		pod: "10.1.1.1", routed: "192.0.2.1", gateway: "10.244.0.1", bridge: "10.1.1.1", enslaved: "192.0.2.1",
	} {
		if got := source(d, devices, primary, false); got.String() != want {
			t.Errorf("source on %s is %s, want %s", d.name, got, want)
		}
	}
	if got := source(pod, devices, netip.Addr{}, true); got.IsValid() {
		t.Errorf("IPv6 source on %s is %s, and there is none", pod.name, got)
	}
}

func TestPrimaryAddress(t *testing.T) {
	route := func(metric int, source string) func(*device) {
		return func(d *device) {
			from, _ := netip.ParseAddr(source)
			d.routes = append(d.routes, defaultRoute{table: unix.RT_TABLE_MAIN, metric: metric, source: from})
		}
	}
	loopback := with(etherDevice(1, "lo", "", "127.0.0.1/8", "203.0.113.7/32"), func(d *device) { d.loopback = true })
	tests := []struct {
		name    string
		devices map[int]*device
		want    string
	}{
		{"of the default route", byIndex(etherDevice(2, "eth0", "", "192.0.2.1/24"),
			with(etherDevice(3, "eth1", "", "198.51.100.1/24"), route(100, ""))), "198.51.100.1"},
		{"of the best default route", byIndex(with(etherDevice(2, "eth0", "", "192.0.2.1/24"), route(200, "")),
			with(etherDevice(3, "eth1", "", "198.51.100.1/24"), route(100, ""))), "198.51.100.1"},
		{"as the route says", byIndex(loopback, with(etherDevice(2, "eth0", "", "192.0.2.1/24"), route(0, "203.0.113.7"))), "203.0.113.7"},
		{"on lo, where the devices have none", byIndex(loopback, with(etherDevice(2, "eth0", ""), route(0, ""))), "203.0.113.7"},
		{"not a pod's gateway, not a Service's", byIndex(podVeth(2, "veth1", 0, "10.244.0.1/32"),
			etherDevice(3, "kube-ipvs0", "dummy", "10.96.0.1/32"), etherDevice(4, "eth0", "", "192.0.2.1/24")), "192.0.2.1"},
		{"none", byIndex(etherDevice(2, "eth0", "", "2001:db8::1/64")), ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want, _ := netip.ParseAddr(test.want)
			if got := primaryAddress(test.devices, classify(test.devices, nil), false); got != want {
				t.Errorf("first address %v, want %v", got, want)
			}
		})
	}
}

// TestN02NodePortAddresses is rule N02.
func TestN02NodePortAddresses(t *testing.T) {
	devices := byIndex(
		with(etherDevice(1, "lo", "", "127.0.0.1/8", "::1/128", "203.0.113.7/32"), func(d *device) { d.loopback = true }),
		etherDevice(2, "eth0", "", "192.0.2.1/24", "2001:db8::1/64", "fe80::1/64"),
		etherDevice(3, "cni0", "bridge", "10.1.1.1/24"),
		podVeth(7, "veth1", 0, "10.244.0.1/32"),
		etherDevice(8, "kube-ipvs0", "dummy", "10.96.0.1/32"),
		etherDevice(9, "nodelocaldns", "dummy", "169.254.20.10/32", "10.96.0.10/32"),
		etherDevice(10, "dummy0", "dummy", "198.51.100.9/32"),
	)
	tests := []struct {
		texts []string
		want  map[string]uint32
	}{
		{nil, map[string]uint32{"203.0.113.7": 1, "192.0.2.1": 2, "2001:db8::1": 2, "10.1.1.1": 3, "198.51.100.9": 10}},
		{[]string{"192.0.2.0/24", "2001:db8::/32"}, map[string]uint32{"192.0.2.1": 2, "2001:db8::1": 2}},
		{[]string{"0.0.0.0/0"}, map[string]uint32{"203.0.113.7": 1, "192.0.2.1": 2, "10.1.1.1": 3, "198.51.100.9": 10}},
		{[]string{"primary"}, map[string]uint32{"192.0.2.1": 2, "2001:db8::1": 2}},
	}
	primary := []netip.Addr{
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("10.1.1.1"),
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.texts), func(t *testing.T) {
			wanted, err := ParseNodePortAddresses(test.texts)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]uint32{}
			for addr, index := range nodePortAddresses(devices, classify(devices, nil), wanted, primary) {
				got[addr.String()] = index
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseNodePortAddressesRefuses(t *testing.T) {
	for _, texts := range [][]string{{"primary", "10.0.0.0/8"}, {"10.0.0.1"}, {"all"}} {
		if wanted, err := ParseNodePortAddresses(texts); err == nil {
			t.Errorf("%q is taken for %+v", texts, wanted)
		}
	}
}
