package health

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-lb/weir/controlplane/compile"
)

// TestHc4Hc5Hc6 asks both paths in every state of the proxy and of the node.
func TestHc4Hc5Hc6(t *testing.T) {
	applied := time.Now().Add(-time.Hour)
	for _, test := range []struct {
		name           string
		progress       Progress
		ineligible     bool
		healthz, livez int
	}{
		{"just started", Progress{}, false, 200, 200},
		{"just started, a change waits for the first listing", Progress{Lag: time.Hour}, false, 200, 200},
		{"up to date", Progress{Applied: applied}, false, 200, 200},
		{"a change waits", Progress{Applied: applied, Lag: 59 * time.Second}, false, 200, 200},
		{"a change is late", Progress{Applied: applied, Lag: time.Minute}, false, 503, 503},
		{"the node is about to go", Progress{Applied: applied}, true, 503, 200},
		{"both", Progress{Applied: applied, Lag: time.Hour}, true, 503, 503},
	} {
		t.Run(test.name, func(t *testing.T) {
			counted := map[string]int{}
			p := NewProxy(Options{
				Late: time.Minute, Progress: func() Progress { return test.progress }, Eligible: func() bool { return !test.ineligible },
				Answered: func(path string, code int) { counted[path] = code },
			})
			for path, want := range map[string]int{"/healthz": test.healthz, "/livez": test.livez} {
				answer := httptest.NewRecorder()
				p.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
				if answer.Code != want || counted[path] != want {
					t.Errorf("%s: %d, counted as %d, want %d", path, answer.Code, counted[path], want)
				}
				checkReport(t, path, answer.Body.Bytes(), test.progress, !test.ineligible)
			}
		})
	}
}

// checkReport holds a body against what kube-proxy says in the same state.
func checkReport(t *testing.T, path string, body []byte, progress Progress, eligible bool) {
	t.Helper()
	var said struct {
		LastUpdated, CurrentTime time.Time
		NodeEligible             *bool
		Healthy                  bool
		Status                   map[string]struct {
			LastUpdated time.Time
			Healthy     bool
		}
	}
	if err := json.Unmarshal(body, &said); err != nil {
		t.Fatal(err)
	}
	late := !progress.Applied.IsZero() && progress.Lag >= time.Minute
	if said.Healthy == late {
		t.Errorf("%s: healthy is %v: %s", path, said.Healthy, body)
	}
	if (said.NodeEligible != nil) != (path == "/healthz") || said.NodeEligible != nil && *said.NodeEligible != eligible {
		t.Errorf("%s: nodeEligible: %s", path, body)
	}
	switch {
	case progress.Applied.IsZero():
		if len(said.Status) > 0 {
			t.Errorf("%s: a status of families that were never served: %s", path, body)
		}
	case late && !said.LastUpdated.Equal(progress.Applied), !late && !said.LastUpdated.Equal(said.CurrentTime):
		t.Errorf("%s: lastUpdated: %s", path, body)
	case !said.Status["IPv4"].LastUpdated.Equal(progress.Applied) || said.Status["IPv6"].Healthy == late:
		t.Errorf("%s: status: %s", path, body)
	}
}

// freePort returns a port of the loopback address that nobody listens on.
func freePort(t *testing.T) uint16 {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return uint16(listener.Addr().(*net.TCPAddr).Port)
}

var (
	loopback = netip.MustParseAddr("127.0.0.1")
	web      = types.NamespacedName{Namespace: "default", Name: "web"}
)

func ask(port uint16) (*http.Response, string, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/any/path", port))
	if err != nil {
		return nil, "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer, string(body), err
}

// TestHc1_Services asks a Service's health check while its endpoints and the proxy change.
func TestHc1_Services(t *testing.T) {
	healthy, port := true, freePort(t)
	s := NewServices(func() bool { return healthy }, zap.NewNop())
	t.Cleanup(s.Close)
	for _, test := range []struct {
		local   int
		healthy bool
		code    int
	}{{2, true, 200}, {0, true, 503}, {1, false, 503}, {1, true, 200}} {
		healthy = test.healthy
		s.Set(map[types.NamespacedName]compile.HealthCheck{web: {Port: port, Local: test.local}}, []netip.Addr{loopback})
		answer, body, err := ask(port)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf(`{"service":{"namespace":"default","name":"web"},"localEndpoints":%d,"serviceProxyHealthy":%v}`, test.local, test.healthy)
		if answer.StatusCode != test.code || body != want {
			t.Errorf("%+v: %d %s", test, answer.StatusCode, body)
		}
		for header, want := range map[string]string{
			"Content-Type": "application/json", "X-Content-Type-Options": "nosniff",
			"X-Load-Balancing-Endpoint-Weight": strconv.Itoa(test.local),
		} {
			if got := answer.Header.Get(header); got != want {
				t.Errorf("%s is %q, want %q", header, got, want)
			}
		}
	}
	s.Set(nil, nil)
	if _, _, err := ask(port); err == nil {
		t.Error("the health check of a Service that is gone is answered")
	}
}

// TestHc3_PortTaken reports a port that cannot be listened on, and takes it when it is free.
func TestHc3_PortTaken(t *testing.T) {
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(holder.Addr().(*net.TCPAddr).Port)
	s := NewServices(func() bool { return true }, zap.NewNop())
	t.Cleanup(s.Close)
	checks := map[types.NamespacedName]compile.HealthCheck{web: {Port: port, Local: 1}}
	s.Set(checks, []netip.Addr{loopback})
	problems := s.Problems()
	if len(problems) != 1 || problems[0].Object != "Service default/web" || problems[0].Reason != "FailedToStartServiceHealthcheck" ||
		!strings.Contains(problems[0].Message, "address already in use") {
		t.Fatalf("problems: %v", problems)
	}
	holder.Close()
	s.Set(checks, []netip.Addr{loopback})
	if problems := s.Problems(); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	if _, _, err := ask(port); err != nil {
		t.Error(err)
	}
}
