package main

import (
	"os"
	"runtime/debug"
	"time"
)

// How much garbage there may be beside what is in use: while the first listing is read and written, which makes most of all
// garbage, and then. Objects and maps are kept for ever and change little: more would only be memory that others could have.
const (
	percentAtFirst = 30
	percentThen    = 20
)

// settled is how long after the first write its consequences have been seen to: next hops, health checks.
const settled = 3 * time.Second

// savings keeps the memory small.
type savings struct {
	percent bool // garbage is limited here: the environment does not say how much there may be
	written bool // the first listing is in the maps
}

func beginSavings() savings {
	s := savings{percent: os.Getenv("GOGC") == ""}
	s.limit(percentAtFirst)
	return s
}

func (s *savings) limit(percent int) {
	if s.percent {
		debug.SetGCPercent(percent)
	}
}

// wrote is told of each write of the maps.
func (s *savings) wrote(err error) {
	if s.written || err != nil {
		return
	}
	s.written = true
	s.limit(percentThen)
	go debug.FreeOSMemory() // what the listing was read from
	time.AfterFunc(settled, debug.FreeOSMemory)
}
