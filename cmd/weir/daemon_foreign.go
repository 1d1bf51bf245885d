package main

import (
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/foreign"
	"github.com/weir-lb/weir/controlplane/status"
)

// makeForeign makes what records the connections that others translate.
func (d *daemon) makeForeign() {
	d.foreign = foreign.New(foreign.Options{
		Set: d.set, SNATPorts: compile.PortRange(d.config.snatPorts), Log: d.log,
		Ready: []<-chan struct{}{d.synced, d.devices.Ready()},
		Jiffies: func() (uint32, error) {
			clock, err := readClock()
			return clock.now, err
		},
	})
}

// foreignOf puts what was recorded into the words of the status file; nil: nothing yet.
func foreignOf(found *foreign.Found) *status.Foreign {
	if found == nil {
		return nil
	}
	return &status.Foreign{Connections: found.Connections, Answers: found.Answers}
}
