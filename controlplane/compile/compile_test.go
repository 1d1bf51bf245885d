package compile_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/weir-lb/weir/controlplane/compile"
)

func TestID(t *testing.T) {
	longest := strings.Repeat("x", 63)
	for text, id := range map[string]compile.ID{
		"default/web:http/TCP/IPv4":             {Namespace: "default", Name: "web", Port: "http", Protocol: compile.TCP, Family: compile.IPv4},
		"a/b:/UDP/IPv6":                         {Namespace: "a", Name: "b", Protocol: compile.UDP, Family: compile.IPv6},
		"a/b:p/SCTP/IPv4/external":              {Namespace: "a", Name: "b", Port: "p", Protocol: compile.SCTP, Family: compile.IPv4, Scope: compile.ScopeExternal},
		longest + "/b:" + longest + "/TCP/IPv4": {Namespace: longest, Name: "b", Port: longest, Protocol: compile.TCP, Family: compile.IPv4},
	} {
		if got := id.String(); got != text {
			t.Errorf("String is %q, want %q", got, text)
		}
		if got, err := compile.ParseID(text); err != nil || got != id {
			t.Errorf("ParseID(%q) is %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "a/b", "a/b/TCP/IPv4", "a/b:p/IGMP/IPv4", "a/b:p/TCP/IPv5", "a/b:p/TCP/IPv4/x/y"} {
		if id, err := compile.ParseID(text); err == nil {
			t.Errorf("ParseID(%q) is %+v, want an error", text, id)
		}
	}
	all := compile.ID{Namespace: longest, Name: longest, Port: longest, Protocol: compile.SCTP, Family: compile.IPv6, Scope: compile.ScopeExternal}
	if n := len(all.String()); n > 220 {
		t.Errorf("the longest ID has %d bytes, more than a maps.ServiceName holds", n)
	}
}

// web is a Service with one port; its policies and NodePort are for the test to set.
func web() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"},
			Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080}},
		},
	}
}

func sliceOf(name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(8080))}},
		Endpoints:   endpoints,
	}
}

// TestE03_NilPortName: only the API server can leave it out, and then nothing can be said of the port.
func TestE03_NilPortName(t *testing.T) {
	slice := sliceOf("web-1", discoveryv1.Endpoint{Addresses: []string{"10.244.1.1"}})
	slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Port: ptr.To(int32(9090))})
	result := compile.Compile(compile.Input{Service: web(), Slices: []*discoveryv1.EndpointSlice{slice}})
	want := []compile.Backend{{Address: netip.MustParseAddrPort("10.244.1.1:8080")}}
	if diff := cmp.Diff(want, result.Services[0].Inside, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("backends (-want +got):\n%s", diff)
	}
	if len(result.Problems) != 1 || result.Problems[0].Reason != "EndpointRefused" {
		t.Errorf("problems are %v", result.Problems)
	}
}

// TestCategorise compares the lists for random endpoints, nodes and policies with what the rules P01 to P08,
// T01 to T03 and H02 to H04 say, one by one.
func TestCategorise(t *testing.T) {
	for range 3000 {
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		endpoints := randomEndpoints(random)
		service := web()
		internalLocal, externalLocal := random.IntN(2) == 0, random.IntN(2) == 0
		if internalLocal {
			service.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
		}
		if externalLocal {
			service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
		in := compile.Input{Service: service, Node: compile.Node{Name: pick(random, "n1", "n2"), Zone: pick(random, "", "east", "west")}}
		half := random.IntN(len(endpoints) + 1)
		in.Slices = []*discoveryv1.EndpointSlice{sliceOf("web-1", endpoints[:half]...), sliceOf("web-2", endpoints[half:]...)}
		before := in.Service.DeepCopy()

		result := compile.Compile(in)
		cluster, local := clusterRule(endpoints, in.Node), localRule(endpoints, in.Node)
		internal, external := cluster, cluster
		if internalLocal {
			internal = local
		}
		if externalLocal {
			external = local
		}
		for _, service := range result.Services {
			for _, frontend := range service.Frontends {
				inside, outside := internal, internal
				if frontend.Kind == compile.NodePort {
					inside, outside = cluster, external
				}
				what := fmt.Sprintf("seed %d, %s of %s", seed, frontend.Kind, service.ID)
				expectBackends(t, what+" inside", service.Inside, inside)
				expectBackends(t, what+" outside", service.Outside, outside)
				if service.NoEndpoints != (len(cluster) == 0) {
					t.Errorf("%s: no endpoints is %t", what, service.NoEndpoints)
				}
			}
		}
		if split := len(result.Services) == 2; split != (internalLocal || externalLocal) {
			t.Errorf("seed %d: %d services", seed, len(result.Services))
		}
		if diff := cmp.Diff(before, in.Service); diff != "" {
			t.Errorf("seed %d: the input was changed:\n%s", seed, diff)
		}
	}
}

func pick(random *rand.Rand, of ...string) string { return of[random.IntN(len(of))] }

func expectBackends(t *testing.T, what string, backends []compile.Backend, want []string) {
	t.Helper()
	var got []string
	for _, backend := range backends {
		got = append(got, backend.Address.Addr().String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: backends are %v, want %v", what, got, want)
	}
}

// randomEndpoints returns some endpoints of different addresses, in their order.
func randomEndpoints(random *rand.Rand) []discoveryv1.Endpoint {
	flag := func() *bool { return []*bool{nil, ptr.To(true), ptr.To(false)}[random.IntN(3)] }
	hinted := random.IntN(3) > 0 // mostly all, or they hardly ever count
	endpoints := []discoveryv1.Endpoint{}
	for i := range random.IntN(6) {
		e := discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.244.0.%d", i+1)},
			Conditions: discoveryv1.EndpointConditions{Ready: flag(), Serving: flag(), Terminating: flag()},
		}
		if random.IntN(3) > 0 {
			e.NodeName = ptr.To(pick(random, "n1", "n2"))
		}
		if hinted {
			e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: pick(random, "east", "west")}}}
			if random.IntN(4) > 0 {
				e.Hints.ForNodes = []discoveryv1.ForNode{{Name: pick(random, "n1", "n2")}}
			}
		}
		endpoints = append(endpoints, e)
	}
	return endpoints
}

