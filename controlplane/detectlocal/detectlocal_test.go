package detectlocal

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf/rlimit"
	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/maps"
)

// TestC03 reads every mode.
func TestC03_Modes(t *testing.T) {
	node := &corev1.Node{Spec: corev1.NodeSpec{PodCIDR: "10.1.1.0/24", PodCIDRs: []string{"10.1.1.0/24", "fd00:1::/64"}}}
	for _, test := range []struct {
		settings Settings
		bySource bool
		prefixes string
		cni0     bool   // whether what comes in by it, or by a port of it, is inside
		problem  string // begins so
	}{
		{Settings{}, false, "[]", false, ""},
		{Settings{ClusterCIDR: "10.244.0.0/16"}, true, "[10.244.0.0/16]", false, ""},
		{Settings{Mode: "ClusterCIDR", ClusterCIDR: "10.244.7.7/16, fd00::/56"}, true, "[10.244.0.0/16 fd00::/56]", false, ""},
		{Settings{Mode: "ClusterCIDR"}, true, "[]", false, "detectLocalMode ClusterCIDR needs --cluster-cidr"},
		{Settings{Mode: "NodeCIDR", ClusterCIDR: "10.244.0.0/16"}, true, "[10.1.1.0/24 fd00:1::/64]", false, ""},
		{Settings{Mode: "BridgeInterface", BridgeInterface: "cni0", ClusterCIDR: "10.244.0.0/16"}, false, "[]", true, ""},
		{Settings{Mode: "BridgeInterface", BridgeInterface: "cni"}, false, "[]", false, ""},
		{Settings{Mode: "BridgeInterface", NamePrefix: "cni"}, false, "[]", false, "detectLocalMode BridgeInterface needs --pod-bridge-interface"},
		{Settings{Mode: "InterfaceNamePrefix", NamePrefix: "cni"}, false, "[]", true, ""},
		{Settings{Mode: "InterfaceNamePrefix", NamePrefix: "veth"}, false, "[]", false, ""},
		{Settings{Mode: "InterfaceNamePrefix"}, false, "[]", false, "detectLocalMode InterfaceNamePrefix needs --pod-interface-name-prefix"},
	} {
		d, err := Parse(test.settings)
		if err != nil {
			t.Errorf("%+v: %v", test.settings, err)
			continue
		}
		if got := fmt.Sprint(d.Prefixes(node)); got != test.prefixes || d.BySource() != test.bySource {
			t.Errorf("%+v: by source: %v, prefixes %s; want %v, %s", test.settings, d.BySource(), got, test.bySource, test.prefixes)
		}
		if d.Device("cni0", "") != test.cni0 || d.Device("eth7", "cni0") != test.cni0 || d.Device("eth7", "") || d.Device("cni0", "br7") {
			t.Errorf("%+v: devices are not told apart", test.settings)
		}
		problems := d.Problems()
		if (len(problems) > 0) != (test.problem != "") || test.problem != "" && !strings.HasPrefix(problems[0].Message, test.problem) {
			t.Errorf("%+v: problems %v, want %q", test.settings, problems, test.problem)
		}
	}
}

// TestC03 refuses what cannot be meant.
func TestC03_Refused(t *testing.T) {
	for want, settings := range map[string]Settings{
		`mode "Cluster" is unknown`:         {Mode: "Cluster"},
		`cluster CIDR "10.0.0.0/33" is not`: {Mode: "ClusterCIDR", ClusterCIDR: "10.244.0.0/16,10.0.0.0/33"},
	} {
		if _, err := Parse(settings); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", settings, err, want)
		}
	}
}

// TestWrite brings the map to what it shall hold, whatever it held.
func TestC03_Write(t *testing.T) {
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Skip("maps need root")
	}
	set, err := maps.New(maps.Sizes{Services: 8, Frontends: 8, Backends: 8, SlotBlocks: 8, FlowsIPv4: 8, FlowsIPv6: 8, Embryos: 8, Affinity: 8, Devices: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	for _, want := range [][]netip.Prefix{
		{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/64")},
		{netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("10.0.0.0/16")},
		nil,
	} {
		if err := Write(set, want); err != nil {
			t.Fatal(err)
		}
		held := map[netip.Prefix]bool{}
		if err := maps.EachKey(set.InsideSources, func(key maps.PrefixKey) { held[key.Prefix()] = true }); err != nil {
			t.Fatal(err)
		}
		for _, prefix := range want {
			if !held[prefix] {
				t.Errorf("%v is missing", prefix)
			}
		}
		if len(held) != len(want) {
			t.Errorf("the map holds %v, want %v", held, want)
		}
	}
}
