package kubeproxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"github.com/weir-lb/weir/controlplane/conntrack"
)

// The kernel translates the packets of a translated connection for as long as there is any chain of type nat in the
// network namespace, and tracks it for as long as any rule asks for the state of a connection. The table has one of
// each, and in sets the connections that are the reason, as their first packets came:
//
//	table inet weir-keep {
//		set ipv4 { type inet_proto . ipv4_addr . inet_service . ipv4_addr . inet_service; ... }
//		set ipv6 { ... }
//		chain nat { type nat hook prerouting priority dstnat; }
//		chain tracking { type filter hook prerouting priority filter; ct state new }
//	}

// keepName is of the table that keeps connections alive.
const keepName = "weir-keep"

// elementsPerMessage keeps messages below the 64 KiB that an attribute can be long.
const elementsPerMessage = 500

// keptSets are the sets of the table, for IPv4 and for IPv6.
func keptSets(table *nftables.Table) (sets [2]*nftables.Set, err error) {
	for i, name := range []string{"ipv4", "ipv6"} {
		address := []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr}[i]
		kind, err := nftables.ConcatSetType(nftables.TypeInetProto, address, nftables.TypeInetService, address, nftables.TypeInetService)
		if err != nil {
			return sets, err
		}
		sets[i] = &nftables.Set{Table: table, Name: name, KeyType: kind, Concatenation: true}
	}
	return sets, nil
}

// keep makes the table where it is not, and adds connections to those that it is there for.
func keep(c *nftables.Conn, connections []conntrack.Tuple) error {
	found, err := list(c)
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: keepName, Family: nftables.TableFamilyINet}
	sets, err := keptSets(table)
	if err != nil {
		return err
	}
	if found.kept == nil {
		c.AddTable(table)
		if err := errors.Join(c.AddSet(sets[0], nil), c.AddSet(sets[1], nil)); err != nil {
			return err
		}
		addKeepingChains(c, table)
	}
	for some := range slices.Chunk(connections, elementsPerMessage) {
		var elements [2][]nftables.SetElement
		for _, connection := range some {
			family, key := keyOf(connection)
			elements[family] = append(elements[family], nftables.SetElement{Key: key})
		}
		for family, of := range elements {
			if len(of) == 0 {
				continue
			}
			if err := c.SetAddElements(sets[family], of); err != nil {
				return err
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make table inet %s: %w", keepName, err)
	}
	return nil
}

// addKeepingChains adds what makes the kernel go on translating.
func addKeepingChains(c *nftables.Conn, table *nftables.Table) {
	c.AddChain(&nftables.Chain{
		Name: "nat", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	tracking := c.AddChain(&nftables.Chain{
		Name: "tracking", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: tracking, Exprs: []expr.Any{ // ct state new
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}})
}

// keyOf returns the element of a connection, and of which set: each part fills whole registers of four bytes.
func keyOf(t conntrack.Tuple) (family int, key []byte) {
	if t.Source.Addr().Is6() {
		family = 1
	}
	key = []byte{t.Protocol, 0, 0, 0}
	for _, end := range []netip.AddrPort{t.Source, t.Destination} {
		key = append(key, end.Addr().AsSlice()...)
		key = append(key, binaryutil.BigEndian.PutUint16(end.Port())...)
		key = append(key, 0, 0)
	}
	return family, key
}

// translated lists the connections whose destination the kernel translates, as their first packets came.
func translated() ([]conntrack.Tuple, error) {
	var tuples []conntrack.Tuple
	err := conntrack.Each(func(c conntrack.Connection) bool {
		if c.Status&conntrack.DstNAT != 0 {
			tuples = append(tuples, c.Original)
		}
		return true
	})
	return tuples, err
}

// Kept returns how many of the connections go on that kube-proxy has translated, and whether there is a table for them.
func Kept() (count int, table bool, err error) {
	c := dial()
	kept, err := keptTable(c)
	if err != nil || kept == nil {
		return 0, false, err
	}
	recorded, err := readKept(c, kept)
	if err != nil || len(recorded) == 0 {
		return 0, true, err
	}
	connections, err := translated()
	for _, connection := range connections {
		if _, key := keyOf(connection); recorded[string(key)] {
			count++
		}
	}
	return count, true, err
}

// keptTable returns the table, or nil where there is none.
func keptTable(c *nftables.Conn) (*nftables.Table, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil && !missing(err) {
		return nil, fmt.Errorf("list the tables of nf_tables: %w", err)
	}
	for _, table := range tables {
		if table.Name == keepName {
			return table, nil
		}
	}
	return nil, nil //nolint:nilnil // absence is an answer
}

// readKept reads the recorded connections.
func readKept(c *nftables.Conn, table *nftables.Table) (map[string]bool, error) {
	sets, err := keptSets(table)
	if err != nil {
		return nil, err
	}
	recorded := map[string]bool{}
	for _, set := range sets {
		elements, err := c.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("read set %s of table inet %s: %w", set.Name, keepName, err)
		}
		for _, element := range elements {
			recorded[string(element.Key)] = true
		}
	}
	return recorded, nil
}

// Release removes what Remove has left for connections, when they have ended; it returns how many have not. Where there is
// nothing, it does nothing.
func Release() (count int, removed []string, err error) {
	count, table, err := Kept()
	if err != nil || !table || count > 0 {
		return count, nil, err
	}
	c := dial()
	found, err := list(c)
	if err != nil || found.kept == nil {
		return 0, nil, err
	}
	c.DelTable(found.kept)
	if err := c.Flush(); err != nil {
		return 0, nil, fmt.Errorf("remove table %s: %w", nameOf(found.kept), err)
	}
	removed, err = removeChains(c, found.chains, func(chain string) bool { return chain == forwardChain })
	return 0, removed, err
}
