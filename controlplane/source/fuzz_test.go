package source_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/source"
	"github.com/weir-lb/weir/controlplane/store"
)

// FuzzManifests puts anything at all between two good documents, and follows it through the store into
// compile. Nothing panics, the good documents are served, and nothing is compiled that the maps could not hold.
func FuzzManifests(f *testing.F) {
	addScripts(f)
	for _, text := range []string{
		"", "---", "...", "%YAML 9.9", "\xef\xbb\xbf", "a: &a [*a]", "{", "!!binary x", "<<: *x", "- - - -", "? x", "|\n---\n", "\"", "'",
		"apiVersion: v1\nkind: List\nitems: [null, 1, [], {}]",
		"apiVersion: v1\nkind: Service\nmetadata: {name: keep-1}\nspec: {clusterIP: 10.96.255.1, ports: [{port: 80}]}",
		"apiVersion: v1\nkind: Endpoints\nmetadata: {name: keep-2}\nsubsets: [{addresses: [{ip: 10.96.255.1}], ports: [{port: 80}]}]",
	} {
		f.Add([]byte(text), false)
	}
	f.Add([]byte(`{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "creationTimestamp": "x"}}`), true)
	f.Add([]byte("{\"items\": [}\n{"), true)
	f.Fuzz(checkManifest)
}

// addScripts adds every document of the scripts of the Service rules.
func addScripts(f *testing.F) {
	scripts, err := filepath.Glob("../compile/testdata/*.txtar")
	if err != nil || len(scripts) == 0 {
		f.Fatalf("no scripts: %v", err)
	}
	for _, path := range scripts {
		script, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range script.Files {
			if filepath.Ext(file.Name) != ".yaml" {
				continue
			}
			for document := range bytes.SplitSeq(file.Data, []byte("---\n")) {
				f.Add(document, false)
			}
		}
	}
}

// keep is a Service that the fuzzer's document cannot take anything from: it was created first.
func keep(number int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: keep-%[1]d, namespace: kept-by-the-test}
spec: {clusterIP: 10.96.255.%[1]d, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: keep-%[1]d, namespace: kept-by-the-test, labels: {kubernetes.io/service-name: keep-%[1]d}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.255.%[1]d]}]
`, number)
}

// checkManifest checks one input.
func checkManifest(t *testing.T, content []byte, json bool) {
	files := map[string][]byte{}
	if json {
		files["a.yaml"], files["b.json"] = []byte(keep(1)+"---\n"+keep(2)), content
	} else {
		files["a.yaml"] = []byte(keep(1) + "---\n" + string(content) + "\n---\n" + keep(2))
	}
	batch, _ := source.Parse(files)
	batch.Arrived = time.Now()
	objects := store.New(0)
	objects.Update(batch)
	objects.Synced()
	work, err := objects.Next(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string]bool{}
	for _, item := range work.Items {
		if item.Service == nil {
			continue
		}
		result := compile.Compile(compile.Input{Service: item.Service, Slices: item.Slices, Node: compile.Node{Name: "n1"}})
		for _, service := range result.Services {
			checkService(t, service)
			if service.ID.Namespace == "kept-by-the-test" && len(service.Inside) > 0 {
				kept[service.ID.Name] = true
			}
		}
	}
	if !kept["keep-1"] || !kept["keep-2"] {
		t.Errorf("of the good documents, only %v are served", kept)
	}
}

// checkService checks that a service is one that the maps can hold.
func checkService(t *testing.T, service compile.Service) {
	if id, err := compile.ParseID(service.ID.String()); err != nil || id != service.ID {
		t.Errorf("the ID %q is read back as %+v, %v", service.ID, id, err)
	}
	if len(service.ID.String()) > 220 || len(service.Frontends) == 0 {
		t.Errorf("%q has %d frontends", service.ID, len(service.Frontends))
	}
	for _, frontend := range service.Frontends {
		unspecified := frontend.Address.Addr().IsUnspecified()
		if unspecified != (frontend.Kind == compile.NodePort) {
			t.Errorf("%s: the %s has the address %s", service.ID, frontend.Kind, frontend.Address)
		}
		checkAddress(t, service.ID, frontend.Address)
	}
	for _, backends := range [][]compile.Backend{service.Inside, service.Outside} {
		for i, backend := range backends {
			checkAddress(t, service.ID, backend.Address)
			if i > 0 && backends[i-1].Address.Compare(backend.Address) >= 0 {
				t.Errorf("%s: backends out of order: %v", service.ID, backends)
			}
			if a := backend.Address.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() {
				t.Errorf("%s: the backend %s (rule E09)", service.ID, a)
			}
		}
	}
}

// checkAddress checks that an address is whole, and of the ID's family.
func checkAddress(t *testing.T, id compile.ID, address netip.AddrPort) {
	want := discoveryv1.AddressTypeIPv6
	if address.Addr().Is4() {
		want = discoveryv1.AddressTypeIPv4
	}
	if !address.IsValid() || address.Port() == 0 || id.Family.String() != string(want) || address.Addr().Is4In6() || address.Addr().Zone() != "" {
		t.Errorf("%s has the address %s", id, address)
	}
}
