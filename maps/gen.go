package maps

// The maps and their records come from bpf/maps.h and bpf/types.h. `make generate` runs this with the
// pinned compiler; what it writes is not committed.

//go:generate ./generate
