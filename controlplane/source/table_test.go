package source

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/ptr"

	"github.com/weir-lb/weir/controlplane/store"
)

// shelf is a table, and what its files say.
type shelf struct {
	t     *testing.T
	table *table
	files map[string][]located
}

func newShelf(t *testing.T) *shelf {
	return &shelf{t: t, table: newTable(), files: map[string][]located{}}
}

// put replaces a file's content, and describes what that changes: "+Service/a" and "-Service/a" words.
func (s *shelf) put(name, content string) string {
	s.t.Helper()
	f := file{name: name}
	places, problems := f.parse([]byte(content))
	if len(problems) > 0 {
		s.t.Fatalf("%s: %v", name, problems)
	}
	batch := s.table.replace(s.files[name], places, time.Time{})
	s.files[name] = places
	return describe(batch)
}

func describe(b store.Batch) string {
	var words []string
	add := func(kind, name string, there bool) {
		words = append(words, map[bool]string{true: "+", false: "-"}[there]+kind+"/"+name)
	}
	for key, service := range b.Services {
		add("Service", key.Name, service != nil)
	}
	for key, slice := range b.Slices {
		add("Slice", key.Name, slice != nil)
	}
	for name, node := range b.Nodes {
		add("Node", name, node != nil)
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func (s *shelf) problems() (reasons []string) {
	for _, problem := range s.table.problems() {
		reasons = append(reasons, problem.Object+" "+problem.Reason)
	}
	slices.Sort(reasons)
	return reasons
}

func service(name, spec string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {%s}}\n", name, spec)
}

// TestSameObjectTwice: the first file by name has it, whichever came first; when it goes, the next does.
func TestSameObjectTwice(t *testing.T) {
	s := newShelf(t)
	expect := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	at := func(address string) string { return service("a", "clusterIP: "+address) }
	clusterIP := func() string {
		service := s.table.delivered[objectKey{"Service", store.Key{Namespace: "default", Name: "a"}}]
		return s.table.places[keyOf(service)][0].file
	}
	expect("b.yaml", s.put("b.yaml", at("10.0.0.2")), "+Service/a")
	expect("c.yaml", s.put("c.yaml", at("10.0.0.3")), "")
	expect("a.yaml", s.put("a.yaml", at("10.0.0.1")+at("10.0.0.9")), "+Service/a")
	expect("winner", clusterIP(), "a.yaml")
	want := []string{"Service default/a ObjectDuplicate", "Service default/a ObjectDuplicate", "Service default/a ObjectDuplicate"}
	if diff := cmp.Diff(want, s.problems()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	expect("a.yaml goes", s.put("a.yaml", ""), "+Service/a")
	expect("winner", clusterIP(), "b.yaml")
	expect("c.yaml goes", s.put("c.yaml", ""), "")
	if problems := s.problems(); len(problems) != 0 {
		t.Errorf("problems are %v", problems)
	}
	expect("b.yaml goes", s.put("b.yaml", ""), "-Service/a")
	if len(s.table.places)+len(s.table.delivered) != 0 {
		t.Errorf("left behind: %+v", s.table)
	}
}

const endpointsOfA = `---
apiVersion: v1
kind: Endpoints
metadata: {name: a, labels: {color: red}}
subsets:
- addresses: [{ip: 10.1.0.1, nodeName: n1}, {ip: "fd00::1"}, {ip: nonsense}]
  notReadyAddresses: [{ip: 10.1.0.2}]
  ports: [{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}]
- addresses: [{ip: 10.1.0.3}]
  ports: [{name: http, port: 9090}]
`

// TestS11_Mirroring: Endpoints of a Service without selector become slices, whichever comes first, and go
// with either.
func TestS11_Mirroring(t *testing.T) {
	const mirrored = "Slice/Endpoints/a/0/IPv4 +Slice/Endpoints/a/0/IPv6 +Slice/Endpoints/a/1/IPv4"
	gone := strings.ReplaceAll(mirrored, "+", "-")
	s := newShelf(t)
	for _, step := range []struct{ what, file, content, want string }{
		{"Endpoints alone", "e.yaml", endpointsOfA, ""},
		{"their Service", "s.yaml", service("a", ""), "+Service/a +" + mirrored},
		{"it gets a selector", "s.yaml", service("a", "selector: {app: a}"), "+Service/a -" + gone},
		{"and loses it", "s.yaml", service("a", ""), "+Service/a +" + mirrored},
		{
			"the Endpoints shrink", "e.yaml", strings.Replace(endpointsOfA, `, {ip: "fd00::1"}`, "", 1),
			"+Slice/Endpoints/a/0/IPv4 +Slice/Endpoints/a/1/IPv4 -Slice/Endpoints/a/0/IPv6",
		},
		{
			"they ask to be left alone", "e.yaml", strings.Replace(endpointsOfA, "color: red", "endpointslice.kubernetes.io/skip-mirror: 'true'", 1),
			"-Slice/Endpoints/a/0/IPv4 -Slice/Endpoints/a/1/IPv4",
		},
		{"they are a lock", "e.yaml", strings.Replace(endpointsOfA, "labels: {color: red}", "annotations: {control-plane.alpha.kubernetes.io/leader: x}", 1), ""},
		{"they come back", "e.yaml", endpointsOfA, "+" + mirrored},
		{"the Service goes", "s.yaml", "", "-Service/a -" + gone},
	} {
		if got := s.put(step.file, step.content); got != step.want {
			t.Errorf("%s: %q, want %q", step.what, got, step.want)
		}
	}
}

// TestS11_MirroredSlice: what the slices say.
func TestS11_MirroredSlice(t *testing.T) {
	s := newShelf(t)
	s.put("a.yaml", service("a", "")+endpointsOfA)
	list := s.table.mirrored[store.Key{Namespace: "default", Name: "a"}]
	var got []string
	for _, slice := range list {
		for _, port := range slice.Ports {
			for _, endpoint := range slice.Endpoints {
				got = append(got, fmt.Sprintf("%s %s %s:%d/%s ready=%t node=%q", slice.AddressType, *port.Name,
					endpoint.Addresses[0], *port.Port, *port.Protocol, *endpoint.Conditions.Ready, ptr.Deref(endpoint.NodeName, "")))
			}
		}
		if slice.Labels["kubernetes.io/service-name"] != "a" || slice.Labels["color"] != "red" || slice.Namespace != "default" {
			t.Errorf("%s: labels are %v in %s", slice.Name, slice.Labels, slice.Namespace)
		}
	}
	want := []string{
		`IPv4 http 10.1.0.1:8080/TCP ready=true node="n1"`,
		`IPv4 http nonsense:8080/TCP ready=true node=""`,
		`IPv4 http 10.1.0.2:8080/TCP ready=false node=""`,
		`IPv4 dns 10.1.0.1:5353/UDP ready=true node="n1"`,
		`IPv4 dns nonsense:5353/UDP ready=true node=""`,
		`IPv4 dns 10.1.0.2:5353/UDP ready=false node=""`,
		`IPv6 http fd00::1:8080/TCP ready=true node=""`,
		`IPv6 dns fd00::1:5353/UDP ready=true node=""`,
		`IPv4 http 10.1.0.3:9090/TCP ready=true node=""`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
}

// TestEndpointsBesideSelector: they have no effect, which is said unless slices have it.
func TestEndpointsBesideSelector(t *testing.T) {
	s := newShelf(t)
	s.put("a.yaml", service("a", "selector: {app: a}")+endpointsOfA)
	if diff := cmp.Diff([]string{"Endpoints default/a EndpointsNotMirrored"}, s.problems()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	s.put("b.yaml", "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4}")
	if problems := s.problems(); len(problems) != 0 {
		t.Errorf("problems are %v", problems)
	}
}
