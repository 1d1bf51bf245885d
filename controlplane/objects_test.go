package controlplane

import (
	"math/rand/v2"
	"strings"
	"testing"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/randfill"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// texts and numbers are what fields of objects are filled with: what they may hold, what they may not, and what is
// somewhere between.
var (
	texts = []string{
		"", "None", "web", "default", "TCP", "UDP", "SCTP", "ICMP", "Local", "Cluster", "ClientIP", "IPv4", "IPv6", "FQDN",
		"NodePort", "LoadBalancer", "ExternalName", "VIP", "Proxy", "true", "30s", "-1", "reset",
		"10.96.0.7", "10.96.0.1", "010.096.000.007", "fd00::7", "::ffff:10.0.0.1", "0.0.0.0", "::", "127.0.0.1", "169.254.1.1", "224.0.0.1",
		"255.255.255.255", "fe80::1%eth0", "10.0.0.0/8", " 10.0.0.1/33 ", "::/0", "1.2.3", "10.96.0.7:80",
		"kubernetes.io/service-name", "service.kubernetes.io/headless", "topology.kubernetes.io/zone", "weir-lb.io/algorithm",
		"weir-lb.io/removed-endpoints", "weir-lb.io/weights", "maglev", "a/b:c", "\x00", "\xff\xfe", strings.Repeat("x", 300),
	}
	numbers = []int32{-1 << 31, -1, 0, 1, 80, 443, 30080, 65535, 65536, 86400, 86401, 1<<31 - 1}
)

// TestRandomObjects puts objects with impossible values beside a good Service: nothing panics, the good one is served in
// every round, and nothing reaches the maps that they could not hold.
func TestRandomObjects(t *testing.T) {
	seed := rand.Int64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	filler := randfill.NewWithSeed(seed).NilChance(0.3).NumElements(0, 3).Funcs(
		func(s *string, _ randfill.Continue) { *s = texts[random.IntN(len(texts))] },
		func(n *int32, _ randfill.Continue) { *n = numbers[random.IntN(len(numbers))] },
		func(*metav1.FieldsV1, randfill.Continue) {},
	)
	s, maps := store.New(0), &fakeMaps{}
	c := New(Options{Store: s, Applier: maps, NodeName: "n1", Log: zap.NewNop()})
	good := newService("good", "10.96.255.1", 1)
	good.CreationTimestamp = metav1.Unix(-1<<40, 0) // older than whatever else may want its address
	s.Update(batchOf(good, newSlice("good", "10.244.255.1")))
	s.Synced()
	for round := range 3000 {
		batch := batchOf()
		batch.Ranges = map[string]*networkingv1.ServiceCIDR{}
		service, slice, node, cidr := &corev1.Service{}, &discoveryv1.EndpointSlice{}, &corev1.Node{}, &networkingv1.ServiceCIDR{}
		for _, object := range []any{service, slice, node, cidr} {
			filler.Fill(object)
		}
		name := []string{"a", "b", "c"}[random.IntN(3)]
		service.Namespace, service.Name, slice.Namespace, slice.Name = "default", name, "default", name+"-1"
		if random.IntN(4) > 0 { // else it is another Service's, or nobody's
			slice.Labels = map[string]string{discoveryv1.LabelServiceName: name}
		}
		node.Name = []string{"n1", "n2"}[random.IntN(2)]
		batch.Services[store.Key{Namespace: "default", Name: name}] = service
		batch.Slices[store.Key{Namespace: "default", Name: name + "-1"}] = slice
		batch.Nodes[node.Name], batch.Ranges[name] = node, cidr
		s.Update(batch)
		step(t, c)
		if backends := maps.services[idOf("good")].Inside; len(backends) != 1 {
			t.Fatalf("round %d: the good Service has backends %v", round, backends)
		}
		for id := range maps.services {
			if parsed, err := compile.ParseID(id.String()); err != nil || parsed != id {
				t.Fatalf("round %d: the ID %q is read back as %+v, %v", round, id, parsed, err)
			}
		}
		c.Status()
	}
	if len(maps.wrong) > 0 {
		t.Errorf("the first breach of the contract of %d: %s", len(maps.wrong), maps.wrong[0])
	}
}
