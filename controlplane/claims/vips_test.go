package claims

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-lb/weir/controlplane/compile"
)

func keyOf(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: name}
}

func withClusterIP(name, clusterIP string, external ...string) []compile.Service {
	s := service(name, 0, external...)
	s.Frontends = append(s.Frontends, compile.Frontend{Kind: compile.ClusterIP, Address: netip.MustParseAddrPort(clusterIP)})
	return []compile.Service{*s}
}

func addresses(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// TestE14_Owner: what counts as somebody's VIP.
func TestE14_Owner(t *testing.T) {
	v := NewVIPs()
	v.Set(keyOf("web"), withClusterIP("web", "10.96.0.1:80", "192.0.2.1:443"))
	nodePort := service("np", 0, "0.0.0.0:30080")
	nodePort.Frontends[0].Kind = compile.NodePort
	v.Set(keyOf("np"), []compile.Service{*nodePort})

	for _, test := range []struct {
		what     string
		of       string
		endpoint string
		protocol compile.Protocol
		want     string
	}{
		{"the ClusterIP, its port", "other", "10.96.0.1:80", compile.TCP, "default/web"},
		{"the ClusterIP, another port and protocol", "other", "10.96.0.1:81", compile.UDP, "default/web"},
		{"its own ClusterIP, a loop", "web", "10.96.0.1:80", compile.TCP, "default/web"},
		{"an external address, its port", "other", "192.0.2.1:443", compile.TCP, "default/web"},
		{"an external address, another port", "other", "192.0.2.1:80", compile.TCP, ""},
		{"an external address, another protocol", "other", "192.0.2.1:443", compile.UDP, ""},
		{"its own external address: a machine's, where its pods are", "web", "192.0.2.1:443", compile.TCP, ""},
		{"an ordinary address", "other", "10.244.1.1:80", compile.TCP, ""},
		{"the number of a NodePort", "other", "0.0.0.0:30080", compile.TCP, ""},
	} {
		owner, taken := v.Owner(keyOf(test.of), netip.MustParseAddrPort(test.endpoint), test.protocol)
		if owner != test.want || taken != (test.want != "") {
			t.Errorf("%s: %q, %v; want %q", test.what, owner, taken, test.want)
		}
	}
}

// TestE14_Stale: a Service is named when something changes where one of its endpoints is.
func TestE14_Stale(t *testing.T) {
	v := NewVIPs()
	expect := func(what string, got []types.NamespacedName, want ...types.NamespacedName) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	v.SetEndpoints(keyOf("a"), addresses("10.96.0.1", "10.244.1.1"))
	v.SetEndpoints(keyOf("b"), addresses("10.244.1.1"))
	expect("a VIP where a has an endpoint", v.Set(keyOf("web"), withClusterIP("web", "10.96.0.1:80")), keyOf("a"))
	expect("the same again", v.Set(keyOf("web"), withClusterIP("web", "10.96.0.1:80")))
	expect("another VIP where both have", v.Set(keyOf("web"), withClusterIP("web", "10.96.0.1:80", "10.244.1.1:80")), keyOf("a"), keyOf("b"))
	v.SetEndpoints(keyOf("a"), addresses("10.244.1.1"))
	expect("the ClusterIP goes, a has left", v.Set(keyOf("web"), withClusterIP("web", "10.96.0.2:80", "10.244.1.1:80")))
	v.SetEndpoints(keyOf("b"), nil)
	expect("the Service goes", v.Set(keyOf("web"), nil), keyOf("a"))
	if len(v.services)+len(v.owners.one)+len(v.endpoints)+len(v.users.one) != 2 {
		t.Errorf("left behind: %+v", v)
	}
}

// TestE14_RandomHistories: whenever the answer for an endpoint changes, its Service was named.
func TestE14_RandomHistories(t *testing.T) {
	for range 100 {
		seed := rand.Uint64()
		if failed := vipHistory(rand.New(rand.NewPCG(seed, 0))); failed != "" {
			t.Fatalf("seed %d: %s", seed, failed)
		}
	}
}

func vipHistory(random *rand.Rand) (failed string) {
	v := NewVIPs()
	answers := map[types.NamespacedName]map[netip.Addr]string{} // of each Service, for its endpoints
	ask := func(key types.NamespacedName, address netip.Addr) string {
		owner, _ := v.Owner(key, netip.AddrPortFrom(address, 80), compile.TCP)
		return owner
	}
	address := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(6))}) }
	for step := range 100 {
		key := keyOf(fmt.Sprintf("s%d", random.IntN(5)))
		if random.IntN(2) == 0 {
			list := []netip.Addr{address(), address()}
			slices.SortFunc(list, netip.Addr.Compare)
			list = slices.Compact(list)
			v.SetEndpoints(key, list)
			answers[key] = map[netip.Addr]string{}
			for _, one := range list {
				answers[key][one] = ask(key, one)
			}
			continue
		}
		var services []compile.Service
		if random.IntN(4) > 0 {
			services = withClusterIP(key.Name, netip.AddrPortFrom(address(), 80).String(), netip.AddrPortFrom(address(), 80).String())
		}
		stale := v.Set(key, services)
		for user, list := range answers {
			for one, old := range list {
				now := ask(user, one)
				if now != old && !slices.Contains(stale, user) {
					return fmt.Sprintf("step %d: the answer to %s for %s went from %q to %q unnoticed", step, user, one, old, now)
				}
				list[one] = now
			}
		}
	}
	return ""
}
