package bench

//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types harness ../bpf/bench/harness.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types floor ../bpf/bench/floor.bpf.c
