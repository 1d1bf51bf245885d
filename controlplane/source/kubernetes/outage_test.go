package kubernetes

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/weir-lb/weir/controlplane/store"
)

// TestBackoffIsBounded is a server that is gone for a day: it is asked no less often in the last hour than in the first, so
// that it is followed again soon after it is back.
func TestBackoffIsBounded(t *testing.T) {
	const outage, atMost = 24 * time.Hour, 20 * time.Second
	clock := testingclock.NewFakeClock(time.Now())
	delay := backoff().DelayWithReset(clock, 2*time.Minute) // as the reflector has it
	if first := delay(); first > time.Second {
		t.Errorf("the second try is after %s", first)
	}
	tries := 0
	for begin := clock.Now(); clock.Since(begin) < outage; tries++ {
		pause := delay()
		if pause > atMost {
			t.Fatalf("after %s and %d tries the next is in %s, more than %s", clock.Since(begin), tries, pause, atMost)
		}
		clock.Step(pause)
	}
	if most := int(outage / (5 * time.Second)); tries > most {
		t.Errorf("%d tries in %s: the server is not to be hammered", tries, outage)
	}
}

// TestExpiredWatchListsAnew is a server that has forgotten since when it was watched, as after hours: what went meanwhile is
// gone, what came is there, and for what is as it was nothing is done.
func TestExpiredWatchListsAnew(t *testing.T) {
	w := newWorld(t, "", service("same", "1"), service("gone", "1"), node("node1"))
	first := watch.NewFake()
	watched := make(chan struct{}, 1)
	w.client.PrependWatchReactor("services", func(clienttesting.Action) (bool, watch.Interface, error) {
		select {
		case watched <- struct{}{}:
			return true, first, nil
		default: // the next ones are the server's
			return false, nil, nil
		}
	})
	w.run()
	if work := w.next(); len(work.Items) != 2 {
		t.Fatalf("the first work is %+v", work)
	}
	services := w.client.CoreV1().Services("default")
	if err := services.Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := services.Create(t.Context(), service("new", "2"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.idle() // nobody has said so
	expired := apierrors.NewResourceExpired("too old resource version: 1 (2)").Status()
	first.Error(&expired)

	now := map[string]*corev1.Service{}
	for len(now) < 2 {
		for _, item := range w.next().Items {
			now[item.Key.Name] = item.Service
		}
	}
	if len(now) != 2 || now["gone"] != nil || now["new"] == nil {
		t.Errorf("what has changed is %v, want that one is gone and one is new", now)
	}
	if w.store.Get(store.Key{Namespace: "default", Name: "same"}).Service == nil {
		t.Error("what is as it was is gone")
	}
	if problems := w.source.Problems(); len(problems) > 0 {
		t.Errorf("this is part of watching, and no problem: %v", problems)
	}
}

// TestTokenIsReplaced is a token that the server does not accept any more: the next request has what is in the file now.
func TestTokenIsReplaced(t *testing.T) {
	valid := "first"
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+valid {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind": "NodeList", "apiVersion": "v1"}`))
	}))
	defer server.Close()
	token, kubeconfig := filepath.Join(t.TempDir(), "token"), filepath.Join(t.TempDir(), "kubeconfig")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(valid)
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: server.URL, InsecureSkipTLSVerify: true}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"c": {TokenFile: token}},
		Contexts:       map[string]*clientcmdapi.Context{"c": {Cluster: "c", AuthInfo: "c"}},
		CurrentContext: "c",
	}, kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, _, err := Connection{Kubeconfig: kubeconfig}.Client()
	if err != nil {
		t.Fatal(err)
	}
	list := func() error {
		_, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		return err
	}
	if err := list(); err != nil {
		t.Fatal(err)
	}
	valid = "second"
	write(valid)
	if err := list(); !apierrors.IsUnauthorized(err) {
		t.Fatalf("the token of before is accepted: %v", err)
	}
	if err := list(); err != nil {
		t.Errorf("the new token is not used: %v", err)
	}
}
