package lab

//go:generate go tool bpf2go -tags linux -target bpfel -type connection policy bpf/policy.bpf.c
