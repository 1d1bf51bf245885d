package main

import (
	"os"
	"runtime/debug"
	"time"
)

// garbagePercent is how much garbage there may be beside what is in use. Objects and maps are kept for ever and change
// little: more would only be memory that others could have.
const garbagePercent = 20

// settled is how long after the first write its consequences have been seen to: next hops, health checks.
const settled = 3 * time.Second

// savings keeps the memory small, once the first listing is in the maps: until then there is most garbage of all.
type savings struct{ begun bool }

// written is told of each write of the maps.
func (s *savings) written(err error) {
	if s.begun || err != nil {
		return
	}
	s.begun = true
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
	go debug.FreeOSMemory() // what the listing was read from
	time.AfterFunc(settled, debug.FreeOSMemory)
}