// The rules, each in its own words. Endpoints are named by their addresses.

func ready(e discoveryv1.Endpoint) bool { return ptr.Deref(e.Conditions.Ready, true) }

func fallback(e discoveryv1.Endpoint) bool {
	return ptr.Deref(e.Conditions.Serving, true) && ptr.Deref(e.Conditions.Terminating, false)
}

func addressesOf(endpoints []discoveryv1.Endpoint, tests ...func(discoveryv1.Endpoint) bool) (addresses []string) {
	for _, e := range endpoints {
		passes := true
		for _, test := range tests {
			passes = passes && test(e)
		}
		if passes {
			addresses = append(addresses, e.Addresses[0])
		}
	}
	return addresses
}

// localRule: ready ones of this node, else serving and terminating ones of this node.
func localRule(endpoints []discoveryv1.Endpoint, node compile.Node) []string {
	here := func(e discoveryv1.Endpoint) bool { return e.NodeName != nil && *e.NodeName == node.Name }
	if list := addressesOf(endpoints, ready, here); list != nil {
		return list
	}
	return addressesOf(endpoints, fallback, here)
}

// clusterRule: ready ones, by node hints if all have them and one is ours, else by zone hints likewise, else
// all; if there are none, serving and terminating ones.
func clusterRule(endpoints []discoveryv1.Endpoint, node compile.Node) []string {
	all := addressesOf(endpoints, ready)
	if all == nil {
		return addressesOf(endpoints, fallback)
	}
	withNodes := func(e discoveryv1.Endpoint) bool { return e.Hints != nil && e.Hints.ForNodes != nil }
	ourNode := func(e discoveryv1.Endpoint) bool { return withNodes(e) && e.Hints.ForNodes[0].Name == node.Name }
	withZones := func(e discoveryv1.Endpoint) bool { return e.Hints != nil && e.Hints.ForZones != nil }
	ourZone := func(e discoveryv1.Endpoint) bool { return withZones(e) && e.Hints.ForZones[0].Name == node.Zone }
	for _, hint := range []struct {
		has, ours func(discoveryv1.Endpoint) bool
	}{{withNodes, ourNode}, {withZones, ourZone}} {
		ours := addressesOf(endpoints, ready, hint.ours)
		if len(addressesOf(endpoints, ready, hint.has)) == len(all) && ours != nil {
			return ours
		}
	}
	return all
}

// BenchmarkCompile compiles a Service of 1,000 endpoints in ten slices, on two ports.
func BenchmarkCompile(b *testing.B) {
	service := web()
	service.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 80}, {Name: "b", Port: 81}}
	in := compile.Input{Service: service, Node: compile.Node{Name: "n1"}}
	for s := range 10 {
		slice := sliceOf(fmt.Sprintf("web-%d", s))
		slice.Ports = []discoveryv1.EndpointPort{{Name: ptr.To("a"), Port: ptr.To(int32(8080))}, {Name: ptr.To("b"), Port: ptr.To(int32(8081))}}
		for e := range 100 {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.%d.%d", s, e+1)}, NodeName: ptr.To("n2")})
		}
		in.Slices = append(in.Slices, slice)
	}
	for b.Loop() {
		compile.Compile(in)
	}
}
