package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/weir-lb/weir/maps"
)

// AddPolicy adds an outgoing policy of XFRM to a host, about what goes from one address to another: an unspecified one
// is any. It blocks; the kernel has no transformation here that could do more. Undo deletes it.
func (h *Host) AddPolicy(from, to netip.Addr) (undo func() error, err error) {
	selector := []string{"src", selects(from), "dst", selects(to), "dir", "out"}
	if _, err := h.Run("", "ip", append([]string{"xfrm", "policy", "add"}, append(selector, "action", "block")...)...); err != nil {
		return nil, err
	}
	return func() error {
		_, err := h.Run("", "ip", append([]string{"xfrm", "policy", "delete"}, selector...)...)
		return err
	}, nil
}

// selects is an address as a policy's selector.
func selects(address netip.Addr) string {
	if address.IsUnspecified() {
		return address.String() + "/0"
	}
	return hostPrefix(address).String()
}

// Blocked counts what policies of XFRM have blocked on a host.
func (h *Host) Blocked() (blocked int, err error) {
	err = h.Do(func() error {
		statistics, err := os.ReadFile(filepath.Join("/proc/thread-self/net/xfrm_stat"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(statistics)) {
			if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "XfrmOutPolBlock" {
				blocked, err = strconv.Atoi(fields[1])
			}
		}
		return err
	})
	return blocked, err
}

// WaitPolicies waits until the agent has told the programs whether there are policies, and how many there are.
func (a *Agent) WaitPolicies(count int) error {
	return a.wait(func() error {
		var live maps.LiveSettings
		if err := a.lookup("live_config", uint32(0), &live); err != nil {
			return err
		}
		prefixes, err := a.pinned("xfrm_prefixes")
		if err != nil {
			return err
		}
		defer prefixes.Close()
		held := 0
		if err := maps.EachKey(prefixes, func(maps.PrefixKey) { held++ }); err != nil {
			return err
		}
		if held != count || live.PoliciesExist != uint32(min(count, 1)) {
			return fmt.Errorf("the programs know of policies to %d destinations (%d), want %d", held, live.PoliciesExist, count)
		}
		return nil
	})
}
