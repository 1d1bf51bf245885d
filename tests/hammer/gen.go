// Package hammer changes services as fast as it can while packets run through the loaded programs.
package hammer

//go:generate go tool bpf2go -tags linux -target bpfel slow bpf/slow.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel device bpf/device.bpf.c
