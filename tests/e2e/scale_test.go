package e2e_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/weir-lb/weir/tests/e2e"
	"github.com/weir-lb/weir/tests/lab"
)

var scaleFlag = flag.Int("scale", 0, "how many Services TestScale makes (make scale); 0: it is skipped")

const (
	scaleNamespace   = "scale"
	endpointsEach    = 10
	changesCount     = 100
	kubeProxyChanges = 3 // each takes it long
	writers          = 16
	// What issue 4 asks for.
	fasterAtLeast    = 10
	changeAtMost     = 5 * time.Millisecond
	peakAtMost       = 200 << 20
	programmedLimit  = 10 * time.Minute
	kubeProxyMetrics = "http://127.0.0.1:10249/metrics"
)

// measured is what a proxy took.
type measured struct {
	all      time.Duration   // from its start until everything is programmed
	changes  []time.Duration // of one endpoint each, from the watch event
	resident int             // bytes, after the changes
	peak     int             // bytes: the most that it had resident since its start
}

func (m measured) String() string {
	slices.Sort(m.changes)
	return fmt.Sprintf("all programmed %s after the start; one change %s (median), %s (99 %%); %d MiB resident, %d MiB at its peak",
		m.all.Round(time.Millisecond), m.changes[len(m.changes)/2], m.changes[len(m.changes)*99/100], m.resident>>20, m.peak>>20)
}

// TestScale starts Weir, then kube-proxy in its nftables mode, on an API server with many Services.
func TestScale(t *testing.T) {
	if *scaleFlag == 0 {
		t.Skip("make scale runs it")
	}
	healthy(t)
	for _, agent := range cluster.agents {
		if err := agent.Stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := agent.CLI("cleanup"); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	populate(t, *scaleFlag)
	t.Logf("%d Services with %d endpoints each are made in %s", *scaleFlag, endpointsEach, time.Since(begin).Round(time.Second))

	weir := scaleWeir(t, cluster.agents[0])
	t.Logf("Weir:       %s", weir)
	kubeProxy := scaleKubeProxy(t, cluster.lab.Node2)
	t.Logf("kube-proxy: %s", kubeProxy)

	if ratio := float64(kubeProxy.all) / float64(weir.all); ratio < fasterAtLeast {
		t.Errorf("Weir programs everything %.1f times as fast as kube-proxy, not %d times", ratio, fasterAtLeast)
	}
	if median := weir.changes[len(weir.changes)/2]; median > changeAtMost {
		t.Errorf("one change takes Weir %s, more than %s", median, changeAtMost)
	}
	if weir.peak > peakAtMost {
		t.Errorf("Weir has had %d MiB resident, more than %d", weir.peak>>20, peakAtMost>>20)
	}
}

// populate makes Services with hand-made EndpointSlices. They go with the control plane.
func populate(t *testing.T, count int) {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: scaleNamespace}}
	if _, err := cluster.Admin.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(writers)
	for i := range count {
		group.Go(func() error { return createNumbered(ctx, i) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func createNumbered(ctx context.Context, number int) error {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: numbered(number)},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
	}
	if _, err := cluster.Admin.CoreV1().Services(scaleNamespace).Create(ctx, service, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err := cluster.Admin.DiscoveryV1().EndpointSlices(scaleNamespace).Create(ctx, numberedSlice(number, 0), metav1.CreateOptions{})
	return err
}

func numbered(number int) string { return fmt.Sprintf("service-%05d", number) }

// numberedSlice returns the slice of a Service. Its last endpoint differs with the version.
func numberedSlice(number, version int) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: numbered(number), Labels: map[string]string{discoveryv1.LabelServiceName: numbered(number)}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for i := range endpointsEach {
		host := number*endpointsEach + i
		address := fmt.Sprintf("10.%d.%d.%d", 128+host>>16, host>>8&255, host&255)
		if i == endpointsEach-1 && version > 0 {
			address = fmt.Sprintf("10.127.%d.%d", version>>8, version&255)
		}
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{address}, NodeName: ptr.To("elsewhere"),
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: scaleNamespace, Name: fmt.Sprintf("%s-%d", numbered(number), i)},
		})
	}
	return slice
}

