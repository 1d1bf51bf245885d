// Package status is what a running agent tells the commands that look at it: a file beside the pinned maps'
// directory, replaced as a whole whenever something changes, and a lock that says whether the agent lives.
//
// The maps tell what is forwarded where; they outlive the agent and need nothing of this. Here is only
// what they cannot tell: why a device is attached as it is, what was refused, how far behind the agent is.
package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Snapshot is what an agent says of itself. Its JSON is part of `weir status -o json` (docs/cli.md).
type Snapshot struct {
	PID           int          `json:"pid"`
	Version       string       `json:"version"`
	Node          string       `json:"node"`
	Source        string       `json:"source"`                  // "manifests /etc/weir"
	SourceFailure string       `json:"sourceFailure,omitempty"` // why changes of the source are not heard of
	BPFFS         string       `json:"bpffs"`
	Kernel        string       `json:"kernel"`
	Started       time.Time    `json:"started"`
	Written       time.Time    `json:"written"` // when the file was
	SNATPorts     PortRange    `json:"snatPorts"`
	Attachments   []Attachment `json:"attachments"`
	Sockets       Sockets      `json:"sockets"`
	Foreign       *Foreign     `json:"foreign"` // null: not looked for yet
	Forwarding    Forwarding   `json:"forwarding"`
	Changes       Changes      `json:"changes"`
	Sync          Sync         `json:"sync"`
	Problems      []Problem    `json:"problems"`
	Errors        []Error      `json:"errors"` // the last ones, oldest first
}

// PortRange is a range of ports with both ends included.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Size is how many ports there are in the range.
func (r PortRange) Size() int { return int(r.Last) - int(r.First) + 1 }

// String returns "first-last".
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// Attachment is how a device is served.
type Attachment struct {
	Device  string   `json:"device"`
	Ifindex int      `json:"ifindex"`
	Edge    string   `json:"edge"`              // "node", "pod" or "none"
	Hooks   []string `json:"hooks"`             // "tcx node_ingress", "xdp native node_xdp"
	Foreign []string `json:"foreign,omitempty"` // programs of others on the device
	Reasons []string `json:"reasons,omitempty"` // why not otherwise: "no native XDP: the driver has none"
}

// Sockets is what the socket edge serves.
type Sockets struct {
	Whose   string   `json:"whose"`             // "all", "host" (of the agent's network namespace alone) or "off"
	Cgroup  string   `json:"cgroup,omitempty"`  // the sockets of processes in it and below
	Reasons []string `json:"reasons,omitempty"` // why not better
	Closed  uint64   `json:"closed"`            // sockets of removed backends, by this agent
}

// Foreign is what this agent has found at its start of connections that others translate, and recorded.
type Foreign struct {
	Connections int `json:"connections"` // to frontends
	Answers     int `json:"answers"`     // that come to a port of the node which could be ours
}

// Forwarding is how packets from outside come to backends on other nodes.
type Forwarding struct {
	Mode    string       `json:"mode"`              // "snat" or "dsr"
	Sends   bool         `json:"sends"`             // packets go in tunnels, where a backend's node takes part
	Nodes   int          `json:"nodes"`             // others that take part
	Sources []netip.Addr `json:"sources,omitempty"` // where tunnels of this node come from
}

// Changes counts what this agent has done to programs on devices. Where it found everything as it should be, nothing.
type Changes struct {
	Attached int `json:"attached"`
	Updated  int `json:"updated"` // replaced in place
	Moved    int `json:"moved"`   // to the right side of others' programs
	Detached int `json:"detached"`
}

// Sync is how the maps relate to what the source wants.
type Sync struct {
	Synced    bool          `json:"synced"`                // the maps have held all of a complete listing, and the devices their programs
	Last      time.Time     `json:"last,omitzero"`         // when the maps were last written, or found right
	Latency   time.Duration `json:"latencyNanoseconds"`    // of that write, from the arrival of its oldest change
	Waiting   time.Time     `json:"waitingSince,omitzero"` // arrival of the oldest change not in the maps
	Failures  int           `json:"failures"`              // writes that failed in a row
	Services  int           `json:"services"`              // that the maps shall hold
	Frontends int           `json:"frontends"`             // that the maps shall hold
	Writes    uint64        `json:"writes"`                // elements and tables written by this agent
}

// Problem is something an object asks for that is not done.
type Problem struct {
	Object  string `json:"object"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Error is something that went wrong in the agent.
type Error struct {
	Time    time.Time `json:"time"`
	Message string    `json:"message"`
}

// root holds one directory for each directory of pins.
const root = "/run/weir"

// file is the name of the snapshot in it.
const file = "status.json"

// Dir returns the directory for the state of the agent whose pins are in the given directory. It is found by
// the identity of that directory, not by its name: two agents may have the same path in different mount
// namespaces, and one agent two paths. The error is fs.ErrNotExist where there are no pins.
func Dir(pins string) (string, error) {
	var stat unix.Stat_t
	if err := unix.Stat(pins, &stat); err != nil {
		return "", fmt.Errorf("look at %s: %w", pins, err)
	}
	return filepath.Join(root, fmt.Sprintf("%x-%x", stat.Dev, stat.Ino)), nil
}

// Write replaces the snapshot, as a whole.
func Write(pins string, snapshot Snapshot) error {
	dir, err := Dir(pins)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	snapshot.Written = time.Now()
	snapshot.listNothing()
	content, err := json.MarshalIndent(snapshot, "", "  ")
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	temporary := filepath.Join(dir, file+".new")
	if err := os.WriteFile(temporary, append(content, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, file))
}

// listNothing makes lists of nothing what they are in JSON: [], not null.
func (s *Snapshot) listNothing() {
	if s.Attachments == nil {
		s.Attachments = []Attachment{}
	}
	if s.Problems == nil {
		s.Problems = []Problem{}
	}
	if s.Errors == nil {
		s.Errors = []Error{}
	}
}

// Read returns the last snapshot. The error is fs.ErrNotExist where no agent has written one.
func Read(pins string) (Snapshot, error) {
	dir, err := Dir(pins)
	if err != nil {
		return Snapshot{}, err
	}
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return Snapshot{}, err
	}
	var snapshot Snapshot
	if err := json.Unmarshal(content, &snapshot); err != nil {
		return Snapshot{}, fmt.Errorf("decode %s: %w", filepath.Join(dir, file), err)
	}
	return snapshot, nil
}

// Remove forgets the state of the agent. To remove what is not there is fine. The directory of pins must still be.
func Remove(pins string) error {
	dir, err := Dir(pins)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	err = os.Remove(root)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
