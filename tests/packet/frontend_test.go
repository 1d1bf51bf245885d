package packet

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Every kind of frontend leads to the backend from outside (rules C01, L07, N01).
func TestFrontendKinds(t *testing.T) {
	frontends := map[string]struct {
		host func(Hosts) Pair
		port uint16
	}{
		"cluster IP":      {func(h Hosts) Pair { return h.ClusterIP }, servicePort},
		"load balancer":   {func(h Hosts) Pair { return h.LoadBalancer }, servicePort},
		"external IP":     {func(h Hosts) Pair { return h.External }, servicePort},
		"node port":       {func(h Hosts) Pair { return h.NodeEth0 }, nodePort},
		"other node port": {func(h Hosts) Pair { return h.NodeEth1 }, nodePort},
	}
	for name, frontend := range frontends {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{}, func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.Pod)))
				in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(frontend.host(tr.Hosts), frontend.port))
				tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
			})
		})
	}
}

// What is no frontend passes untouched: another port of a VIP (rule L09), a NodePort on an address that is
// not the node's, the service's port on the node's address, the unspecified address itself.
func TestNoFrontend(t *testing.T) {
	destinations := map[string]struct {
		host func(Hosts) Pair
		port uint16
	}{
		"another port of a VIP":      {func(h Hosts) Pair { return h.LoadBalancer }, servicePort + 1},
		"node port elsewhere":        {func(h Hosts) Pair { return h.Remote }, nodePort},
		"service port on the node":   {func(h Hosts) Pair { return h.NodeEth0 }, servicePort},
		"node port of no address":    {func(Hosts) Pair { return pair("0.0.0.0", "::") }, nodePort},
		"node port of every address": {func(Hosts) Pair { return pair("255.255.255.255", "ff02::1") }, nodePort},
	}
	for name, destination := range destinations {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{}, func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.Pod)))
				to := tr.at(destination.host(tr.Hosts), destination.port)
				tr.expectUntouched("eth0", tr.frame("eth0", tr.at(tr.Client, clientPort), to).Bytes())
				tr.expectCounters(maps.PacketCounters{})
			})
		})
	}
}

// The same address and port is another frontend for the other protocol (rule C08).
func TestC08OtherProtocol(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.Protocol = compile.TCP + compile.UDP - tr.protocol
		tr.expectUntouched("eth0", in.Bytes())
	})
}

// A client's tuple goes to the same backend however it is looked at: at XDP, at tc, and once more when its
// flow has been forgotten.
func TestMaglevPickIsStable(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeIngress}}, func(tr *trial) {
		web := tr.service("web", tr.local(tr.Pod), tr.local(tr.OtherPod), tr.local(tr.BarePod))
		tr.serve(web)
		picked := make(map[uint16]tuple)
		for port := uint16(clientPort); port < clientPort+64; port++ {
			in := tr.frame("eth0", tr.at(tr.Client, port), tr.at(tr.LoadBalancer, servicePort))
			picked[port] = tr.tupleOf(tr.run("eth0", in.Bytes()))
		}
		tr.checkState()
		tr.begin()
		tr.serve(web)
		backends := make(map[tuple]int)
		for port, before := range picked {
			in := tr.frame("eth0", tr.at(tr.Client, port), tr.at(tr.LoadBalancer, servicePort))
			if after := tr.tupleOf(tr.runProgram(NodeXDP, "eth0", in.Bytes())); after != before {
				tr.Errorf("port %d goes to %v, before to %v", port, after, before)
			}
			backends[tuple{to: before.to}]++
		}
		if len(backends) != 3 {
			tr.Errorf("64 clients reach %d of 3 backends", len(backends))
		}
	})
}

// A frontend whose record is of another generation, twice, drops the packet: the record is not the frontend's.
func TestStaleFrontend(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		key := maps.FrontendKeyOf(tr.at(tr.LoadBalancer, servicePort), uint8(tr.protocol))
		var frontend maps.Frontend
		if err := tr.Maps.Frontends.Lookup(&key, &frontend); err != nil {
			tr.Fatal(err)
		}
		frontend.Seal++
		if err := tr.Maps.Frontends.Put(&key, &frontend); err != nil {
			tr.Fatal(err)
		}
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expectUnmodelled("eth0", in, Drop)
		tr.expectCounters(maps.PacketCounters{DropStaleService: 1})
		tr.model.counters.DropStaleService++
	})
}

// A slot that names an unused backend drops the packet.
func TestStaleBackend(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		for index := range tr.Maps.Backends.MaxEntries() {
			if err := tr.Maps.Backends.Put(index, &maps.Backend{}); err != nil {
				tr.Fatal(err)
			}
		}
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expectUnmodelled("eth0", in, Drop)
		tr.expectCounters(maps.PacketCounters{DropStaleBackend: 1})
		tr.model.counters.DropStaleBackend++
	})
}

// expectUnmodelled runs a packet in a world that has been broken on purpose, of which the model knows nothing.
func (tr *trial) expectUnmodelled(device string, frame Frame, verdict Verdict) Result {
	tr.Helper()
	result, err := tr.World.Run(tr.program, tr.Device(device), frame.Bytes())
	if err != nil {
		tr.Fatal(err)
	}
	if result.Verdict != verdict {
		tr.Fatalf("the verdict is %s, not %s", result.Verdict, verdict)
	}
	return result
}
