package kubernetes

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-lb/weir/controlplane/compile"
)

// lookFor is for how long the Node that this machine may be is looked for.
const lookFor = 5 * time.Second

// lookForNode looks for another name of this machine, if the server has no Node of the one it goes by.
func (s *Source) lookForNode(ctx context.Context) {
	suggestion := ""
	if s.options.Store.Node(s.options.NodeName) == nil {
		suggestion = s.suggest(ctx)
		s.options.Log.Error("the node is not known to the API server", zap.String("node", s.options.NodeName), zap.String("perhaps", suggestion))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suggestion = suggestion
}

// suggest returns the name of a Node that has an address of this machine; empty if there is none.
func (s *Source) suggest(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	list, err := s.options.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return ""
	}
	mine := localAddresses()
	for _, node := range list.Items {
		for _, address := range node.Status.Addresses {
			if ip, err := netip.ParseAddr(address.Address); err == nil && mine[ip] {
				return node.Name
			}
		}
	}
	return ""
}

// localAddresses returns the addresses of this machine that others know it by.
func localAddresses() map[netip.Addr]bool {
	local := map[netip.Addr]bool{}
	addresses, _ := net.InterfaceAddrs()
	for _, address := range addresses {
		prefix, err := netip.ParsePrefix(address.String())
		if err == nil && prefix.Addr().IsGlobalUnicast() {
			local[prefix.Addr()] = true
		}
	}
	return local
}

// NodeMissing tells whether the server has said that there is no Node of the agent's name.
func (s *Source) NodeMissing() bool {
	s.mu.Lock()
	_, unlisted := s.unlisted[nodes]
	s.mu.Unlock()
	return !unlisted && !s.failures.failing(nodes) && s.options.Store.Node(s.options.NodeName) == nil
}

// nodeProblems says that there is no Node of the name that the agent goes by.
func (s *Source) nodeProblems() []compile.Problem {
	if !s.NodeMissing() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	advice := "name the one that this machine is with --node-name (kubectl get nodes lists them)"
	if s.suggestion != "" {
		advice = fmt.Sprintf("Node %s has an address of this machine: use --node-name %s", s.suggestion, s.suggestion)
	}
	return []compile.Problem{{
		Object: "Node " + s.options.NodeName, Reason: "NodeNotFound",
		Message: "the API server has no Node of this name, so no endpoint counts as local, and health checks fail: " + advice,
	}}
}
