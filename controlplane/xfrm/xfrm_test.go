package xfrm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/maps"
)

// newSet makes maps of the test's own, and moves it into a network namespace of its own.
func newSet(t *testing.T) *maps.Set {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("maps and network namespaces need root")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // and ends with the test: the thread is not used again
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	set, err := maps.New(maps.Sizes{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	return set
}

// holds tells whether the map has exactly these prefixes, and the programs know.
func holds(set *maps.Set, want ...string) error {
	var held []string
	if err := maps.EachKey(set.XFRMPrefixes, func(key maps.PrefixKey) { held = append(held, key.Prefix().String()) }); err != nil {
		return err
	}
	var live maps.LiveSettings
	if err := set.LiveConfig.Lookup(uint32(0), &live); err != nil {
		return err
	}
	slices.Sort(held)
	if !slices.Equal(held, want) || live.PoliciesExist != uint32(min(len(want), 1)) {
		return fmt.Errorf("the map has %v (%d), want %v", held, live.PoliciesExist, want)
	}
	return nil
}

func policy(dir netlink.Dir, to string) *netlink.XfrmPolicy {
	destination := netip.MustParsePrefix(to)
	network, _ := netlink.ParseIPNet(destination.String())
	source, _ := netlink.ParseIPNet(map[bool]string{true: "0.0.0.0/0", false: "::/0"}[destination.Addr().Is4()])
	return &netlink.XfrmPolicy{Dst: network, Src: source, Dir: dir, Action: netlink.XFRM_POLICY_BLOCK}
}

// TestFollows adds policies and deletes them. Those that are not outgoing do not count; nor do those of an interface of
// their own. The rule is made when there are any.
func TestFollows(t *testing.T) {
	set := newSet(t)
	made := make(chan struct{}, 1)
	f, err := New(Options{Set: set, Log: zaptest.NewLogger(t), Masquerade: func() error {
		select {
		case made <- struct{}{}:
		default:
		}
		return errors.New("no rules here")
	}})
	if err != nil {
		t.Fatal(err)
	}
	converge := func() {
		t.Helper()
		if err := f.converge(); err != nil {
			t.Fatal(err)
		}
	}
	converge()
	if err := holds(set); err != nil || len(made) != 0 || len(f.Problems()) != 0 {
		t.Errorf("without policies: %v, %v", err, f.Problems())
	}
	ofInterface := policy(netlink.XFRM_DIR_OUT, "10.4.0.0/16")
	ofInterface.Ifid = 7
	policies := []*netlink.XfrmPolicy{
		policy(netlink.XFRM_DIR_OUT, "10.1.2.0/24"), policy(netlink.XFRM_DIR_OUT, "fd00:10:1:2::/64"), policy(netlink.XFRM_DIR_OUT, "0.0.0.0/0"),
		policy(netlink.XFRM_DIR_IN, "10.2.0.0/16"), policy(netlink.XFRM_DIR_FWD, "10.3.0.0/16"), ofInterface,
	}
	for _, p := range policies {
		if err := netlink.XfrmPolicyAdd(p); err != nil {
			t.Fatal(err)
		}
	}
	converge()
	if err := holds(set, "0.0.0.0/0", "10.1.2.0/24", "fd00:10:1:2::/64"); err != nil {
		t.Error(err)
	}
	if len(made) != 1 || len(f.Problems()) != 1 {
		t.Errorf("the rule was asked for: %d; problems: %v", len(made), f.Problems())
	}
	for _, p := range policies {
		if err := netlink.XfrmPolicyDel(p); err != nil {
			t.Fatal(err)
		}
	}
	converge()
	if err := holds(set); err != nil || len(f.Problems()) != 0 {
		t.Errorf("policies are gone: %v, %v", err, f.Problems())
	}
}

// TestHears is told of a policy.
func TestHears(t *testing.T) {
	set := newSet(t)
	f, err := New(Options{Set: set, Log: zaptest.NewLogger(t), Masquerade: func() error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer f.socket.Close()
	go f.listen(t.Context())
	if err := netlink.XfrmPolicyAdd(policy(netlink.XFRM_DIR_OUT, "10.1.2.0/24")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-f.heard:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was heard of a new policy")
	}
}

// TestEndsWithItsContext runs, writes nothing where there is nothing, and ends.
func TestEndsWithItsContext(t *testing.T) {
	set := newSet(t)
	f, err := New(Options{Set: set, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Run(ctx); err != nil {
		t.Error(err)
	}
	if err := holds(set); err != nil {
		t.Error(err)
	}
}

// TestFull has all traffic go by the stack where there is no room for all destinations.
func TestFull(t *testing.T) {
	set := newSet(t)
	var many []netip.Prefix
	for n := range int(set.XFRMPrefixes.MaxEntries()) + 1 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), 32))
	}
	if full, err := Write(set, many); err != nil || !full {
		t.Errorf("full: %t, %v", full, err)
	}
	if err := holds(set, "0.0.0.0/0", "::/0"); err != nil {
		t.Error(err)
	}
	if full, err := Write(set, many[:1]); err != nil || full {
		t.Errorf("full: %t, %v", full, err)
	}
	if err := holds(set, "10.1.0.0/32"); err != nil {
		t.Error(err)
	}
}
