package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-lb/weir/controlplane/compile"
)

// Services answers on the health check ports of Services (rules Hc1 to Hc3).
type Services struct {
	healthy func() bool // whether the proxy is
	log     *zap.Logger

	mu       sync.Mutex
	local    map[types.NamespacedName]int
	servers  map[place]*http.Server
	problems []compile.Problem
}

// place is where a Service's health check is answered. An invalid address is all of the node.
type place struct {
	service types.NamespacedName
	address netip.Addr
	port    uint16
}

// String is what is listened on.
func (p place) String() string {
	if !p.address.IsValid() {
		return fmt.Sprintf(":%d", p.port)
	}
	return netip.AddrPortFrom(p.address, p.port).String()
}

// NewServices returns health checks of no Service.
func NewServices(healthy func() bool, log *zap.Logger) *Services {
	return &Services{healthy: healthy, log: log, servers: map[place]*http.Server{}}
}

// Set makes checks those that are answered, on the given addresses; on all of the node if there are none. What
// cannot be listened on is a problem, and tried again by the next call.
func (s *Services) Set(checks map[types.NamespacedName]compile.HealthCheck, addresses []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := placesOf(checks, addresses)
	s.local = make(map[types.NamespacedName]int, len(checks))
	for service, check := range checks {
		s.local[service] = check.Local
	}
	for at, server := range s.servers {
		if !wanted[at] {
			delete(s.servers, at)
			s.closed(at, server.Close())
		}
	}
	s.problems = nil
	for _, at := range slices.SortedFunc(maps.Keys(wanted), comparePlaces) {
		if s.servers[at] != nil {
			continue
		}
		if err := s.open(at); err != nil {
			s.problems = append(s.problems, compile.Problem{
				Object: "Service " + at.service.String(), Reason: "FailedToStartServiceHealthcheck",
				Message: fmt.Sprintf("its health check cannot listen on %s: %v; load balancers take this node for dead until the port is free", at, err),
			})
		}
	}
}

func placesOf(checks map[types.NamespacedName]compile.HealthCheck, addresses []netip.Addr) map[place]bool {
	if len(addresses) == 0 {
		addresses = []netip.Addr{{}}
	}
	places := map[place]bool{}
	for service, check := range checks {
		for _, address := range addresses {
			places[place{service, address, check.Port}] = true
		}
	}
	return places
}

func comparePlaces(a, b place) int {
	return cmp.Or(strings.Compare(a.service.String(), b.service.String()), cmp.Compare(a.port, b.port), a.address.Compare(b.address))
}

func (s *Services) open(at place) error {
	listener, err := listen(context.Background(), at.String())
	if err != nil {
		return err
	}
	server := newServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.answer(w, at.service) }))
	s.servers[at] = server
	go func() { s.closed(at, server.Serve(listener)) }()
	return nil
}

func (s *Services) closed(at place, err error) {
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		s.log.Warn("serve a health check", zap.Stringer("service", at.service), zap.Stringer("address", at), zap.Error(err))
	}
}

// serviceReport is what is answered for a Service.
type serviceReport struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

func (s *Services) answer(w http.ResponseWriter, service types.NamespacedName) {
	s.mu.Lock()
	local := s.local[service]
	s.mu.Unlock()
	r := serviceReport{LocalEndpoints: local, ServiceProxyHealthy: s.healthy()}
	r.Service.Namespace, r.Service.Name = service.Namespace, service.Name
	code := http.StatusServiceUnavailable
	if local > 0 && r.ServiceProxyHealthy {
		code = http.StatusOK
	}
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(local))
	writeJSON(w, code, r)
}

// Problems lists the health checks that cannot be answered.
func (s *Services) Problems() []compile.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

// Close ends all health checks.
func (s *Services) Close() { s.Set(nil, nil) }
