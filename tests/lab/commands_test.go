package lab_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// statusOutput is what the tests read of `weir status -o json` (docs/cli.md).
type statusOutput struct {
	Healthy bool     `json:"healthy"`
	Reasons []string `json:"reasons"`
	Agent   struct {
		Running bool           `json:"running"`
		PID     int            `json:"pid"`
		Changes map[string]int `json:"changes"`
		Sync    struct {
			Synced bool `json:"synced"`
			Writes int  `json:"writes"`
		} `json:"sync"`
	} `json:"agent"`
	Counters map[string]uint64 `json:"counters"`
}

// serviceOutput is what the tests read of `weir services -o json`.
type serviceOutput struct {
	Name      string `json:"name"`
	Frontends []struct {
		Address string `json:"address"`
	} `json:"frontends"`
	Backends []struct {
		Address string `json:"address"`
		Local   bool   `json:"local"`
	} `json:"backends"`
	Traffic struct {
		Flows uint64 `json:"flows"`
	} `json:"traffic"`
}

// flowOutput is what the tests read of `weir flows -o json`.
type flowOutput struct {
	Client   netip.AddrPort `json:"client"`
	Frontend netip.AddrPort `json:"frontend"`
	Source   netip.AddrPort `json:"source"`
	Backend  netip.AddrPort `json:"backend"`
	State    string         `json:"state"`
	Action   string         `json:"action"`
	Whole    bool           `json:"whole"`
}

// readJSON runs a reading command and decodes what it prints.
func readJSON[T any](t *testing.T, c *cluster, args ...string) T {
	t.Helper()
	output, err := c.agent.CLI(append(args, "-o", "json")...)
	if err != nil {
		t.Fatal(err)
	}
	var decoded T
	if err := json.Unmarshal([]byte(output), &decoded); err != nil {
		t.Fatalf("weir %s -o json: %v: %s", strings.Join(args, " "), err, output)
	}
	return decoded
}

// waitHealthy waits until the agent says that all is well, and returns all it says.
func waitHealthy(t *testing.T, c *cluster) statusOutput {
	t.Helper()
	var got statusOutput
	eventually(t, 10*time.Second, func() error {
		got = readJSON[statusOutput](t, c, "status")
		if !got.Healthy || !got.Agent.Running || !got.Agent.Sync.Synced {
			return fmt.Errorf("not healthy: %q", got.Reasons)
		}
		return nil
	})
	return got
}

// TestCommands reads status, services and flows while an agent runs, and after it has ended.
func TestCommands(t *testing.T) {
	t.Parallel()
	c := own(t, lab.Options{})
	s := c.serve(t, lab.AllKinds, c.Local()[0], c.Remote()[0])
	waitHealthy(t, c)
	to := s.Frontend(c.Lab, compile.LoadBalancer, compile.IPv4)
	var conns []*lab.Conn
	for range 20 {
		conn := dial(t, c.Client, compile.TCP, netip.AddrPort{}, to)
		askOn(t, conn)
		askOn(t, conn)
		conns = append(conns, conn)
	}
	expectService(t, c, s, uint64(len(conns)))
	for _, conn := range conns {
		expectFlow(t, c, conn, to)
	}
	if err := c.agent.Terminate(); err != nil {
		t.Error(err)
	}
	if got := readJSON[statusOutput](t, c, "status"); got.Healthy || got.Agent.Running || len(got.Reasons) == 0 {
		t.Errorf("no agent runs, and status says %+v", got)
	}
	expectService(t, c, s, uint64(len(conns)))
	expectFlow(t, c, conns[0], to)
}

