package kubernetes

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// manySlices is a list as a server has it.
func manySlices() *discoveryv1.EndpointSliceList {
	list := &discoveryv1.EndpointSliceList{
		TypeMeta: metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"},
		ListMeta: metav1.ListMeta{ResourceVersion: "77"},
	}
	for i := range 300 {
		s := slice(fmt.Sprintf("web%d", i))
		s.ResourceVersion, s.AddressType = "5", discoveryv1.AddressTypeIPv4
		s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}, {Addresses: []string{"10.0.0.2"}}}
		list.Items = append(list.Items, *s)
	}
	return list
}

func encoded(t *testing.T, list runtime.Object) []byte {
	t.Helper()
	var content bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(list, &content); err != nil {
		t.Fatal(err)
	}
	return content.Bytes()
}

func asIs(item any) (any, error) { return item, nil }

// TestListInPieces reads what the library reads, in both encodings that a server may answer in.
func TestListInPieces(t *testing.T) {
	want := manySlices()
	var text bytes.Buffer
	if err := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{}).Encode(want, &text); err != nil {
		t.Fatal(err)
	}
	for kind, content := range map[string][]byte{"application/vnd.kubernetes.protobuf": encoded(t, want), "application/json": text.Bytes()} {
		asked := ""
		client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
			asked = r.URL.String()
			w.Header().Set("Content-Type", kind)
			_, _ = w.Write(content)
		})
		list := inPieces[discoveryv1.EndpointSlice](client.DiscoveryV1().RESTClient(), endpointSlices, client.DiscoveryV1().EndpointSlices("").List, asIs)
		got, err := list(t.Context(), metav1.ListOptions{ResourceVersion: "0", LabelSelector: "!x"})
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if want := "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21x&resourceVersion=0"; asked != want {
			t.Errorf("%s: asked for %s, want %s", kind, asked, want)
		}
		accessor, err := meta.ListAccessor(got)
		if err != nil || accessor.GetResourceVersion() != "77" {
			t.Errorf("%s: the version is another one (%v)", kind, err)
		}
		items, err := meta.ExtractListWithAlloc(got)
		if err != nil || len(items) != len(want.Items) {
			t.Fatalf("%s: %d items (%v)", kind, len(items), err)
		}
		for i := range items {
			if diff := cmp.Diff(&want.Items[i], items[i]); diff != "" {
				t.Fatalf("%s: item %d (-want +got):\n%s", kind, i, diff)
			}
		}
	}
}

// TestListInPiecesRefused passes on what the server says.
func TestListInPiecesRefused(t *testing.T) {
	client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	list := inPieces[corev1.Service](client.CoreV1().RESTClient(), services, client.CoreV1().Services("").List, asIs)
	if _, err := list(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("got %v", err)
	}
}

// TestListCutShort takes no part of a list for the whole, wherever the connection breaks.
func TestListCutShort(t *testing.T) {
	content := encoded(t, manySlices())
	whole := func(content []byte) error {
		_, err := decode[discoveryv1.EndpointSlice](bufio.NewReader(bytes.NewReader(content)), asIs)
		return err
	}
	if err := whole(content); err != nil {
		t.Fatal(err)
	}
	const trailer = 4 // that nothing is encoded otherwise
	for length := len(protobufMagic); length < len(content)-trailer; length += 7 {
		if whole(content[:length]) == nil {
			t.Fatalf("%d of %d bytes are taken for the whole", length, len(content))
		}
	}
}

// clientOf returns a client of a server.
func clientOf(t *testing.T, answer http.HandlerFunc) clientset.Interface {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	client, err := clientset.NewForConfig(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{
		ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
	}})
	if err != nil {
		t.Fatal(err)
	}
	return client
}
