// Package masquerade gives what goes to ClusterIPs an address of the node as its source (masqueradeAll, rule C02), and what
// policies of XFRM may concern on its way to a backend elsewhere (bpf/policy.h). The programs mark the packets that begin
// such a flow, and a table of netfilter in this network namespace does the rest, as
// kube-proxy's does: behind all policies, and conntrack turns the answers back.
//
//	table inet weir-masquerade {
//		chain postrouting {
//			type nat hook postrouting priority srcnat;
//			meta mark & 0x4000 != 0 meta mark set meta mark & ~0x4000 masquerade to :32768-60999
//		}
//	}
//
// The ports are those of the node's own connections, which are neither NodePorts nor those of --snat-ports.
package masquerade

import (
	"context"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"github.com/weir-lb/weir/controlplane/compile"
)

// tableName is of the table.
const tableName = "weir-masquerade"

// lookEvery is the pause between two looks whether the table is still there.
const lookEvery = 30 * time.Second

// Rules are what the table does.
type Rules struct {
	Mark  uint32 // the bit that programs set
	Ports compile.PortRange
}

// Make makes the table, anew where there is one. Connections that go on keep what they have.
func (r Rules) Make() error {
	c := &nftables.Conn{}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	c.AddTable(table) // to delete what may not be there
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.rule()})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make table inet %s: %w", tableName, err)
	}
	return nil
}

// rule is the one rule.
func (r Rules) rule() []expr.Any {
	word := binaryutil.NativeEndian.PutUint32
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: word(r.Mark), Xor: word(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: word(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: word(^r.Mark), Xor: word(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(r.Ports.First)},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(r.Ports.Last)},
		&expr.Masq{ToPorts: true, RegProtoMin: 1, RegProtoMax: 2},
	}
}

// Ensure makes the table where it is not there.
func (r Rules) Ensure() error {
	there, err := exists(&nftables.Conn{})
	if err != nil || there {
		return err
	}
	return r.Make()
}

// Keep makes the table again when somebody has taken it away, until the context ends.
func (r Rules) Keep(ctx context.Context, failed func(error)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookEvery):
		}
		if err := r.Ensure(); err != nil {
			failed(err)
		}
	}
}

// Remove takes the table away, and tells whether there was one. A kernel without nf_tables has none.
func Remove() (removed bool, err error) {
	c := &nftables.Conn{}
	there, err := exists(c)
	if err != nil || !there {
		return false, nil //nolint:nilerr // nothing of ours can be there
	}
	c.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil {
		return false, fmt.Errorf("remove table inet %s: %w", tableName, err)
	}
	return true, nil
}

func exists(c *nftables.Conn) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list tables of netfilter: %w", err)
	}
	for _, table := range tables {
		if table.Name == tableName {
			return true, nil
		}
	}
	return false, nil
}
