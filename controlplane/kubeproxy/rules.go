// Package kubeproxy finds and removes what kube-proxy has left of netfilter rules in this network namespace. Connections
// that it has translated go on: the kernel translates them for as long as there is a nat chain and conntrack, which Keep
// sees to, until Release finds that they have ended.
//
//	kube-proxy -> weir agent starts -> kube-proxy stops -> Remove -> ... -> Release
package kubeproxy

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// tableName is of the tables that kube-proxy has to itself, mode nftables.
	tableName = "kube-proxy"
	// ipvsDevice is there in mode ipvs.
	ipvsDevice = "kube-ipvs0"
	// markChain and maskChain are also used by others: the portmap plugin can be told to.
	markChain, maskChain = "KUBE-MARK-MASQ", "KUBE-POSTROUTING"
	// forwardChain accepts what is forwarded for established connections.
	forwardChain = "KUBE-FORWARD"
	// bufferSize is for acknowledgements of a batch.
	bufferSize = 16 << 20
)

// chainNames are kube-proxy's in the tables of iptables; with a dash at the end, the names that begin like that. The
// kubelet has others: KUBE-FIREWALL, KUBE-IPTABLES-HINT, KUBE-KUBELET-CANARY.
var chainNames = []string{
	"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", maskChain, markChain, forwardChain,
	"KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY", "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-XLB-",
}

// ours tells whether a chain of an iptables table is kube-proxy's.
func ours(chain string) bool {
	return slices.ContainsFunc(chainNames, func(name string) bool {
		return chain == name || strings.HasSuffix(name, "-") && strings.HasPrefix(chain, name)
	})
}

// Rules are what is there of kube-proxy's.
type Rules struct {
	Tables []string       `json:"tables,omitempty"` // of its own: "ip kube-proxy"
	Chains map[string]int `json:"chains,omitempty"` // in tables of iptables-nft: "ip nat", and how many
	Legacy []string       `json:"legacy,omitempty"` // tables of legacy iptables that have chains of it: "ip nat"
	IPVS   bool           `json:"ipvs,omitempty"`   // the device of mode ipvs is there
}

// Any tells whether there is anything.
func (r Rules) Any() bool { return len(r.Tables)+len(r.Chains)+len(r.Legacy) > 0 || r.IPVS }

// String lists what there is.
func (r Rules) String() string {
	parts := []string{}
	for _, table := range r.Tables {
		parts = append(parts, "table "+table)
	}
	for _, table := range slices.Sorted(maps.Keys(r.Chains)) {
		parts = append(parts, fmt.Sprintf("%d chains of table %s", r.Chains[table], table))
	}
	for _, table := range r.Legacy {
		parts = append(parts, "chains of legacy iptables, table "+table)
	}
	if r.IPVS {
		parts = append(parts, "virtual servers of IPVS")
	}
	return strings.Join(parts, ", ")
}

// Find looks for kube-proxy's rules. What only serves connections that it has translated is not among them.
func Find() (Rules, error) {
	found, err := list(dial())
	if err != nil {
		return Rules{}, err
	}
	rules := Rules{Chains: map[string]int{}}
	for _, table := range found.own {
		rules.Tables = append(rules.Tables, nameOf(table))
	}
	for _, chain := range found.chains {
		// Others have these as well: kubelets before Kubernetes 1.28.
		shared := chain.Name == markChain || chain.Name == maskChain
		if ours(chain.Name) && !shared && !(found.kept != nil && chain.Name == forwardChain) {
			rules.Chains[nameOf(chain.Table)]++
		}
	}
	if rules.Legacy, err = legacyTables(); err != nil {
		return Rules{}, err
	}
	if _, err := net.InterfaceByName(ipvsDevice); err == nil {
		rules.IPVS = true
	}
	return rules, nil
}

// listing is what nf_tables has that may concern kube-proxy.
type listing struct {
	own    []*nftables.Table // kube-proxy's
	kept   *nftables.Table   // Keep's; nil if there is none
	chains []*nftables.Chain // all those of iptables' tables
}

// dial returns a connection to nf_tables. Nothing is opened before it is used.
func dial() *nftables.Conn {
	buffers := func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(bufferSize), c.SetWriteBuffer(bufferSize))
	}
	connection, _ := nftables.New(nftables.WithSockOptions(buffers)) // fails for lasting connections alone
	return connection
}

// list lists tables and chains. A kernel without nf_tables has none.
func list(c *nftables.Conn) (listing, error) {
	var found listing
	tables, err := c.ListTables()
	if missing(err) {
		return found, nil
	}
	if err != nil {
		return found, fmt.Errorf("list the tables of nf_tables: %w", err)
	}
	for _, table := range tables {
		switch {
		case table.Name == keepName && table.Family == nftables.TableFamilyINet:
			found.kept = table
		case table.Name == tableName && isIP(table.Family):
			found.own = append(found.own, table)
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		return found, fmt.Errorf("list the chains of nf_tables: %w", err)
	}
	for _, chain := range chains {
		if isIP(chain.Table.Family) && slices.Contains([]string{"nat", "filter", "mangle"}, chain.Table.Name) {
			found.chains = append(found.chains, chain)
		}
	}
	return found, nil
}

// isIP tells whether a table is for IPv4 or for IPv6 alone, as those of kube-proxy and iptables are.
func isIP(family nftables.TableFamily) bool {
	return family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyIPv6
}

// nameOf names a table as nft does.
func nameOf(table *nftables.Table) string {
	switch table.Family {
	case nftables.TableFamilyIPv4:
		return "ip " + table.Name
	case nftables.TableFamilyIPv6:
		return "ip6 " + table.Name
	default:
		return "inet " + table.Name
	}
}

// missing tells whether an error says that the kernel has no nf_tables.
func missing(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, os.ErrNotExist)
}
