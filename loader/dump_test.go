package loader

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestDumpWhole(t *testing.T) {
	asked := 0
	interrupted := func(times int) func() ([]int, error) {
		asked = 0
		return func() ([]int, error) {
			if asked++; asked <= times {
				return []int{1}, netlink.ErrDumpInterrupted
			}
			return []int{1, 2}, nil
		}
	}
	if whole, err := DumpWhole(interrupted(2)); err != nil || !slices.Equal(whole, []int{1, 2}) || asked != 3 {
		t.Errorf("%v and %v of %d lists", whole, err, asked)
	}
	if _, err := DumpWhole(interrupted(dumpTries)); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("a list that always changes: %v", err)
	}
}
