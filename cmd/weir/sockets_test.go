package main

import (
	"strings"
	"testing"

	"github.com/weir-lb/weir/controlplane/status"
)

// TestFindCgroupRoot finds cgroup v2 on unified and on hybrid hosts, the whole of it where there is a choice.
func TestFindCgroupRoot(t *testing.T) {
	for name, test := range map[string]struct{ mountinfo, want string }{
		"unified": {"29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate", "/sys/fs/cgroup"},
		"hybrid": {
			"30 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n31 23 0:28 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw",
			"/sys/fs/cgroup/unified",
		},
		"a part, then all": {
			"1 2 0:26 /kubepods /mnt/part rw - cgroup2 cgroup2 rw\n3 2 0:26 / /host\\040cgroup rw - cgroup2 cgroup2 rw",
			"/host cgroup",
		},
		"a part alone": {"1 2 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup"},
	} {
		if got, err := findCgroupRoot(strings.NewReader(test.mountinfo)); err != nil || got != test.want {
			t.Errorf("%s: got %q, want %q (%v)", name, got, test.want, err)
		}
	}
	if got, err := findCgroupRoot(strings.NewReader("30 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu")); err == nil {
		t.Errorf("without cgroup v2: got %q", got)
	}
}

// TestDescribeSockets says what is served, what is not, and why.
func TestDescribeSockets(t *testing.T) {
	for want, test := range map[string]struct {
		sockets  status.Sockets
		coverage *coverageView
	}{
		"off":                    {status.Sockets{Whose: "off"}, nil},
		"serves nobody: no v2":   {status.Sockets{Whose: "all", Reasons: []string{"no v2"}}, nil},
		"processes below /c; EP": {status.Sockets{Whose: "all", Cgroup: "/c", Reasons: []string{"EP"}}, nil},
		"processes below /c, proven by a connect from another cgroup": {status.Sockets{Whose: "all", Cgroup: "/c"}, &coverageView{Proven: true}},
		"processes below /c in the node's network namespace, not proven: why": {
			status.Sockets{Whose: "host", Cgroup: "/c"}, &coverageView{Reason: "why"},
		},
	} {
		if got := describeSockets(test.sockets, test.coverage); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
