package compile_test

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/weir-lb/weir/controlplane"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/source"
	"github.com/weir-lb/weir/controlplane/store"
	weirmaps "github.com/weir-lb/weir/maps"
)

// TestRules runs testdata/*.txtar, a file for each rule of semantics.md. In a script,
//
//	compile [-node NAME] [-proxy-name NAME] [-forward snat|dsr] FILE...
//
// makes the files all the objects that there are, and prints what the maps then hold and what is wrong. What an
// earlier compile of the same script brought goes, as it would with a live change; the outcome must be the same as
// that of an agent that starts with the new files.
//
//	addresses
//
// prints what then becomes of packets to addresses of Services that no frontend is for (rule C05).
//
// UPDATE=1 go test ./controlplane/compile rewrites the expected output.
func TestRules(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("UPDATE") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"compile":   runCompile,
			"addresses": printAddresses,
		},
		Setup: func(env *testscript.Env) error {
			env.Values[worldsKey{}] = map[string]*world{}
			return nil
		},
	})
}

type worldsKey struct{}

// runCompile is the script command.
func runCompile(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("compile has no negation")
	}
	node, proxyName, dsr := "n1", "", false
	for len(args) > 1 && strings.HasPrefix(args[0], "-") {
		switch args[0] {
		case "-node":
			node = args[1]
		case "-proxy-name":
			proxyName = args[1]
		case "-forward":
			dsr = args[1] == "dsr"
		default:
			ts.Fatalf("unknown option %s", args[0])
		}
		args = args[2:]
	}
	content := map[string][]byte{}
	for _, name := range args {
		content[name] = []byte(ts.ReadFile(name))
	}
	worlds := ts.Value(worldsKey{}).(map[string]*world)
	id := fmt.Sprintf("%s/%s/%v", node, proxyName, dsr)
	if worlds[id] == nil {
		worlds[id] = newWorld(node, proxyName, dsr)
		ts.Defer(worlds[id].stop)
	}
	live, err := worlds[id].become(content)
	ts.Check(err)
	fresh := newWorld(node, proxyName, dsr)
	defer fresh.stop()
	anew, err := fresh.become(content)
	ts.Check(err)
	if live != anew {
		ts.Fatalf("after live changes:\n%s\nfrom the start:\n%s", live, anew)
	}
	if live, anew := worlds[id].addresses.describe(), fresh.addresses.describe(); live != anew {
		ts.Fatalf("addresses after live changes:\n%s\nfrom the start:\n%s", live, anew)
	}
	ts.Setenv("world", id)
	fmt.Fprint(ts.Stdout(), live)
}

// printAddresses is the script command; it is about the last compile.
func printAddresses(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("addresses has neither a negation nor arguments")
	}
	worlds := ts.Value(worldsKey{}).(map[string]*world)
	fmt.Fprint(ts.Stdout(), worlds[ts.Getenv("world")].addresses.describe())
}

// world is an agent without its ends: no directory, no maps.
type world struct {
	store      *store.Store
	controller *controlplane.Controller
	maps       *fakeMaps
	addresses  *fakeAddresses
	stop       func()
	objects    store.Batch
	problems   []compile.Problem // of the manifests
}

// become makes files all there is, and describes the outcome.
func (w *world) become(files map[string][]byte) (string, error) {
	next, problems := source.Parse(files)
	w.problems = problems
	change := store.Batch{
		Arrived:  time.Now(),
		Services: difference(w.objects.Services, next.Services),
		Slices:   difference(w.objects.Slices, next.Slices),
		Nodes:    difference(w.objects.Nodes, next.Nodes),
		Ranges:   difference(w.objects.Ranges, next.Ranges),
	}
	w.objects = next
	w.store.Update(change)
	w.store.Synced()
	for range 1000 {
		if status := w.controller.Status(); status.Synced && status.Lag == 0 {
			return w.describe(), nil
		}
		time.Sleep(time.Millisecond)
	}
	return "", fmt.Errorf("the controller did not finish: %+v", w.controller.Status())
}

// difference returns what is new, and nil for what is gone.
func difference[K comparable, V any](old, now map[K]*V) map[K]*V {
	change := maps.Clone(now)
	for key := range old {
		if _, still := now[key]; !still {
			change[key] = nil
		}
	}
	return change
}

// describe prints the services and the problems.
func (w *world) describe() string {
	var out strings.Builder
	for _, service := range w.maps.all() {
		describeService(&out, service)
	}
	checks := w.controller.HealthChecks()
	for _, key := range slices.SortedFunc(maps.Keys(checks), func(a, b store.Key) int { return strings.Compare(a.String(), b.String()) }) {
		fmt.Fprintf(&out, "health check of %s: port %d, %d local\n", key, checks[key].Port, checks[key].Local)
	}
	problems := append(w.problems, w.controller.Status().Problems...)
	if len(problems) > 0 {
		fmt.Fprintln(&out, "problems")
	}
	for _, problem := range problems {
		fmt.Fprintf(&out, "  %s: %s: %s\n", problem.Object, problem.Reason, problem.Message)
	}
	return out.String()
}

var algorithmNames = map[weirmaps.Algorithm]string{
	weirmaps.AlgorithmRandom: "random", weirmaps.AlgorithmMaglev: "maglev", weirmaps.AlgorithmLeastConnections: "least-connections",
}

func describeService(out io.Writer, service compile.Service) {
	fmt.Fprintln(out, service.ID)
	for _, frontend := range service.Frontends {
		fmt.Fprintf(out, "  %-13s %s\n", frontend.Kind, frontend.Address)
	}
	describeBackends(out, "inside", service.Inside)
	if slices.Equal(service.Inside, service.Outside) {
		fmt.Fprintln(out, "  outside       as inside")
	} else {
		describeBackends(out, "outside", service.Outside)
	}
	if service.NoEndpoints {
		fmt.Fprintln(out, "  no endpoints: reject")
	}
	describeServing(out, service)
	if service.Restricted {
		fmt.Fprintf(out, "  sources       %v\n", service.Sources)
	}
	if service.InsideAlgorithm != weirmaps.AlgorithmRandom || service.OutsideAlgorithm != weirmaps.AlgorithmMaglev {
		fmt.Fprintf(out, "  algorithm     %s inside, %s outside\n", algorithmNames[service.InsideAlgorithm], algorithmNames[service.OutsideAlgorithm])
	}
	if service.AffinityTimeout != 0 {
		fmt.Fprintf(out, "  affinity      %v\n", service.AffinityTimeout)
	}
}

// describeServing prints the endpoints that keep the flows they have, and get no new ones.
func describeServing(out io.Writer, service compile.Service) {
	for _, address := range service.Serving {
		is := func(b compile.Backend) bool { return b.Address == address }
		if !slices.ContainsFunc(service.Inside, is) && !slices.ContainsFunc(service.Outside, is) {
			fmt.Fprintf(out, "  keeps flows   %s\n", address)
		}
	}
}

func describeBackends(out io.Writer, side string, backends []compile.Backend) {
	if len(backends) == 0 {
		fmt.Fprintf(out, "  %-13s -\n", side)
	}
	for _, backend := range backends {
		line := fmt.Sprintf("  %-13s %s", side, backend.Address)
		if backend.Local {
			line += " local"
		}
		if backend.Terminating {
			line += " terminating"
		}
		if backend.Tunnel {
			line += " tunnel"
		}
		if backend.Weight != 0 {
			line += fmt.Sprintf(" weight %d", backend.Weight)
		}
		fmt.Fprintln(out, line)
	}
}
