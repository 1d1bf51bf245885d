package source

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/weir-lb/weir/controlplane/compile"
)

// parse returns the objects in a file, and what is wrong with it.
func parse(content string) (objects []metav1.Object, problems []compile.Problem) {
	f := file{name: "x.yaml"}
	places, problems := f.parse([]byte(content))
	for _, place := range places {
		objects = append(objects, place.object)
	}
	return objects, problems
}

// TestProblems: what is wrong is told with its place, and stops nothing else.
func TestProblems(t *testing.T) {
	const good = "apiVersion: v1\nkind: Service\nmetadata: {name: good}\n"
	tests := []struct {
		what, bad string
		want      string // in the problem's message
	}{
		{"no YAML", "a: [1\nb: 2\n", "document 2 (from line 6): line 6: did not find expected ',' or ']'"},
		{"a tab", "a:\n\tb: 1\n", "line 7: found character that cannot start any token"},
		{"a key twice", "apiVersion: v1\nkind: Service\nkind: Node\n", `line 8: key "kind" already set in map`},
		{"no object", "- 1\n- 2\n", "document 2 (from line 6): json: cannot unmarshal array"},
		{"no kind", "apiVersion: v1\n", "apiVersion or kind is missing"},
		{"no name", "apiVersion: v1\nkind: Service\n", "a Service without metadata.name"},
		{"an impossible name", "apiVersion: v1\nkind: Service\nmetadata: {name: a/b}\n", "Service default/a/b: metadata.name: a lowercase RFC 1123 label"},
		{"an impossible namespace", "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: B}\n", "Service B/a: metadata.namespace: a lowercase"},
		{"an impossible port name", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{name: 'a/b', port: 1}]}\n", `spec.ports: name "a/b"`},
		{"ports without names", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 1}, {port: 2}]}\n", "each needs a name"},
		{"a port of the wrong type", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: http}]}\n", "Service default/a: json: cannot unmarshal string into Go struct field"},
		{"clusterIPs that disagree", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2]}\n", `spec.clusterIPs begins with "10.0.0.2"`},
		{"an unknown field", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterip: 10.0.0.1}\n", `Service default/a: unknown field "spec.clusterip", which has no effect`},
		{"lists without end", strings.Repeat("{apiVersion: v1, kind: List, items: [", 9) + strings.Repeat("]}", 9) + "\n", "a List within 4 Lists"},
	}
	for _, test := range tests {
		content := "# head\n" + good + "---\n" + test.bad + "---\n" + strings.ReplaceAll(good, "good", "good-too")
		objects, problems := parse(content)
		if len(problems) != 1 || !strings.Contains(problems[0].Message, test.want) || problems[0].Object != "File x.yaml" {
			t.Errorf("%s: problems are %q, want one with %q", test.what, problems, test.want)
		}
		var names []string
		for _, object := range objects {
			if object.GetName() != "a" {
				names = append(names, object.GetName())
			}
		}
		if diff := cmp.Diff([]string{"good", "good-too"}, names); diff != "" {
			t.Errorf("%s: the others (-want +got):\n%s", test.what, diff)
		}
	}
}

// TestKinds: lists of both sorts are taken apart, one bad item apart from the others; other kinds are ignored.
func TestKinds(t *testing.T) {
	const content = `
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: a}}
- {apiVersion: v1, kind: Service}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}
- {apiVersion: v1, kind: Node, metadata: {name: n1, namespace: x}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSliceList, items: [{metadata: {name: s}}]}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: a, namespace: other}}
---
{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: b}}
`
	f := file{name: "x.yaml"}
	places, problems := f.parse([]byte(content))
	var got []string
	for _, place := range places {
		got = append(got, keyOf(place.object).String())
	}
	want := []string{"Service default/a", "Node n1", "EndpointSlice default/s", "Endpoints other/a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"apps/v1 Deployment", "serving.knative.dev/v1 Service"}, f.ignored); diff != "" {
		t.Errorf("ignored (-want +got):\n%s", diff)
	}
	if len(problems) != 1 {
		t.Errorf("problems are %v", problems)
	}
}

