package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/status"
)

// The oldest kernel that the programs run on.
const oldestMajor, oldestMinor = 5, 10

// pinsDir is the directory of pins in a bpffs.
func pinsDir(bpffs string) string { return filepath.Join(bpffs, "weir") }

// checkKernel tells what the machine lacks for any BPF program to be loaded.
func checkKernel(release string) error {
	if err := checkCapabilities(); err != nil {
		return err
	}
	major, minor, err := parseRelease(release)
	if err != nil {
		return err
	}
	if major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		return fmt.Errorf("kernel %s is too old: the programs need Linux %d.%d; boot a newer one",
			release, oldestMajor, oldestMinor)
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("the kernel describes no types (%w): boot one built with CONFIG_DEBUG_INFO_BTF=y", err)
	}
	return nil
}

// checkCapabilities tells whether the process may load and attach programs.
func checkCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	missing := missingCapabilities(func(capability int) bool { return data[capability/32].Effective&(1<<(capability%32)) != 0 })
	if len(missing) == 0 {
		return nil
	}
	verb := "is"
	if len(missing) > 1 {
		verb = "are"
	}
	return fmt.Errorf("no permission to load and attach BPF programs: run as root (%s %s missing)", strings.Join(missing, ", "), verb)
}

// missingCapabilities names what a process lacks to load and attach programs. CAP_SYS_ADMIN includes CAP_BPF and
// CAP_PERFMON, and is all of the three there is before Linux 5.8.
func missingCapabilities(has func(capability int) bool) (names []string) {
	if !has(unix.CAP_NET_ADMIN) {
		names = append(names, "CAP_NET_ADMIN")
	}
	if has(unix.CAP_SYS_ADMIN) {
		return names
	}
	if !has(unix.CAP_BPF) {
		names = append(names, "CAP_BPF")
	}
	if !has(unix.CAP_PERFMON) {
		names = append(names, "CAP_PERFMON")
	}
	return names
}

// kernelRelease returns what uname says, "6.1.0-13-amd64".
func kernelRelease() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("ask for the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}

// parseRelease reads the first two numbers of a kernel's release.
func parseRelease(release string) (major, minor int, err error) {
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return 0, 0, fmt.Errorf("kernel release %q does not begin with two numbers", release)
	}
	return major, minor, nil
}

// ensureBPFFS mounts a bpffs where there is none.
func ensureBPFFS(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("no bpffs at %s: %w; name a directory with --bpffs", dir, err)
	}
	mounted, err := isBPFFS(dir)
	if mounted || err != nil {
		return err
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		return fmt.Errorf("no bpffs at %s, and mounting one was refused (%w): run: mount -t bpf bpf %s", dir, err, dir)
	}
	return nil
}

// isBPFFS tells whether a directory is in a bpffs.
func isBPFFS(dir string) (bool, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	return int64(stat.Type) == unix.BPF_FS_MAGIC, nil
}

// localPortRange returns the ports that the kernel gives to connections of this network namespace.
func localPortRange() (status.PortRange, error) {
	const path = "/proc/sys/net/ipv4/ip_local_port_range"
	content, err := os.ReadFile(path)
	if err != nil {
		return status.PortRange{}, err
	}
	var ports status.PortRange
	if _, err := fmt.Sscan(string(content), &ports.First, &ports.Last); err != nil {
		return status.PortRange{}, fmt.Errorf("read %s: %w", path, err)
	}
	return ports, nil
}

// checkSNATPorts refuses ports that the kernel may give to the node's own connections.
func checkSNATPorts(snat, local status.PortRange) error {
	if snat.Last < local.First || local.Last < snat.First {
		return nil
	}
	advice := "choose other --snat-ports"
	if rest, some := besides(snat, local); some {
		advice = fmt.Sprintf("run: sysctl -w net.ipv4.ip_local_port_range=\"%d %d\", or %s", rest.First, rest.Last, advice)
	}
	return fmt.Errorf("--snat-ports %s overlaps the ports of the node's own connections, %s: %s", snat, local, advice)
}

// besides returns the larger part of the local ports that the SNAT ports leave, if they leave any.
func besides(snat, local status.PortRange) (rest status.PortRange, some bool) {
	below := int(snat.First) - int(local.First)
	above := int(local.Last) - int(snat.Last)
	switch {
	case below <= 0 && above <= 0:
		return rest, false
	case below >= above:
		return status.PortRange{First: local.First, Last: snat.First - 1}, true
	default:
		return status.PortRange{First: snat.Last + 1, Last: local.Last}, true
	}
}

// parsePortRange reads "first-last".
func parsePortRange(text string) (status.PortRange, error) {
	first, last, found := strings.Cut(text, "-")
	low, errLow := strconv.ParseUint(first, 10, 16)
	high, errHigh := strconv.ParseUint(last, 10, 16)
	if !found || errLow != nil || errHigh != nil || low == 0 || high < low {
		return status.PortRange{}, fmt.Errorf("%q is not a range of ports like 61000-65535", text)
	}
	return status.PortRange{First: uint16(low), Last: uint16(high)}, nil
}
