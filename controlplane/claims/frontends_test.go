package claims

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-lb/weir/controlplane/compile"
)

// service makes one that claims external addresses, created at a second.
func service(name string, created int64, addresses ...string) *compile.Service {
	s := &compile.Service{
		ID:      compile.ID{Namespace: "default", Name: name, Protocol: compile.TCP, Family: compile.IPv4},
		Created: time.Unix(created, 0),
	}
	for _, address := range addresses {
		s.Frontends = append(s.Frontends, compile.Frontend{Kind: compile.ExternalIP, Address: netip.MustParseAddrPort(address)})
	}
	return s
}

// owned returns the addresses that a service really has.
func owned(f *Frontends, name string) []string {
	var addresses []string
	s := f.Get(service(name, 0).ID)
	if s == nil {
		return nil
	}
	for _, frontend := range s.Frontends {
		addresses = append(addresses, frontend.Address.String())
	}
	return addresses
}

func names(ids []compile.ID) []string {
	var names []string
	for _, id := range ids {
		names = append(names, id.Name)
	}
	return names
}

func expectOwned(t *testing.T, f *Frontends, name string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, owned(f, name)); diff != "" {
		t.Errorf("%s owns (-want +got):\n%s", name, diff)
	}
}

func expectAffected(t *testing.T, got []compile.ID, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, names(got)); diff != "" {
		t.Errorf("affected (-want +got):\n%s", diff)
	}
}

const shared, alone = "192.0.2.1:80", "192.0.2.2:80"

func TestOldestWins(t *testing.T) {
	f := NewFrontends()
	expectAffected(t, f.Set(service("young", 20, shared, alone)))
	expectOwned(t, f, "young", shared, alone)

	expectAffected(t, f.Set(service("old", 10, shared)), "young")
	expectOwned(t, f, "old", shared)
	expectOwned(t, f, "young", alone)

	expectAffected(t, f.Set(service("middle", 15, shared)))
	expectOwned(t, f, "middle")

	problems := f.Problems()
	if len(problems) != 2 || problems[0].Object != "Service default/middle" || problems[1].Object != "Service default/young" ||
		problems[0].Reason != "FrontendTaken" {
		t.Errorf("problems are %v", problems)
	}

	expectAffected(t, f.Delete(service("old", 0).ID), "middle")
	expectOwned(t, f, "middle", shared)
	expectAffected(t, f.Set(service("middle", 15)), "young")
	expectOwned(t, f, "young", shared, alone)
	if problems := f.Problems(); len(problems) != 0 {
		t.Errorf("problems are %v", problems)
	}
}

// TestSameAge: namespace and name decide, so that every node and every restart decides alike.
func TestSameAge(t *testing.T) {
	f := NewFrontends()
	f.Set(service("b", 10, shared))
	expectAffected(t, f.Set(service("a", 10, shared)), "b")
	expectOwned(t, f, "a", shared)
	expectOwned(t, f, "b")
}

// TestS08_ProtocolsApart: one number on two protocols is two frontends.
func TestS08_ProtocolsApart(t *testing.T) {
	f := NewFrontends()
	tcp, udp := service("dns", 10, shared), service("dns", 10, shared)
	udp.ID.Protocol = compile.UDP
	f.Set(tcp)
	f.Set(udp)
	for _, id := range []compile.ID{tcp.ID, udp.ID} {
		if s := f.Get(id); s == nil || len(s.Frontends) != 1 {
			t.Errorf("%s is %+v", id, s)
		}
	}
	if problems := f.Problems(); len(problems) != 0 {
		t.Errorf("problems are %v", problems)
	}
}

// TestNodePortProblem: a NodePort is named by its number, not by the wildcard address.
func TestNodePortProblem(t *testing.T) {
	f := NewFrontends()
	for _, name := range []string{"a", "b"} {
		s := service(name, 10, "0.0.0.0:30080")
		s.Frontends[0].Kind = compile.NodePort
		f.Set(s)
	}
	const want = "NodePort 30080/TCP belongs to Service default/a, which came first: change one of them"
	if problems := f.Problems(); len(problems) != 1 || problems[0].Message != want {
		t.Errorf("problems are %v", problems)
	}
}

// TestRandomHistories compares the register, after each of many random changes, with what follows from the
// services alone, and checks that everybody who won or lost was named.
func TestRandomHistories(t *testing.T) {
	for range 200 {
		seed := rand.Uint64()
		if failed := history(rand.New(rand.NewPCG(seed, 0))); failed != "" {
			t.Fatalf("seed %d: %s", seed, failed)
		}
	}
}

// history runs one random history and says what went wrong.
func history(random *rand.Rand) (failed string) {
	f := NewFrontends()
	services := map[compile.ID]*compile.Service{}
	before := map[compile.ID][]compile.Frontend{}
	for step := range 100 {
		changed := service(fmt.Sprintf("s%d", random.IntN(8)), random.Int64N(4))
		var affected []compile.ID
		if random.IntN(4) == 0 {
			delete(services, changed.ID)
			affected = f.Delete(changed.ID)
		} else {
			for range random.IntN(4) {
				address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(5))}), 80)
				changed.Frontends = append(changed.Frontends, compile.Frontend{Kind: compile.ExternalIP, Address: address})
			}
			services[changed.ID] = changed
			affected = f.Set(changed)
		}
		want := bruteForce(services)
		for id := range services {
			got := f.Get(id)
			if got == nil || !slices.Equal(got.Frontends, want[id]) {
				return fmt.Sprintf("step %d: %s is %+v, and should own %v", step, id.Name, got, want[id])
			}
			moved := !slices.Equal(before[id], want[id])
			if moved && id != changed.ID && !slices.Contains(affected, id) {
				return fmt.Sprintf("step %d: %s is not named as affected", step, id.Name)
			}
		}
		if got, want := len(f.Problems()), losers(services, want); got != want {
			return fmt.Sprintf("step %d: %d problems, want %d", step, got, want)
		}
		before = want
	}
	return ""
}

// bruteForce says who owns what, from scratch.
func bruteForce(services map[compile.ID]*compile.Service) map[compile.ID][]compile.Frontend {
	owns := map[compile.ID][]compile.Frontend{}
	for id, s := range services {
		for _, claimed := range s.Frontends {
			mine := true
			for other, o := range services {
				older := o.Created.Before(s.Created) || o.Created.Equal(s.Created) && other.Name < id.Name
				if older && slices.Contains(o.Frontends, claimed) {
					mine = false
				}
			}
			if mine {
				owns[id] = append(owns[id], claimed)
			}
		}
	}
	return owns
}

// losers counts the distinct frontends that somebody claims and does not own.
func losers(services map[compile.ID]*compile.Service, owns map[compile.ID][]compile.Frontend) int {
	count := 0
	for id, s := range services {
		distinct := map[compile.Frontend]bool{}
		for _, claimed := range s.Frontends {
			distinct[claimed] = true
		}
		for claimed := range distinct {
			if !slices.Contains(owns[id], claimed) {
				count++
			}
		}
	}
	return count
}