// TestDefaults: an object is as an API server would have stored it.
func TestDefaults(t *testing.T) {
	meta := metav1.ObjectMeta{Name: "a", Namespace: "default"}
	cluster := ptr.To(corev1.ServiceInternalTrafficPolicyCluster)
	tests := []struct {
		what, manifest string
		want           metav1.Object
	}{
		{
			"a ClusterIP Service",
			`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}}`,
			&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
				Type: "ClusterIP", ClusterIP: "10.0.0.1", ClusterIPs: []string{"10.0.0.1"},
				IPFamilies: []corev1.IPFamily{"IPv4"}, IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicySingleStack),
				Ports:           []corev1.ServicePort{{Port: 80, Protocol: "TCP", TargetPort: intstr.FromInt32(80)}},
				SessionAffinity: "None", InternalTrafficPolicy: cluster,
			}},
		},
		{
			"a dual-stack LoadBalancer Service",
			`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: LoadBalancer, clusterIPs: ["fd00::1", 10.0.0.1],
			  sessionAffinity: ClientIP, ports: [{port: 53, protocol: UDP, targetPort: dns}]},
			  status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {hostname: x}]}}}`,
			&corev1.Service{
				ObjectMeta: meta,
				Spec: corev1.ServiceSpec{
					Type: "LoadBalancer", ClusterIP: "fd00::1", ClusterIPs: []string{"fd00::1", "10.0.0.1"},
					IPFamilies: []corev1.IPFamily{"IPv6", "IPv4"}, IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack),
					Ports:           []corev1.ServicePort{{Port: 53, Protocol: "UDP", TargetPort: intstr.FromString("dns")}},
					SessionAffinity: "ClientIP",
					SessionAffinityConfig: &corev1.SessionAffinityConfig{
						ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To(int32(10800))},
					},
					InternalTrafficPolicy: cluster, ExternalTrafficPolicy: "Cluster",
					AllocateLoadBalancerNodePorts: ptr.To(true),
				},
				Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
					{IP: "192.0.2.1", IPMode: ptr.To(corev1.LoadBalancerIPModeVIP)}, {Hostname: "x"},
				}}},
			},
		},
		{
			"what is given stays",
			`{apiVersion: v1, kind: Service, metadata: {name: a, namespace: default}, spec: {type: NodePort, clusterIP: 10.0.0.1,
			  clusterIPs: [10.0.0.1], ipFamilies: [IPv4], ipFamilyPolicy: PreferDualStack, externalTrafficPolicy: Local,
			  internalTrafficPolicy: Local, sessionAffinity: None, ports: [{port: 80, protocol: SCTP, nodePort: 30080, targetPort: 8080}]}}`,
			&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
				Type: "NodePort", ClusterIP: "10.0.0.1", ClusterIPs: []string{"10.0.0.1"},
				IPFamilies: []corev1.IPFamily{"IPv4"}, IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyPreferDualStack),
				Ports:                 []corev1.ServicePort{{Port: 80, Protocol: "SCTP", NodePort: 30080, TargetPort: intstr.FromInt32(8080)}},
				SessionAffinity:       "None",
				InternalTrafficPolicy: ptr.To(corev1.ServiceInternalTrafficPolicyLocal), ExternalTrafficPolicy: "Local",
			}},
		},
		{
			"an EndpointSlice",
			`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a, managedFields: [{manager: x}]},
			  addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.1.0.1]}]}`,
			&discoveryv1.EndpointSlice{
				ObjectMeta: meta, AddressType: "IPv4",
				Ports:     []discoveryv1.EndpointPort{{Name: ptr.To(""), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(int32(80))}},
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.1.0.1"}}},
			},
		},
	}
	for _, test := range tests {
		objects, problems := parse(test.manifest)
		if len(objects) != 1 || len(problems) != 0 {
			t.Errorf("%s: %v, %v", test.what, objects, problems)
			continue
		}
		if service, is := objects[0].(*corev1.Service); is {
			service.TypeMeta = metav1.TypeMeta{}
		}
		if slice, is := objects[0].(*discoveryv1.EndpointSlice); is {
			slice.TypeMeta = metav1.TypeMeta{}
		}
		if diff := cmp.Diff(test.want, objects[0]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.what, diff)
		}
	}
}
