package loader

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpTries bounds how often a list is asked for that changes all the time.
const dumpTries = 20

// DumpWhole asks the kernel for a list until nothing has changed while it was made: the kernel marks one that may lack
// something (NLM_F_DUMP_INTR). The error is netlink.ErrDumpInterrupted where that never happens.
func DumpWhole[T any](list func() ([]T, error)) (whole []T, err error) {
	for range dumpTries {
		whole, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return whole, err
}
