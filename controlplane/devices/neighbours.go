package devices

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/cputime"
	weirmaps "github.com/weir-lb/weir/maps"
)

// The kernel's entry for the next hop toward a backend is used by XDP programs without the kernel knowing: it would not
// ask anew whether the next hop is still there. So entries are managed (NTF_EXT_MANAGED, Linux 5.16): the kernel keeps
// them resolved by itself, whether an agent runs or not. Older kernels ignore the flag and resolve them once.

const (
	// neighbourProtocol marks entries as managed by us ("weir", in NDA_PROTOCOL).
	neighbourProtocol = 0x77
	// maxNeighbours bounds them: the kernel has room for 1024 entries (gc_thresh3), which are not all ours.
	maxNeighbours = 512
	// roundPause is the shortest time between two rounds; the longest part of a CPU that they take is 1/roundShare.
	roundPause = time.Second
	roundShare = 10
)

// Attributes of neighbour messages (linux/neighbour.h).
const (
	ndaDestination = 1
	ndaProtocol    = 12
	ndaFlagsExt    = 15
)

// nextHop is a neighbour on a device. It has no pointer in it: there is one for each backend.
type nextHop struct {
	ifindex int32
	addr    weirmaps.Address
}

// router knows the next hop toward an address; a *routeTable does.
type router interface {
	toward(netip.Addr) (hop nextHop, found bool, err error)
}

// neighbours keeps next hops resolved. It works beside Run, which must not wait for it. What it does after a change
// depends on what has changed, not on how many backends there are.
type neighbours struct {
	log    *zap.Logger
	socket *nl.NetlinkSocket // of the network namespace, wherever its user runs
	heard  *nl.NetlinkSocket // tells of changes of routes
	table  *routeTable
	routes router // the table, but in tests

	mu      sync.Mutex
	news    news
	told    map[int]bool     // the devices, as they were said last
	named   map[nextHop]bool // the routers
	changed chan struct{}    // holds a token while there are news

	// Owned by run.
	devices  map[int]bool                 // of the node edge, with Ethernet headers, that are up
	backends map[weirmaps.Address]nextHop // on these; the zero one: there is none
	routers  map[nextHop]bool             // at the ends of these
	hops     map[nextHop]int              // to how many backends and routers they lead
	managed  map[nextHop]bool             // of the hops, at most maxNeighbours
}

// newNeighbours opens what is needed in the calling thread's network namespace.
func newNeighbours(log *zap.Logger) (*neighbours, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	heard, err := listenRoutes()
	if err != nil {
		socket.Close()
		return nil, err
	}
	table, err := openRoutes()
	if err != nil {
		socket.Close()
		heard.Close()
		return nil, err
	}
	return &neighbours{
		log: log, socket: socket, heard: heard, table: table, routes: table, changed: make(chan struct{}, 1),
		backends: map[weirmaps.Address]nextHop{}, hops: map[nextHop]int{}, managed: map[nextHop]bool{},
	}, nil
}

func (n *neighbours) close() {
	n.socket.Close()
	n.heard.Close()
	n.table.close()
}

// run works until the context ends. Changes that follow one another are dealt with together.
func (n *neighbours) run(ctx context.Context) {
	var listener sync.WaitGroup
	listener.Go(func() { n.listen(ctx) })
	defer listener.Wait()
	defer n.heard.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		}
		took, err := cputime.Of(func() error { return n.round(n.take()) })
		if err != nil {
			n.log.Warn("keep next hops resolved", zap.Error(err))
			n.doubt()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(roundPause, roundShare*took)):
		}
	}
}

// round deals with news. Until it is known where backends are, and which devices there are, nothing is done: what a
// predecessor manages stays.
func (n *neighbours) round(news news) error {
	if news.devices != nil {
		n.devices = news.devices
		n.followRouters(news.routers)
	}
	for address, came := range news.backends {
		if came {
			n.backends[address] = nextHop{}
		} else {
			n.leave(address)
		}
	}
	if !news.located || n.devices == nil {
		return nil
	}
	if err := n.lookAgain(news); err != nil {
		return err
	}
	return n.converge()
}

// lookAgain finds the next hops toward those backends for which they may be others.
func (n *neighbours) lookAgain(news news) error {
	if news.anew {
		return n.lookAll(func(netip.Addr) bool { return true })
	}
	for address, came := range news.backends {
		if !came {
			continue
		}
		if err := n.look(address); err != nil {
			return err
		}
	}
	var wide []netip.Prefix
	for prefix := range news.prefixes {
		address := weirmaps.AddressOf(prefix.Addr())
		if _, known := n.backends[address]; known && prefix.IsSingleIP() {
			if err := n.look(address); err != nil {
				return err
			}
		}
		if !prefix.IsSingleIP() {
			wide = append(wide, prefix)
		}
	}
	if len(wide) == 0 {
		return nil
	}
	return n.lookAll(func(address netip.Addr) bool {
		return slices.ContainsFunc(wide, func(prefix netip.Prefix) bool { return prefix.Contains(address) })
	})
}

// lookAll finds the next hops toward many backends.
func (n *neighbours) lookAll(these func(netip.Addr) bool) error {
	for address := range n.backends {
		if !these(address.Addr()) {
			continue
		}
		if err := n.look(address); err != nil {
			return err
		}
	}
	return nil
}

