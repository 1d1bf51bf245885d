package apply

import (
	"hash/fnv"
	"net/netip"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// backendKey is what makes two endpoints the same backend.
type backendKey struct {
	address  netip.AddrPort
	protocol compile.Protocol
}

// backend is an entry of map backends.
type backend struct {
	key        backendKey
	index      uint32
	generation uint32
	flags      uint32
	references int // service records whose tables name it
}

func (b *backend) record() maps.Backend {
	return maps.Backend{
		Generation: b.generation,
		Flags:      b.flags,
		Address:    maps.AddressOf(b.key.address.Addr()),
		Port:       b.key.address.Port(),
		Protocol:   uint8(b.key.protocol),
	}
}

// service is what the maps hold for one ID.
type service struct {
	id        compile.ID
	index     uint32       // of its record
	record    maps.Service // as it stands at the index
	inside    uint64       // tableHash of each table
	outside   uint64
	backends  []*backend // those its tables name, each once
	frontends map[maps.FrontendKey]struct{}
}

// tableHash tells tables apart without keeping them.
func tableHash(table []uint32) uint64 {
	hash := fnv.New64a()
	var word [4]byte
	for _, index := range table {
		word[0], word[1], word[2], word[3] = byte(index), byte(index>>8), byte(index>>16), byte(index>>24)
		hash.Write(word[:])
	}
	return hash.Sum64()
}

// state is what the maps hold, as read back at the start and followed since.
type state struct {
	services   map[compile.ID]*service
	backends   map[backendKey]*backend
	owners     map[maps.FrontendKey]*service
	generation uint32 // the highest given to a record or a backend

	indices        pool // of service records
	ids            pool // of services
	backendIndices pool
	arena          *maps.Arena
	frontendLimit  uint32 // of map frontends

	retiring retired // will not be named any more once the plan being made is written
	retired  retired // not named any more, as of the writes made; may still be read
	awaiting retired // a grace period later: ids and backends that flows may still name
}

// retired is what may be given out again once nobody can be using it.
type retired struct {
	records  []uint32
	tables   []maps.SlotRange
	ids      []uint32
	backends []*backend
}

func (r *retired) empty() bool {
	return len(r.records)+len(r.tables)+len(r.ids)+len(r.backends) == 0
}

// take moves all of other here.
func (r *retired) take(other *retired) {
	r.records = append(r.records, other.records...)
	r.tables = append(r.tables, other.tables...)
	r.ids = append(r.ids, other.ids...)
	r.backends = append(r.backends, other.backends...)
	*other = retired{}
}

// nextGeneration returns a generation that no record has had. 0 says "unused".
func (s *state) nextGeneration() uint32 {
	s.generation++
	if s.generation == 0 {
		s.generation++
	}
	return s.generation
}