// expectService fails the test unless services shows the TCP port of the service over IPv4 as it is.
func expectService(t *testing.T, c *cluster, s lab.Service, flows uint64) {
	t.Helper()
	name := "default/" + s.Name + ":tcp/TCP/IPv4"
	listed := readJSON[[]serviceOutput](t, c, "services", "--interval", "0")
	i := slices.IndexFunc(listed, func(o serviceOutput) bool { return o.Name == name })
	if i < 0 {
		t.Fatalf("services does not list %s: %+v", name, listed)
	}
	var frontends, backends []string
	for _, f := range listed[i].Frontends {
		frontends = append(frontends, f.Address)
	}
	for _, b := range listed[i].Backends {
		backends = append(backends, fmt.Sprintf("%s local %t", b.Address, b.Local))
	}
	wantFrontends := []string{fmt.Sprintf("*:%d", s.NodePort())}
	for _, kind := range []compile.FrontendKind{compile.ClusterIP, compile.LoadBalancer, compile.ExternalIP} {
		wantFrontends = append(wantFrontends, s.Frontend(c.Lab, kind, compile.IPv4).String())
	}
	wantBackends := []string{
		fmt.Sprintf("%s:%d local true", s.Pods[0].IPv4, lab.TCPPort),
		fmt.Sprintf("%s:%d local false", s.Pods[1].IPv4, lab.TCPPort),
	}
	for _, list := range [][]string{frontends, wantFrontends, backends, wantBackends} {
		slices.Sort(list)
	}
	if !slices.Equal(frontends, wantFrontends) || !slices.Equal(backends, wantBackends) {
		t.Errorf("services says %v with %v, want %v with %v", frontends, backends, wantFrontends, wantBackends)
	}
	if listed[i].Traffic.Flows != flows {
		t.Errorf("services counts %d flows, want %d", listed[i].Traffic.Flows, flows)
	}
}

// expectFlow fails the test unless flows shows the connection as the server sees it.
func expectFlow(t *testing.T, c *cluster, conn *lab.Conn, to netip.AddrPort) {
	t.Helper()
	answer := askOn(t, conn)
	client := conn.LocalAddrPort()
	listed := readJSON[[]flowOutput](t, c, "flows", "--client", client.String())
	if len(listed) != 1 {
		t.Fatalf("flows lists %d flows of %s: %+v", len(listed), client, listed)
	}
	want := flowOutput{Client: client, Frontend: to, Source: answer.Client, State: "established", Action: "stack", Whole: true}
	for _, pod := range c.Web {
		if pod.Role == answer.Server {
			want.Backend = netip.AddrPortFrom(pod.IPv4, lab.TCPPort)
		}
	}
	if answer.Client.Addr() == c.Inner(compile.IPv4) {
		want.Action = "forward"
	}
	if listed[0] != want {
		t.Errorf("flows says %+v, want %+v", listed[0], want)
	}
}

// TestAgentRestartedChangesNothing starts the agent again over what its predecessor left: nothing is written, and no
// program touched.
func TestAgentRestartedChangesNothing(t *testing.T) {
	t.Parallel()
	for _, topology := range topologies {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			c := own(t, topology.options, topology.agent...)
			s := c.serve(t, lab.AllKinds, c.Web...)
			var first statusOutput
			eventually(t, 10*time.Second, func() error {
				if first = waitHealthy(t, c); first.Agent.Sync.Writes == 0 || first.Agent.Changes["attached"] == 0 {
					return fmt.Errorf("the first agent says that it wrote or attached nothing: %+v", first.Agent)
				}
				return nil
			})
			if err := c.agent.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := c.agent.Start(); err != nil {
				t.Fatal(err)
			}
			var second statusOutput
			eventually(t, 10*time.Second, func() error {
				if second = waitHealthy(t, c); second.Agent.PID == first.Agent.PID {
					return errors.New("the second agent has not said anything yet")
				}
				return nil
			})
			if second.Agent.Sync.Writes != 0 {
				t.Errorf("the second agent wrote %d times", second.Agent.Sync.Writes)
			}
			for what, n := range second.Agent.Changes {
				if n != 0 {
					t.Errorf("the second agent has %s %d programs", what, n)
				}
			}
			ask(t, c.Client, compile.TCP, s.Frontend(c.Lab, compile.NodePort, compile.IPv4), s.Pods...)
		})
	}
}
