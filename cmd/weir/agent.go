package main

import (
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/weir-lb/weir/controlplane/detectlocal"
	"github.com/weir-lb/weir/controlplane/devices"
	"github.com/weir-lb/weir/controlplane/proxyconfig"
	"github.com/weir-lb/weir/controlplane/status"
	"github.com/weir-lb/weir/controlplane/sweep"
	"github.com/weir-lb/weir/maps"
)

// agentFlags are the flags of agent, as they were given.
type agentFlags struct {
	config        string
	proxy         *proxyconfig.File // of config
	source        sourceFlags
	health        healthFlags
	nodeName      string
	bpffs         string
	devices       []string
	xdp           string
	attachMode    string
	socketLB      string
	cgroupRoot    string
	snatPorts     string
	forward       string
	nodePorts     []string
	local         detectlocal.Settings
	maglevSize    uint32
	masquerade    masqueradeFlags
	vipPing       bool
	sizes         maps.Sizes
	timeouts      sweep.Timeouts
	quarantine    time.Duration
	level, format string
}

// newAgent returns the command that is the daemon.
func newAgent() *cobra.Command {
	var flags agentFlags
	c := &cobra.Command{
		Use:   "agent --kubeconfig FILE | --manifests DIR",
		Short: "Run the agent: keep the maps as the Services are, and the programs attached",
		Long: `Run the agent of a node: it keeps the maps as the Services are, and the programs attached to the node's and the
pods' devices. What it leaves behind when it ends goes on forwarding; started again, it takes that up and changes
nothing that is right. weir cleanup removes everything.`,
		Args: cobra.NoArgs,
		RunE: doing(func(c *cobra.Command, _ []string) error {
			if err := flags.readConfig(c.Flags()); err != nil {
				return err
			}
			config, err := flags.parse()
			if err != nil {
				return err
			}
			return runAgent(c.Context(), config)
		}),
	}
	f := c.Flags()
	f.StringVar(&flags.config, "config", "", "KubeProxyConfiguration file of a cluster, like the one in its ConfigMap kube-proxy; flags win over it")
	flags.source.add(c)
	flags.health.add(c)
	f.StringVar(&flags.nodeName, "node-name", "", "name of this node's Node object (default: the host's name)")
	bpffsFlag(c, &flags.bpffs)
	f.StringSliceVar(&flags.devices, "devices", nil, "devices that traffic from outside arrives by, like eth0,bond* (default: found by itself)")
	f.StringVar(&flags.xdp, "xdp", "auto", "auto: where the driver does it without harm; native: where it can; generic; off")
	f.StringVar(&flags.attachMode, "attach-mode", "auto", "auto: tcx, or clsact before Linux 6.6; tcx; clsact")
	f.StringVar(&flags.socketLB, "socket-lb", "all", "whose sockets are translated at connect() and send(): all, host (of this network namespace alone) or off")
	f.StringVar(&flags.cgroupRoot, "cgroup-root", "", "directory of cgroup v2 whose sockets --socket-lb serves (default: where cgroup2 is mounted)")
	f.StringVar(&flags.snatPorts, "snat-ports", "61000-65535", "source ports for traffic sent on to backends elsewhere")
	f.StringVar(&flags.forward, "forward", forwardSNAT, "how traffic from outside comes to backends on other nodes: snat; or dsr, in tunnels to nodes that take part, which answer the client themselves")
	f.StringSliceVar(&flags.nodePorts, "nodeport-addresses", nil, "addresses that NodePorts answer on: prefixes, or primary (default: all of the node)")
	localFlags(c, &flags.local)
	flags.masquerade.add(c)
	f.Uint32Var(&flags.maglevSize, "maglev-table-size", 0, "slots of each Maglev table, a prime, the same on every node (default: by the number of endpoints)")
	f.BoolVar(&flags.vipPing, "vip-ping", true, "answer pings of Services' addresses that have a backend")
	sizeFlags(c, &flags.sizes)
	addTimeouts(c, &flags.timeouts)
	addQuarantine(c, &flags.quarantine)
	f.StringVar(&flags.level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&flags.format, "log-format", "console", "console or json")
	return c
}

// localFlags adds the flags that say which traffic counts as a pod's; they are called as kube-proxy's.
func localFlags(c *cobra.Command, local *detectlocal.Settings) {
	f := c.Flags()
	f.StringVar(&local.Mode, "detect-local-mode", "", "what that arrives by devices of the node counts as a pod's: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix (default: nothing)")
	f.StringVar(&local.ClusterCIDR, "cluster-cidr", "", "prefixes of the cluster's pods, for ClusterCIDR")
	f.StringVar(&local.BridgeInterface, "pod-bridge-interface", "", "the pods' bridge, for BridgeInterface")
	f.StringVar(&local.NamePrefix, "pod-interface-name-prefix", "", "what the names of the pods' devices begin with, for InterfaceNamePrefix")
}

