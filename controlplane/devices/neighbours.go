package devices

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

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
)

// Attributes of neighbour messages (linux/neighbour.h).
const (
	ndaDestination = 1
	ndaProtocol    = 12
	ndaFlagsExt    = 15
)

// nextHop is a neighbour on a device.
type nextHop struct {
	ifindex int
	addr    netip.Addr
}

// neighbours keeps next hops resolved. It works beside Run, which must not wait for it.
type neighbours struct {
	log    *zap.Logger
	socket *nl.NetlinkSocket // of the network namespace, wherever its user runs
	routes *netlink.Handle

	mu       sync.Mutex
	backends []netip.Addr
	devices  map[int]bool // of the node edge, with Ethernet headers
	changed  chan struct{}
}

// newNeighbours opens what is needed in the calling thread's network namespace.
func newNeighbours(log *zap.Logger) (*neighbours, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	routes, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &neighbours{log: log, socket: socket, routes: routes, changed: make(chan struct{}, 1)}, nil
}

func (n *neighbours) close() {
	n.socket.Close()
	n.routes.Close()
}

// want says toward which backends next hops shall be kept resolved, on which devices.
func (n *neighbours) want(backends []netip.Addr, devices map[int]bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Equal(n.backends, backends) && maps.Equal(n.devices, devices) {
		return
	}
	n.backends, n.devices = backends, devices
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// run works until the context ends.
func (n *neighbours) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		}
		n.mu.Lock()
		backends, devices := n.backends, n.devices
		n.mu.Unlock()
		if err := n.converge(n.find(backends, devices)); err != nil {
			n.log.Warn("keep next hops resolved", zap.Error(err))
		}
	}
}

// find returns the next hops toward backends, as the kernel's routes have them now.
func (n *neighbours) find(backends []netip.Addr, devices map[int]bool) map[nextHop]bool {
	hops := map[nextHop]bool{}
	for _, backend := range backends {
		routes, err := n.routes.RouteGet(backend.AsSlice())
		if err != nil || len(routes) == 0 {
			continue // there is no route: nothing to resolve
		}
		hop := hopOf(routes[0], backend)
		if !devices[hop.ifindex] || len(hops) >= maxNeighbours {
			continue
		}
		hops[hop] = true
	}
	return hops
}

// hopOf returns the next hop of a route to an address.
func hopOf(route netlink.Route, to netip.Addr) nextHop {
	hop := nextHop{ifindex: route.LinkIndex, addr: to}
	gateway := route.Gw
	if via, ok := route.Via.(*netlink.Via); ok {
		gateway = via.Addr
	}
	if addr, ok := netip.AddrFromSlice(gateway); ok && !addr.IsUnspecified() {
		hop.addr = addr.Unmap()
	}
	return hop
}

// converge makes the kernel manage these next hops, and no others for us.
func (n *neighbours) converge(wanted map[nextHop]bool) error {
	entries, err := n.list()
	if err != nil {
		return err
	}
	var failed error
	for hop := range wanted {
		if entry, known := entries[hop]; !known || !entry.ours && !entry.fixed {
			failed = errors.Join(failed, n.set(hop, true))
		}
	}
	for hop, entry := range entries {
		if entry.ours && !wanted[hop] {
			failed = errors.Join(failed, n.set(hop, false))
		}
	}
	return failed
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
		entries[nextHop{found.LinkIndex, addr.Unmap()}] = entry{
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
	family := uint8(unix.AF_INET)
	if hop.addr.Is6() {
		family = unix.AF_INET6
	}
	protocol, flags := byte(unix.RTPROT_KERNEL), uint32(0)
	if managed {
		protocol, flags = neighbourProtocol, netlink.NTF_EXT_MANAGED
	}
	request := n.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	request.AddData(&netlink.Ndmsg{Family: family, Index: uint32(hop.ifindex), Flags: netlink.NTF_USE})
	request.AddData(nl.NewRtAttr(ndaDestination, hop.addr.AsSlice()))
	request.AddData(nl.NewRtAttr(ndaProtocol, []byte{protocol}))
	request.AddData(nl.NewRtAttr(ndaFlagsExt, nl.Uint32Attr(flags)))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("manage the neighbour %s on device %d: %w", hop.addr, hop.ifindex, err)
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
	return n.converge(nil)
}

// resolvable returns the devices on which there are neighbours to resolve.
func resolvable(devices map[int]*device, roles map[int]role) map[int]bool {
	found := map[int]bool{}
	for index, d := range devices {
		master := devices[d.master]
		if d.header() != headerEthernet || roles[index].edge != weirmaps.EdgeNode && d.kind != "bridge" {
			continue
		}
		found[index] = master == nil || !master.bridges()
	}
	return found
}
