// Package maps is the Go view of every BPF map: its records, and how to open, read and write them. It is
// the only place that knows layouts; the records themselves are generated from bpf/types.h.
package maps

import "bytes"

// The records of bpf/types.h, where their fields are described.
type (
	Address        = bpfAddress
	FrontendKey    = bpfFrontendKey
	Frontend       = bpfFrontend
	Algorithm      = bpfAlgorithm
	SlotRange      = bpfSlotRange
	Service        = bpfService
	ServiceName    = bpfServiceName
	SourceKey      = bpfSourceKey
	ClusterIPUse   = bpfClusterIpUse
	PrefixKey      = bpfPrefixKey
	AddressBounds  = bpfAddressBounds
	SlotBlock      = bpfSlotBlock
	Backend        = bpfBackend
	TunnelTarget   = bpfTunnelTarget
	BackendLoad    = bpfBackendLoad
	Health         = bpfHealth
	AffinityKey    = bpfAffinityKey
	AffinityEntry  = bpfAffinityEntry
	Tuple          = bpfTuple
	FlowKey        = bpfFlowKey
	FlowKeyIPv4    = bpfFlowKeyIpv4
	FlowAction     = bpfFlowAction
	FlowHalf       = bpfFlowHalf
	FlowState      = bpfFlowState
	Flow           = bpfFlow
	EdgeKind       = bpfEdgeKind
	Device         = bpfDevice
	DeviceRecord   = bpfDeviceRecord
	PacketCounters = bpfPacketCounters
	Traffic        = bpfTraffic
	EndingKey      = bpfEndingKey
	Ending         = bpfEnding
	SweepSettings  = bpfSweepSettings
	SocketPeer     = bpfSocketPeer
	SocketKey      = bpfSocketKey
	SocketFlow     = bpfSocketFlow
	Namespace      = bpfNetworkNamespace
	LocalVIP       = bpfLocalVip
	LiveSettings   = bpfLiveSettings
	AgentRecord    = bpfAgentRecord
)

// FrontendKind is enum frontend_kind, which no record has as a field of its own.
type FrontendKind uint8

// The kinds of frontend.
const (
	FrontendClusterIP    FrontendKind = 1 // FRONTEND_CLUSTER_IP
	FrontendNodePort     FrontendKind = 2 // FRONTEND_NODE_PORT
	FrontendLoadBalancer FrontendKind = 3 // FRONTEND_LOAD_BALANCER
	FrontendExternalIP   FrontendKind = 4 // FRONTEND_EXTERNAL_IP
)

// How a service picks a backend for a new flow.
const (
	AlgorithmRandom           = bpfAlgorithmALGORITHM_RANDOM
	AlgorithmMaglev           = bpfAlgorithmALGORITHM_MAGLEV
	AlgorithmLeastConnections = bpfAlgorithmALGORITHM_LEAST_CONNECTIONS
)

// What becomes of a packet to an address of Services that no frontend is for.
const (
	ClusterIPUnallocated = bpfClusterIpUseCLUSTER_IP_UNALLOCATED
	ClusterIPAllocated   = bpfClusterIpUseCLUSTER_IP_ALLOCATED
	ClusterIPLeft        = bpfClusterIpUseCLUSTER_IP_LEFT
)

// What map vips says of an address.
const (
	VIPAnswersInside  uint32 = 1 << 0 // VIP_ANSWERS_INSIDE
	VIPAnswersOutside uint32 = 1 << 1 // VIP_ANSWERS_OUTSIDE
)

// The edges a device can be part of.
const (
	EdgeNone = bpfEdgeKindEDGE_NONE
	EdgeNode = bpfEdgeKindEDGE_NODE
	EdgePod  = bpfEdgeKindEDGE_POD
)

// EdgeIDForeign is EDGE_ID_FOREIGN of bpf/types.h: no pod edge has it.
const EdgeIDForeign = 0xffff

// What a program does with a packet of a flow.
const (
	FlowStack   = bpfFlowActionFLOW_STACK
	FlowForward = bpfFlowActionFLOW_FORWARD
	FlowReturn  = bpfFlowActionFLOW_RETURN
	FlowForeign = bpfFlowActionFLOW_FOREIGN
	FlowHost    = bpfFlowActionFLOW_HOST
	FlowTunnel  = bpfFlowActionFLOW_TUNNEL

	FlowEnded FlowAction = 0x80 // FLOW_ENDED: added to one of the others
)

// The halves of a flow: client to backend, and back.
const (
	FlowHalfForward = bpfFlowHalfFLOW_HALF_FORWARD
	FlowHalfReverse = bpfFlowHalfFLOW_HALF_REVERSE
)

// The states of a flow.
const (
	FlowUnanswered  = bpfFlowStateFLOW_UNANSWERED
	FlowAnswered    = bpfFlowStateFLOW_ANSWERED
	FlowLost        = bpfFlowStateFLOW_LOST
	FlowEstablished = bpfFlowStateFLOW_ESTABLISHED
	FlowClosing     = bpfFlowStateFLOW_CLOSING
	FlowClosed      = bpfFlowStateFLOW_CLOSED
)

// Flags of services and backends; bpf/types.h describes them.
const (
	ServiceNoEndpoints     uint16 = 1 << 0 // SERVICE_NO_ENDPOINTS
	ServiceSourceRanges    uint16 = 1 << 1 // SERVICE_SOURCE_RANGES
	ServiceInsideWeighted  uint16 = 1 << 8 // SERVICE_INSIDE_WEIGHTED
	ServiceOutsideWeighted uint16 = 1 << 9 // SERVICE_OUTSIDE_WEIGHTED

	BackendLocal       uint32 = 1 << 0 // BACKEND_LOCAL
	BackendTerminating uint32 = 1 << 1 // BACKEND_TERMINATING
	BackendGone        uint32 = 1 << 2 // BACKEND_GONE
	BackendTunnel      uint32 = 1 << 3 // BACKEND_TUNNEL

	NamespaceLeft    uint32 = 1 << 0 // NAMESPACE_LEFT
	NamespaceCgroups uint32 = 1 << 1 // NAMESPACE_CGROUPS

	DeviceNoEthernet uint8 = 1 << 0 // DEVICE_NO_ETHERNET
	DeviceToPods     uint8 = 1 << 1 // DEVICE_TO_PODS
	DeviceInside     uint8 = 1 << 2 // DEVICE_INSIDE
)

// NameOf returns the record that names a service by its id. What is longer than the record is cut.
func NameOf(id uint32, name string) ServiceName {
	record := ServiceName{Id: id}
	copy(record.Name[:], name)
	return record
}

// String returns the name without its padding.
func (n bpfServiceName) String() string {
	return string(bytes.TrimRight(n.Name[:], "\x00"))
}
