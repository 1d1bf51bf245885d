package sockets

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/loader"
	weirmaps "github.com/weir-lb/weir/maps"
)

// kernel has some sockets.
type kernel struct {
	sockets map[compile.Protocol][]loader.ConnectedSocket
	closed  []uint64
}

func (k *kernel) List(protocol int) ([]loader.ConnectedSocket, error) {
	return k.sockets[compile.Protocol(protocol)], nil
}

func (k *kernel) Destroy(_ int, cookies []uint64) error {
	k.closed = append(k.closed, cookies...)
	return nil
}

// some are Services.
type some []compile.Service

func (s some) Find(address netip.AddrPort, protocol compile.Protocol) (service compile.Service, known bool) {
	for _, one := range s {
		if one.ID.Protocol == protocol && slices.Contains(one.Frontends, compile.Frontend{Address: address}) {
			return one, true
		}
	}
	return service, false
}

func (s some) EndsTCP() bool {
	return slices.ContainsFunc(s, func(one compile.Service) bool { return one.RemovedEndpoints.End })
}

func connected(cookie uint64, frontend, backend string) loader.ConnectedSocket {
	f, b := netip.MustParseAddrPort(frontend), netip.MustParseAddrPort(backend)
	return loader.ConnectedSocket{Cookie: cookie, Peer: weirmaps.SocketPeer{
		Frontend: weirmaps.AddressOf(f.Addr()), FrontendPort: f.Port(), Backend: weirmaps.AddressOf(b.Addr()), BackendPort: b.Port(),
	}}
}

func service(protocol compile.Protocol, removed compile.RemovedEndpoints, frontend string, backends ...string) compile.Service {
	s := compile.Service{
		ID:               compile.ID{Name: frontend, Protocol: protocol},
		Frontends:        []compile.Frontend{{Address: netip.MustParseAddrPort(frontend)}},
		RemovedEndpoints: removed,
	}
	for _, backend := range backends {
		s.Serving = append(s.Serving, netip.MustParseAddrPort(backend))
	}
	return s
}

// TestFailuresAreToldOnce: namespaces that may not be looked at stay so for hours.
func TestFailuresAreToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, told := observer.New(zap.InfoLevel)
		looks, failure := 0, errors.New("may not be looked at")
		visit := func(func() error) error {
			looks++
			return failure
		}
		c := New(Options{Kernel: &kernel{}, Log: zap.New(core), Visit: visit, Services: some{}})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run(ctx) })
		after := func(failed error, wantTold int) {
			t.Helper()
			failure = failed
			c.Touch()
			time.Sleep(time.Hour)
			synctest.Wait()
			if n := told.Len(); n != wantTold {
				t.Errorf("after an hour of %v there are %d lines, want %d", failed, n, wantTold)
			}
		}
		after(failure, 1)
		if looks < 50 || looks > 100 {
			t.Errorf("it was looked %d times in an hour", looks)
		}
		after(errors.New("something else"), 2)
		after(nil, 2)
		after(failure, 2)
		after(errors.New("something else"), 3)
		cancel()
		running.Wait()
	})
}

// TestLook closes what is to be closed (rules D01, D05, X01) and nothing else.
func TestLook(t *testing.T) {
	k := &kernel{sockets: map[compile.Protocol][]loader.ConnectedSocket{
		compile.UDP: {
			connected(1, "10.96.0.1:53", "10.1.1.1:53"),          // still a backend
			connected(2, "10.96.0.1:53", "10.1.1.2:53"),          // left this service, and is in the other
			connected(3, "10.96.0.2:53", "10.1.1.2:53"),          // in that
			connected(4, "10.96.0.9:53", "10.1.1.1:53"),          // of a service that is gone
			connected(5, "192.0.2.1:30053", "10.1.1.2:53"),       // left the NodePort's
			connected(6, "[fd00:96::1]:53", "[fd00:10::9]:53"),   // IPv6
			connected(7, "[2001:db8::1]:30053", "[fd00::1]:53"),  // a NodePort, still a backend
			connected(8, "[2001:db8::1]:30053", "[fd00::99]:53"), // and one that left
		},
		compile.TCP: {
			connected(11, "10.96.0.1:80", "10.1.1.9:80"), // keeps
			connected(12, "10.96.0.2:80", "10.1.1.9:80"), // resets
			connected(13, "10.96.0.3:80", "10.1.1.9:80"), // drains
			connected(14, "10.96.0.9:80", "10.1.1.9:80"), // of a service that is gone
		},
	}}
	reset, drain := compile.RemovedEndpoints{End: true}, compile.RemovedEndpoints{End: true, After: 30 * time.Second}
	keep := compile.RemovedEndpoints{}
	c := New(Options{
		Kernel: k, Log: zaptest.NewLogger(t), Visit: func(f func() error) error { return f() },
		Services: some{
			service(compile.UDP, keep, "10.96.0.1:53", "10.1.1.1:53"), service(compile.UDP, keep, "10.96.0.2:53", "10.1.1.2:53"),
			service(compile.UDP, keep, "0.0.0.0:30053", "10.1.1.1:53"), service(compile.UDP, keep, "[fd00:96::1]:53", "[fd00:10::1]:53"),
			service(compile.UDP, keep, "[::]:30053", "[fd00::1]:53"), service(compile.TCP, keep, "10.96.0.1:80"),
			service(compile.TCP, reset, "10.96.0.2:80"), service(compile.TCP, drain, "10.96.0.3:80"),
		},
	})
	now := time.Now()
	due, err := c.look(now)
	slices.Sort(k.closed)
	if want := []uint64{2, 4, 5, 6, 8, 12}; err != nil || !slices.Equal(k.closed, want) || due != 30*time.Second {
		t.Errorf("closed %v, want %v; the next is due in %s (%v)", k.closed, want, due, err)
	}
	k.closed = nil
	if due, _ = c.look(now.Add(10 * time.Second)); due != 20*time.Second || slices.Contains(k.closed, 13) {
		t.Errorf("after 10 s closed %v, and the next is due in %s", k.closed, due)
	}
	if c.look(now.Add(31 * time.Second)); !slices.Contains(k.closed, 13) {
		t.Errorf("after 31 s closed %v", k.closed)
	}
}