// change changes one endpoint.
func change(t *testing.T, version int) {
	t.Helper()
	number := version * 37 % *scaleFlag
	_, err := cluster.Admin.DiscoveryV1().EndpointSlices(scaleNamespace).Update(t.Context(), numberedSlice(number, version), metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// scaleWeir measures Weir, by what the agent says of itself: when the maps were written, and how long after the watch event.
func scaleWeir(t *testing.T, agent *e2e.Agent) measured {
	t.Helper()
	begin := time.Now()
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	var m measured
	last := awaitWrite(t, agent, time.Time{})
	m.all = last.Agent.Sync.Last.Sub(begin)
	if frontends := last.Agent.Sync.Frontends; frontends <= *scaleFlag {
		t.Fatalf("only %d frontends are there", frontends)
	}
	for version := range changesCount {
		change(t, version+1)
		last = awaitWrite(t, agent, last.Agent.Sync.Last)
		m.changes = append(m.changes, last.Agent.Sync.Latency)
	}
	m.resident, m.peak = memory(t, agent.PID())
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	return m
}

// awaitWrite waits for a write of the maps after which no change waits.
func awaitWrite(t *testing.T, agent *e2e.Agent, after time.Time) e2e.Status {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < programmedLimit; time.Sleep(10 * time.Millisecond) {
		status, err := agent.Status()
		if err == nil && status.Agent.Sync.Synced && status.Agent.Sync.Last.After(after) {
			return status
		}
	}
	t.Fatalf("the maps are not written within %s", programmedLimit)
	return e2e.Status{}
}

// scaleKubeProxy measures kube-proxy, by its metrics: when it had last written the rules, and how long that took. Before it
// writes a change it waits for others, a second by default; that is not counted.
func scaleKubeProxy(t *testing.T, node *lab.Host) measured {
	t.Helper()
	proxy, err := cluster.NewKubeProxy(node, "nftables")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Stop(); err != nil {
			t.Error(err)
		}
	})
	var m measured
	last := awaitSync(t, node, 0)
	m.all = time.Unix(0, int64(last.at*1e9)).Sub(begin)
	t.Logf("kube-proxy: all programmed %s after the start", m.all.Round(time.Millisecond))
	if rules := rulesOf(t, node); rules < *scaleFlag {
		t.Fatalf("only %d service IPs are in the rules", rules)
	}
	for version := range kubeProxyChanges {
		change(t, changesCount+version+1)
		next := awaitSync(t, node, last.count)
		m.changes = append(m.changes, time.Duration((next.sum-last.sum)/(next.count-last.count)*1e9))
		last = next
	}
	m.resident, m.peak = memory(t, proxy.PID())
	return m
}

// synced is what kube-proxy says of writing its IPv4 rules.
type synced struct {
	at, sum, count float64 // seconds since 1970; seconds; times
}

// awaitSync waits until the rules have been written more often.
func awaitSync(t *testing.T, node *lab.Host, more float64) synced {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < programmedLimit; time.Sleep(10 * time.Millisecond) {
		text, err := get(node, kubeProxyMetrics)
		if err != nil {
			continue
		}
		s := synced{
			at:    metric(text, `kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`),
			sum:   metric(text, `kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family="IPv4"}`),
			count: metric(text, `kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}`),
		}
		if s.count > more && s.at > 0 {
			return s
		}
	}
	t.Fatalf("kube-proxy has not written its rules within %s", programmedLimit)
	return synced{}
}

// metric returns the value of a metric; 0 if there is none.
func metric(text, name string) (value float64) {
	for line := range strings.Lines(text) {
		if rest, found := strings.CutPrefix(line, name+" "); found {
			_, _ = fmt.Sscan(rest, &value) // 0 is as good as an error here
		}
	}
	return value
}

// rulesOf counts the addresses that kube-proxy's rules serve.
func rulesOf(t *testing.T, node *lab.Host) int {
	t.Helper()
	text, err := node.Run("", "nft", "list", "map", "ip", "kube-proxy", "service-ips")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(text, "goto")
}

// memory returns how much memory a process has resident, and the most that it has had.
func memory(t *testing.T, pid int) (resident, peak int) {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		for name, value := range map[string]*int{"VmRSS:": &resident, "VmHWM:": &peak} {
			if rest, found := strings.CutPrefix(line, name); found {
				_, _ = fmt.Sscan(rest, value) // 0 is as good as an error here
			}
		}
	}
	if resident == 0 || peak == 0 {
		t.Fatalf("process %d does not say how much memory it has", pid)
	}
	return resident << 10, peak << 10
}
