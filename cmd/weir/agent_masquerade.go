package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/masquerade"
)

// masqueradeBitStandard is kube-proxy's, too: what else looks at marks knows it.
const masqueradeBitStandard = 14

// masqueradeFlags say whether what goes to ClusterIPs gets an address of the node as its source.
type masqueradeFlags struct {
	all bool
	bit int
}

func (f *masqueradeFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.all, "masquerade-all", false, "give all traffic to ClusterIPs an address of the node as its source")
	c.Flags().IntVar(&f.bit, "masquerade-bit", masqueradeBitStandard, "bit of packets' marks that --masquerade-all uses, and what policies of XFRM may concern, 0 to 31")
}

// parse checks the flags. The error is a usageError.
func (f masqueradeFlags) parse() (masqueradeFlags, error) {
	if f.bit < 0 || f.bit > 31 {
		return f, usagef("--masquerade-bit %d is not between 0 and 31", f.bit)
	}
	return f, nil
}

// mark is the bit as it is in a packet's mark.
func (f masqueradeFlags) mark() uint32 { return 1 << f.bit }

// masqueradeOf returns what a configuration says, by its mode, in the words of the flags.
func masqueradeOf(c *kubeproxy.KubeProxyConfiguration) (all, bit string) {
	asked, number := c.IPTables.MasqueradeAll, c.IPTables.MasqueradeBit
	if c.Mode == "nftables" {
		asked, number = c.NFTables.MasqueradeAll, c.NFTables.MasqueradeBit
	}
	if number != nil {
		bit = fmt.Sprint(*number)
	}
	return onlyTrue(asked), bit
}

// makeMasquerade makes the rules, and returns the mark by which programs choose what they are for. Where there can be
// none, traffic keeps its source, and status says so.
func (d *daemon) makeMasquerade() (mark uint32) {
	if !d.config.masquerade.all {
		if _, err := masquerade.Remove(); err != nil {
			d.log.Warn("remove the rules of --masquerade-all", zap.Error(err))
		}
		return 0
	}
	rules, err := d.masqueradeRules()
	if err == nil {
		err = rules.Make()
	}
	if err != nil {
		d.log.Error("masquerade what goes to ClusterIPs", zap.Error(err))
		d.kernelProblems = append(d.kernelProblems, compile.Problem{
			Object: "Configuration", Reason: "MasqueradeRefused",
			Message: fmt.Sprintf("masqueradeAll cannot be done (%v): traffic to ClusterIPs keeps its source; it needs nf_tables in the kernel", err),
		})
		return 0
	}
	d.masquerade = &rules
	if d.nodeNetNS == 0 && d.config.socketLB == "all" {
		d.kernelProblems = append(d.kernelProblems, problemUntold())
	}
	return rules.Mark
}

// masqueradeRules are the rules, whoever needs them.
func (d *daemon) masqueradeRules() (masquerade.Rules, error) {
	ports, err := localPortRange()
	return masquerade.Rules{Mark: d.config.masquerade.mark(), Ports: compile.PortRange(ports)}, err
}

// masqueradeForPolicies makes the rules where they are not there yet: policies of XFRM need them.
func (d *daemon) masqueradeForPolicies() error {
	rules, err := d.masqueradeRules()
	if err != nil {
		return err
	}
	return rules.Ensure()
}

// problemUntold says that sockets of pods are served as those of the node, which need no masquerade.
func problemUntold() compile.Problem {
	return compile.Problem{
		Object: "Configuration", Reason: "MasqueradeIncomplete",
		Message: "masqueradeAll is not done for pods: the kernel does not tell their sockets from those of the node (Linux 5.14), so the socket edge serves them with their own address; use --socket-lb off",
	}
}