// sizeFlags adds the flags for the sizes of the maps that grow with the cluster.
func sizeFlags(c *cobra.Command, sizes *maps.Sizes) {
	standard := maps.DefaultSizes()
	for _, size := range []struct {
		to       *uint32
		flag     string
		standard uint32
		what     string
	}{
		{&sizes.Services, "max-services", standard.Services, "Service ports of one address family"},
		{&sizes.Frontends, "max-frontends", standard.Frontends, "addresses that clients send to"},
		{&sizes.Backends, "max-backends", standard.Backends, "endpoints"},
		{&sizes.SlotBlocks, "max-slot-blocks", standard.SlotBlocks, "blocks of 16 slots for selection tables"},
		{&sizes.Sources, "max-source-ranges", standard.Sources, "prefixes of loadBalancerSourceRanges, counted for each Service port"},
		{&sizes.FlowsIPv4, "max-flows", standard.FlowsIPv4, "halves of established IPv4 connections, two for each"},
		{&sizes.FlowsIPv6, "max-flows-ipv6", standard.FlowsIPv6, "halves of established IPv6 connections"},
		{&sizes.Embryos, "max-embryos", standard.Embryos, "halves of connections not yet established"},
		{&sizes.Affinity, "max-affinity", standard.Affinity, "clients remembered for session affinity"},
		{&sizes.Devices, "max-devices", standard.Devices, "devices"},
	} {
		c.Flags().Uint32Var(size.to, size.flag, size.standard, "room for that many "+size.what+"; pinned maps keep their size")
	}
}

// agentConfig is what an agent works with.
type agentConfig struct {
	configFile    string
	proxy         *proxyconfig.File
	source        sourceConfig
	health        healthFlags
	late          time.Duration // changes that wait for longer make the node unhealthy
	nodeName      string
	bpffs         string
	devices       []string
	xdp           string
	attachMode    string
	socketLB      string
	cgroupRoot    string
	snatPorts     status.PortRange
	forward       string
	nodePorts     devices.NodePortAddresses
	nodePortTexts []string
	local         detectlocal.Detector
	localSettings detectlocal.Settings
	maglevSize    uint32 // 0: by the number of endpoints
	masquerade    masqueradeFlags
	vipPing       bool
	sizes         maps.Sizes
	timeouts      sweep.Timeouts
	quarantine    time.Duration // 0: none
	log           *zap.Logger
}

// What --forward can be.
const (
	forwardSNAT = "snat"
	forwardDSR  = "dsr"
)

// dsr tells whether packets go to other nodes in tunnels.
func (c agentConfig) dsr() bool { return c.forward == forwardDSR }

// parse checks the flags. The error is a usageError.
func (f agentFlags) parse() (agentConfig, error) {
	config := agentConfig{
		nodeName: f.nodeName, configFile: f.config, proxy: f.proxy,
		late: lateAfterOf(&f.proxy.KubeProxyConfiguration), nodePortTexts: f.nodePorts, bpffs: f.bpffs, devices: f.devices,
		xdp: f.xdp, attachMode: f.attachMode, socketLB: f.socketLB, cgroupRoot: f.cgroupRoot, vipPing: f.vipPing, sizes: f.sizes, timeouts: f.timeouts,
		quarantine: f.quarantine, forward: f.forward,
	}
	var err error
	if config.source, err = f.source.parse(); err != nil {
		return config, err
	}
	config.source.connection.Configure(f.proxy.ClientConnection)
	if config.health, err = f.health.parse(); err != nil {
		return config, err
	}
	if err := oneOf("--xdp", f.xdp, "auto", "native", "generic", "off"); err != nil {
		return config, err
	}
	if err := oneOf("--attach-mode", f.attachMode, "auto", "tcx", "clsact"); err != nil {
		return config, err
	}
	if err := oneOf("--socket-lb", f.socketLB, "all", "host", "off"); err != nil {
		return config, err
	}
	if err := oneOf("--forward", f.forward, forwardSNAT, forwardDSR); err != nil {
		return config, err
	}
	if err := checkTimeouts(f.timeouts); err != nil {
		return config, err
	}
	if err := checkQuarantine(f.quarantine); err != nil {
		return config, err
	}
	if config.snatPorts, err = parsePortRange(f.snatPorts); err != nil {
		return config, usagef("--snat-ports: %w", err)
	}
	for _, pattern := range f.devices {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return config, usagef("--devices: %q is not a name or a pattern like bond*", pattern)
		}
	}
	if config.nodePorts, err = devices.ParseNodePortAddresses(f.nodePorts); err != nil {
		return config, usagef("--nodeport-addresses: %w", err)
	}
	if config.local, err = detectlocal.Parse(f.local); err != nil {
		return config, usagef("--detect-local-mode: %w", err)
	}
	config.localSettings = f.local
	if config.masquerade, err = f.masquerade.parse(); err != nil {
		return config, err
	}
	if config.maglevSize = f.maglevSize; f.maglevSize != 0 && !maps.IsMaglevSize(f.maglevSize) {
		return config, usagef("--maglev-table-size %d is not a prime between %d and %d: use 1021, say", f.maglevSize, maps.MaglevSizeMin, maps.MaglevSizeMax)
	}
	config.log, err = newLogger(f.level, f.format)
	return config, err
}

// oneOf refuses a flag's value that is none of those.
func oneOf(flag, value string, values ...string) error {
	for _, v := range values {
		if v == value {
			return nil
		}
	}
	return usagef("%s %q is unknown: use %s", flag, value, strings.Join(values, ", "))
}

// newLogger returns a log on standard error.
func newLogger(level, format string) (*zap.Logger, error) {
	lowest, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, usagef("--log-level %q is unknown: use debug, info, warn or error", level)
	}
	if err := oneOf("--log-format", format, "console", "json"); err != nil {
		return nil, err
	}
	config := zap.NewProductionEncoderConfig()
	config.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	config.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(config)
	if format == "console" {
		encoder = zapcore.NewConsoleEncoder(config)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(os.Stderr), lowest)), nil
}

// nodeNameOr returns a name, or the host's where it is empty.
func nodeNameOr(name string) (string, error) {
	if name != "" {
		return name, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("ask for the host's name: %w; name the node with --node-name", err)
	}
	return strings.ToLower(host), nil
}
