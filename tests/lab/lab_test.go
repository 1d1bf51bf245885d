package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// topologies are the labs that tests of the datapath run in.
var topologies = []struct {
	name    string
	options lab.Options
	agent   []string // arguments of its own
}{
	{name: "routed"},
	{name: "bridge", options: lab.Options{Pods: lab.Bridge, OneNetwork: true}},
	{name: "overlay", options: lab.Options{Pods: lab.Overlay}},
	{name: "tun outside", options: lab.Options{Outside: lab.Tun}},
	{name: "tun to node2", options: lab.Options{Nodes: lab.Tun}},
	{name: "tun both", options: lab.Options{Outside: lab.Tun, Nodes: lab.Tun}},
	{name: "xdp", options: lab.Options{WireChecksums: true}, agent: xdpNative},
	{name: "xdp one network", options: lab.Options{OneNetwork: true, WireChecksums: true}, agent: xdpNative},
}

// xdpNative makes the agent attach XDP to veths, which it does only when told.
var xdpNative = []string{"--xdp", "native"}

// onEachTopology runs a test in every topology's shared cluster, bare and with a real node's netfilter rules.
func onEachTopology(t *testing.T, test func(t *testing.T, c *cluster)) {
	t.Helper()
	t.Parallel()
	for _, topology := range topologies {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, func(t *testing.T, options lab.Options) {
				test(t, shared(t, options, topology.agent...))
			})
		})
	}
}

var (
	families  = []compile.Family{compile.IPv4, compile.IPv6}
	protocols = []compile.Protocol{compile.TCP, compile.UDP}
)

// TestLabWithoutWeir shows that every lab carries the traffic that needs no Weir: else a test of Weir in it says
// nothing.
func TestLabWithoutWeir(t *testing.T) {
	t.Parallel()
	for _, topology := range topologies {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, testPlainTraffic)
		})
	}
}

func testPlainTraffic(t *testing.T, options lab.Options) {
	l := build(t, options)
	clientReaches := l.Web
	if l.Options.OneNetwork || l.Options.Pods == lab.Overlay {
		// node2 answers the client by another way than it was asked, which node1's netfilter does not let pass.
		clientReaches = l.Local()
	}
	for _, family := range families {
		for _, protocol := range protocols {
			for _, pod := range clientReaches {
				askPlainly(t, l.Client, pod, family, protocol)
			}
			for _, pod := range l.Web {
				askPlainly(t, l.Toolbox, pod, family, protocol)
			}
		}
	}
	conn, err := l.Toolbox.Dial(compile.TCP, netip.AddrPort{}, netip.AddrPortFrom(l.Web[2].IPv4, lab.TCPPort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Exchange(8<<20, 8<<20, 20*time.Second); err != nil {
		t.Error(err)
	}
}

// askPlainly asks a pod under its own address, and expects it to see the client's.
func askPlainly(t *testing.T, from, pod *lab.Host, family compile.Family, protocol compile.Protocol) {
	t.Helper()
	answer, err := from.Ask(protocol, netip.AddrPort{}, netip.AddrPortFrom(pod.Addr(family), lab.TCPPort))
	if err != nil {
		t.Fatal(err)
	}
	if answer.Server != pod.Role || answer.Client.Addr() != from.Addr(family) {
		t.Errorf("%s asks %s by %s over %s: got %+v", from.Role, pod.Role, protocol, family, answer)
	}
}
