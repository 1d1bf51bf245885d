package main

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/status"
)

func TestParsePortRange(t *testing.T) {
	for text, want := range map[string]status.PortRange{
		"61000-65535": {First: 61000, Last: 65535},
		"1-1":         {First: 1, Last: 1},
		"":            {},
		"61000":       {},
		"0-10":        {},
		"10-9":        {},
		"1-65536":     {},
		"-1-5":        {},
		"a-b":         {},
	} {
		got, err := parsePortRange(text)
		if got != want || (err == nil) != (want != status.PortRange{}) {
			t.Errorf("%q is read as %s (%v), want %s", text, got, err, want)
		}
	}
}

func TestCheckSNATPorts(t *testing.T) {
	const advice = ", or choose other --snat-ports"
	for _, test := range []struct{ snat, local, want string }{
		{"61000-65535", "32768-60999", ""},
		{"1024-32767", "32768-60999", ""},
		{"61000-65535", "32768-61000", `61000-65535 overlaps the ports of the node's own connections, 32768-61000: run: sysctl -w net.ipv4.ip_local_port_range="32768 60999"` + advice},
		{"30000-40000", "32768-60999", `30000-40000 overlaps the ports of the node's own connections, 32768-60999: run: sysctl -w net.ipv4.ip_local_port_range="40001 60999"` + advice},
		{"40000-50000", "32768-60999", `40000-50000 overlaps the ports of the node's own connections, 32768-60999: run: sysctl -w net.ipv4.ip_local_port_range="50001 60999"` + advice},
		{"1024-65535", "1024-65535", `1024-65535 overlaps the ports of the node's own connections, 1024-65535: choose other --snat-ports`},
	} {
		snat, _ := parsePortRange(test.snat)
		local, _ := parsePortRange(test.local)
		got := ""
		if err := checkSNATPorts(snat, local); err != nil {
			got = err.Error()
		}
		if test.want != "" {
			test.want = "--snat-ports " + test.want
		}
		if got != test.want {
			t.Errorf("%s beside %s: %q, want %q", test.snat, test.local, got, test.want)
		}
	}
}

func TestParseRelease(t *testing.T) {
	for _, test := range []struct {
		release      string
		major, minor int
	}{
		{"6.1.0-13-amd64", 6, 1}, {"5.10.0", 5, 10}, {"6.18.44-fc-v595", 6, 18}, {"7.0-rc1", 7, 0},
	} {
		major, minor, err := parseRelease(test.release)
		if err != nil || major != test.major || minor != test.minor {
			t.Errorf("%s is read as %d.%d (%v)", test.release, major, minor, err)
		}
	}
	if _, _, err := parseRelease("linux"); err == nil {
		t.Error("a release without numbers is accepted")
	}
}

func TestMissingCapabilities(t *testing.T) {
	for _, test := range []struct{ has, want []string }{
		{nil, []string{"CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"}},
		{[]string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN"}, nil},
		{[]string{"CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"}, nil},
		{[]string{"CAP_NET_ADMIN", "CAP_PERFMON"}, []string{"CAP_BPF"}},
		{[]string{"CAP_SYS_ADMIN"}, []string{"CAP_NET_ADMIN"}},
	} {
		names := map[int]string{
			unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_BPF: "CAP_BPF", unix.CAP_PERFMON: "CAP_PERFMON",
		}
		got := missingCapabilities(func(capability int) bool { return slices.Contains(test.has, names[capability]) })
		if !slices.Equal(got, test.want) {
			t.Errorf("with %q, %q are missing, not %q", test.has, test.want, got)
		}
	}
}
