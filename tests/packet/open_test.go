package packet

import (
	"testing"

	"github.com/weir-lb/weir/maps"
)

// A new flow to a local backend gets the backend's address and goes up the stack, which forwards it: the
// client's address and the TTL stay (rules N05, X01).
func TestN05NewFlowToLocalBackend(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
		tr.expectCounters(maps.PacketCounters{FlowNew: 1})
	})
}

// A new flow to a remote backend leaves from the node's address and a port of the SNAT range, one hop older
// (rules N05, P04).
func TestN05NewFlowToRemoteBackend(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		result := tr.run("eth0", in.Bytes())
		port := tr.tupleOf(result).from.Port()
		if port < 61000 {
			tr.Errorf("the source port %d is not of the SNAT range", port)
		}
		want := in.translated(tr.at(tr.NodeEth0, port), tr.at(tr.Remote, targetPort))
		tr.compare(result, tr.sentVerdict(true), tr.sent(want, "eth0", gatewayMAC()).Bytes())
		tr.expectCounters(maps.PacketCounters{FlowNew: 1})
	})
}

// A remote backend behind another device is sent to from that device's address.
func TestNewFlowOutOfAnotherDevice(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		result := tr.run("eth0", in.Bytes())
		port := tr.tupleOf(result).from.Port()
		want := in.translated(tr.at(tr.NodeEth1, port), tr.at(tr.RemoteSecond, targetPort))
		tr.compare(result, tr.sentVerdict(false), tr.sent(want, "eth1", secondGatewayMAC()).Bytes())
	})
}

// A backend that is neither on this node nor routed out of it, but into a pod's device, is a local one.
func TestNewFlowRoutedToPod(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.OtherPod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
	})
}

// A backend on the node's own address is reached by the stack (rule E14).
func TestE14BackendOnNodeAddress(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.NodeEth1)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.NodeEth1, targetPort)))
	})
}

// XDP leaves to tc what it cannot send, unchanged and without opening a flow; tc sends it.
func TestXDPPassesUpWhatItCannotSend(t *testing.T) {
	for name, backend := range map[string]func(Hosts) Pair{
		"no MAC known":     func(h Hosts) Pair { return h.Silent },
		"no XDP out there": func(h Hosts) Pair { return h.RemoteFourth },
		"through a bridge": func(h Hosts) Pair { return h.RemoteBridge },
	} {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{programs: []Program{NodeXDP}}, func(tr *trial) {
				tr.serve(tr.service("web", tr.remote(backend(tr.Hosts))))
				in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
				tr.expectUntouched("eth0", in.Bytes())
				tr.expectCounters(maps.PacketCounters{XdpPassedUp: 1})
				result := tr.runProgram(NodeIngress, "eth0", in.Bytes())
				if result.Verdict != Redirect || tr.tupleOf(result).to != tr.at(backend(tr.Hosts), targetPort) {
					tr.Errorf("tc made it %s to %v", result.Verdict, tr.tupleOf(result).to)
				}
			})
		})
	}
}

// A backend that a blackhole route covers gets nothing.
func TestNewFlowIntoBlackhole(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Blackhole)))
		tr.expectDrop("eth0", tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)))
		tr.expectCounters(maps.PacketCounters{DropNoRoute: 1})
	})
}

// A device without an address of the family has none to SNAT to.
func TestNewFlowWithoutSNATAddress(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteThird)))
		tr.expectDrop("eth0", tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)))
		tr.expectCounters(maps.PacketCounters{DropSnatNoAddress: 1})
	})
}

// A source that no host can have opens no flow.
func TestNewFlowFromImpossibleSource(t *testing.T) {
	for name, source := range map[string]Pair{
		"unspecified": pair("0.0.0.0", "::"),
		"loopback":    pair("127.0.0.1", "::1"),
		"multicast":   pair("224.0.0.1", "ff02::1"),
		"reserved":    pair("255.255.255.255", "fe80::1"),
	} {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{}, func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.Pod)))
				in := tr.frame("eth0", tr.at(source, clientPort), tr.at(tr.LoadBalancer, servicePort))
				tr.expectUntouched("eth0", in.Bytes())
				tr.expectCounters(maps.PacketCounters{})
			})
		})
	}
}
