package dsr

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	weirmaps "github.com/weir-lb/weir/maps"
)

// set is a map that follows what all Nodes say: of thousands, one at a time changes.
type set[K comparable] struct {
	name string
	m    *ebpf.Map
	held map[K]struct{} // nil: not known
}

// hold makes the map hold these keys and no others, or as many as it has room for.
func (s *set[K]) hold(wanted map[K]struct{}, problems *[]compile.Problem) error {
	var err error
	if s.held == nil {
		err = weirmaps.Hold(s.m, wanted)
	} else {
		err = weirmaps.Replace(s.m, s.held, wanted)
	}
	if err == nil {
		s.held = wanted
		return nil
	}
	s.held = nil
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		*problems = append(*problems, compile.Problem{
			Object: "Map " + s.name, Reason: "NoRoom",
			Message: fmt.Sprintf("the Nodes' annotations %s come to %d entries, and there is room for %d: what some of them send, or are sent, in tunnels is lost; run some agents with --forward snat",
				compile.AnnotationDSR, len(wanted), s.m.MaxEntries()),
		})
	}
	return err
}