// look finds the next hop toward a backend.
func (n *neighbours) look(address weirmaps.Address) error {
	hop, found, err := n.routes.toward(address.Addr())
	if err != nil {
		return err
	}
	if !found || !n.devices[int(hop.ifindex)] {
		hop = nextHop{}
	}
	if hop == n.backends[address] {
		return nil
	}
	n.leave(address)
	n.backends[address] = hop
	if hop != (nextHop{}) {
		n.hops[hop]++
	}
	return nil
}

// leave forgets a backend.
func (n *neighbours) leave(address weirmaps.Address) {
	hop := n.backends[address]
	delete(n.backends, address)
	if hop != (nextHop{}) {
		n.release(hop)
	}
}

// converge makes the kernel manage the next hops that are wanted, and no others for us. Where they are too many, those that
// it manages already go on.
func (n *neighbours) converge() error {
	entries, err := n.list()
	if err != nil {
		return err
	}
	n.choose(entries)
	var failed error
	for hop := range n.managed {
		if entry, known := entries[hop]; !known || !entry.ours && !entry.fixed {
			failed = errors.Join(failed, n.set(hop, true))
		}
	}
	for hop, entry := range entries {
		if entry.ours && !n.managed[hop] {
			failed = errors.Join(failed, n.set(hop, false))
		}
	}
	return failed
}

// choose brings up to date which next hops are to be managed.
func (n *neighbours) choose(entries map[nextHop]entry) {
	maps.DeleteFunc(n.managed, func(hop nextHop, _ bool) bool { return n.hops[hop] == 0 })
	for hop, entry := range entries {
		if entry.ours && n.hops[hop] > 0 && len(n.managed) < maxNeighbours {
			n.managed[hop] = true
		}
	}
	for hop := range n.hops {
		if len(n.managed) >= min(maxNeighbours, len(n.hops)) {
			return
		}
		n.managed[hop] = true
	}
}

// entry is a neighbour entry of the kernel.
type entry struct {
	ours  bool
	fixed bool // somebody has said what its MAC is, or somebody else manages it
}

// list returns the kernel's entries (RTM_GETNEIGH).
func (n *neighbours) list() (map[nextHop]entry, error) {
	request := n.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	request.AddData(&netlink.Ndmsg{Family: unix.AF_UNSPEC})
	messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	entries := map[nextHop]entry{}
	for _, message := range messages {
		found, err := netlink.NeighDeserialize(message)
		if err != nil {
			return nil, fmt.Errorf("read a neighbour: %w", err)
		}
		addr, ok := netip.AddrFromSlice(found.IP)
		if !ok {
			continue
		}
		ours := protocolOf(message) == neighbourProtocol
		managed := found.FlagsExt&netlink.NTF_EXT_MANAGED != 0
		entries[nextHop{int32(found.LinkIndex), weirmaps.AddressOf(addr.Unmap())}] = entry{
			ours:  ours,
			fixed: found.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 || managed && !ours,
		}
	}
	return entries, nil
}

// protocolOf returns who has made an entry.
func protocolOf(message []byte) byte {
	attributes, err := nl.ParseRouteAttr(message[sizeofNdmsg:])
	if err != nil {
		return 0
	}
	for _, attribute := range attributes {
		if attribute.Attr.Type == ndaProtocol && len(attribute.Value) > 0 {
			return attribute.Value[0]
		}
	}
	return 0
}

// sizeofNdmsg is the length of struct ndmsg of linux/neighbour.h.
const sizeofNdmsg = 12

// set begins or ends the management of a next hop. One that is given up stays as any other entry of the kernel.
func (n *neighbours) set(hop nextHop, managed bool) error {
	family, address := uint8(unix.AF_INET), hop.addr.Addr()
	if address.Is6() {
		family = unix.AF_INET6
	}
	protocol, flags := byte(unix.RTPROT_KERNEL), uint32(0)
	if managed {
		protocol, flags = neighbourProtocol, netlink.NTF_EXT_MANAGED
	}
	request := n.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	request.AddData(&netlink.Ndmsg{Family: family, Index: uint32(hop.ifindex), Flags: netlink.NTF_USE})
	request.AddData(nl.NewRtAttr(ndaDestination, address.AsSlice()))
	request.AddData(nl.NewRtAttr(ndaProtocol, []byte{protocol}))
	request.AddData(nl.NewRtAttr(ndaFlagsExt, nl.Uint32Attr(flags)))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("manage the neighbour %s on device %d: %w", address, hop.ifindex, err)
	}
	return nil
}

// request returns a request that goes through our socket.
func (n *neighbours) request(kind, flags int) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(kind, flags)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: n.socket}}
	return request
}

// ForgetNeighbours gives up the management of all next hops in the calling thread's network namespace.
func ForgetNeighbours() error {
	n, err := newNeighbours(zap.NewNop())
	if err != nil {
		return err
	}
	defer n.close()
	return n.converge()
}

// resolvable returns the devices on which there are neighbours to resolve: those that are up.
func resolvable(devices map[int]*device, roles map[int]role) map[int]bool {
	found := map[int]bool{}
	for index, d := range devices {
		master := devices[d.master]
		if !d.up || d.header() != headerEthernet || roles[index].edge != weirmaps.EdgeNode && d.kind != "bridge" {
			continue
		}
		found[index] = master == nil || !master.bridges()
	}
	return found
}
