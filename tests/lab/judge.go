package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The judges here know nothing of Weir: tcpdump, which computes the checksums of what it has captured, and the kernel's
// counters of what it could not use.

// CompleteChecksums makes packets leave every host but the nodes with complete checksums. On veths they are left to the
// receiver else, and a capture has nothing to judge.
func (l *Lab) CompleteChecksums() error {
	err := wireEnd{l.Client, "eth0"}.completeChecksums()
	for _, pod := range append([]*Host{l.Toolbox}, l.Web...) {
		err = errors.Join(err, wireEnd{pod, "eth0"}.completeChecksums())
	}
	return err
}

// Capture is what tcpdump writes down of a host's eth0.
type Capture struct {
	host    *Host
	file    string
	process *exec.Cmd
}

// Capture begins to write down what comes and goes by the host's eth0.
func (l *Lab) Capture(h *Host) (*Capture, error) {
	c := &Capture{host: h, file: filepath.Join(l.Dir, h.Role+".pcap")}
	c.process = exec.Command("tcpdump", "-i", "eth0", "-s", "0", "-U", "-Z", "root", "-B", "65536", "-w", c.file)
	if err := h.Start(c.process); err != nil {
		return nil, err
	}
	err := poll(readyLimit, func() error {
		written, err := os.Stat(c.file)
		if err == nil && written.Size() == 0 {
			err = fmt.Errorf("tcpdump on %s has not begun", h.Role)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, c.process.Process.Kill(), c.process.Wait())
	}
	return c, nil
}

// saysWrong matches what tcpdump says of a packet that is wrong: "cksum 0x1234 (incorrect -> 0x5678)", "bad cksum 1234
// (->5678)!", "[bad udp cksum 0x1234 -> 0x5678!]", "(wrong icmp cksum 1234 (->5678)!)".
var saysWrong = regexp.MustCompile(`\(incorrect|[\s\[(](bad|wrong) `)

// Wrong ends the capture, and lists what tcpdump says of packets that are wrong. It also counts those whose checksum is
// right.
func (c *Capture) Wrong() (wrong []string, right int, err error) {
	time.Sleep(100 * time.Millisecond) // it has what has come by then
	if err := c.process.Process.Signal(syscall.SIGINT); err != nil {
		return nil, 0, err
	}
	if err := c.process.Wait(); err != nil {
		return nil, 0, fmt.Errorf("tcpdump on %s: %w", c.host.Role, err)
	}
	said, err := exec.Command("tcpdump", "-n", "-vv", "-r", c.file).Output()
	if err != nil {
		return nil, 0, fmt.Errorf("read the capture of %s: %w", c.host.Role, err)
	}
	for line := range strings.Lines(string(said)) {
		switch {
		case saysWrong.MatchString(line):
			wrong = append(wrong, strings.TrimSpace(line))
		case strings.Contains(line, "(correct)") || strings.Contains(line, "sum ok]"):
			right++
		}
	}
	return wrong, right, nil
}

// errorCounters are those of nstat that count packets which a host could not use. Not among them: those that count what
// somebody else has said (IcmpInDestUnreachs), and fragments that never became whole.
var errorCounters = []string{
	"IpInHdrErrors", "IpInAddrErrors", "IpInUnknownProtos", "IpExtInCsumErrors", "IpExtInTruncatedPkts",
	"IcmpInErrors", "IcmpInCsumErrors", "TcpInErrs", "UdpInErrors", "UdpInCsumErrors",
	"Ip6InHdrErrors", "Ip6InAddrErrors", "Ip6InUnknownProtos", "Ip6InTruncatedPkts",
	"Icmp6InErrors", "Icmp6InCsumErrors", "Udp6InErrors", "Udp6InCsumErrors",
}

// InputErrors returns the kernel's counters of packets that the host could not use, those that are not 0.
func (h *Host) InputErrors() (found map[string]int, err error) {
	said, err := h.Run("", "nstat", "-a", "-s", "-z")
	if err != nil {
		return nil, err
	}
	found = map[string]int{}
	seen := 0
	for line := range strings.Lines(said) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !slices.Contains(errorCounters, fields[0]) {
			continue
		}
		seen++
		count, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("nstat says %q", line)
		}
		if count > 0 {
			found[fields[0]] = count
		}
	}
	if seen < len(errorCounters) {
		return nil, fmt.Errorf("nstat knows %d of the %d counters", seen, len(errorCounters))
	}
	return found, nil
}
