// Package devices follows the network devices of the node: which of them are the node edge and which lead to pods,
// what addresses they have, and which of them NodePorts answer on. It keeps the maps devices and node_addrs, and
// has programs attached.
package devices

import (
	"context"
	"errors"
	"net/netip"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/loader"
	"github.com/weir-lb/weir/maps"
)

// Attacher puts programs on devices; a *loader.Attacher does.
type Attacher interface {
	Attach(loader.Device) (loader.Attachment, error)
	Known(ifindex int) bool
	Detach(ifindex int) error
	Retain(ifindexes []int) error
}

// Options are what a Manager works with.
type Options struct {
	Set      *maps.Set
	Attacher Attacher

	// Patterns are the devices of the node edge, as the operator names them: "eth0", "bond*". None: they are
	// found by what they are.
	Patterns []string

	// NodePorts are the addresses on which NodePorts answer (rule N02). The zero one is: all of the node.
	NodePorts NodePortAddresses

	Log *zap.Logger

	// Changed is called by Run after devices, attachments or problems have changed. It must be quick. May be nil.
	Changed func()
}

// NodePortAddresses is what --nodeport-addresses asks for.
type NodePortAddresses struct {
	Primary  bool // the node's first address of each family in Node.status
	Prefixes []netip.Prefix
}

// ParseNodePortAddresses reads a list of prefixes, or "primary" alone (rule N02).
func ParseNodePortAddresses(texts []string) (NodePortAddresses, error) {
	return NodePortAddresses{}, errors.ErrUnsupported
}

// Manager follows the devices of one network namespace.
type Manager struct {
	options Options
}

// New looks at all devices of the calling thread's network namespace and subscribes to their changes. It fails if
// the operator names devices and none of them is there.
func New(options Options) (*Manager, error) { return &Manager{options: options}, nil }

// Run brings maps and programs up to date, and keeps them so until the context ends. It must run in the network
// namespace that New was called in.
func (m *Manager) Run(ctx context.Context) error { return errors.ErrUnsupported }

// Ready is closed when Run has dealt with all devices that were there at the start.
func (m *Manager) Ready() <-chan struct{} { return nil }

// SetPrimary says what Node.status has as the node's addresses, in its order: NodePortAddresses.Primary needs them.
func (m *Manager) SetPrimary(addresses []netip.Addr) {}

// SetBackends says where backends are: the next hops toward those on other nodes are kept resolved.
func (m *Manager) SetBackends(addresses []netip.Addr) {}

// Problems lists what is wrong with devices: named but not there, not attached.
func (m *Manager) Problems() []compile.Problem { return nil }
