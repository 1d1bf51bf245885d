package claims

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-lb/weir/maps"
)

// index knows which Services have something at an address. There may be a million addresses, of which nearly all are of one
// Service alone: those cost no list.
type index struct {
	one    map[maps.Address]*types.NamespacedName
	others map[maps.Address][]*types.NamespacedName // where there are several: all but the one
}

func newIndex() index {
	return index{map[maps.Address]*types.NamespacedName{}, map[maps.Address][]*types.NamespacedName{}}
}

// at returns who has something at an address, sorted.
func (i index) at(where netip.Addr) []types.NamespacedName {
	address := maps.AddressOf(where)
	one := i.one[address]
	if one == nil {
		return nil
	}
	names := []types.NamespacedName{*one}
	for _, other := range i.others[address] {
		names = append(names, *other)
	}
	slices.SortFunc(names, byName)
	return names
}

// add enters a name at an address, once.
func (i index) add(where netip.Addr, name *types.NamespacedName) {
	address := maps.AddressOf(where)
	switch one := i.one[address]; {
	case one == nil:
		i.one[address] = name
	case *one != *name && !slices.ContainsFunc(i.others[address], named(*name)):
		i.others[address] = append(i.others[address], name)
	}
}

// remove takes a name off an address.
func (i index) remove(where netip.Addr, name types.NamespacedName) {
	address := maps.AddressOf(where)
	one, others := i.one[address], i.others[address]
	switch {
	case one == nil:
		return
	case *one != name:
		others = slices.DeleteFunc(others, named(name))
	case len(others) == 0:
		delete(i.one, address)
	default:
		i.one[address], others = others[0], others[1:]
	}
	if i.others[address] = others; len(others) == 0 {
		delete(i.others, address)
	}
}

func named(name types.NamespacedName) func(*types.NamespacedName) bool {
	return func(other *types.NamespacedName) bool { return *other == name }
}
