package loader

// One object for each program of bpf/, compiled by `make generate`; what it writes is not committed.

//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types nodeXdp ../bpf/node_xdp.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types nodeIngress ../bpf/node_ingress.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types nodeEgress ../bpf/node_egress.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types podIngress ../bpf/pod_ingress.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types podEgress ../bpf/pod_egress.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types sweep ../bpf/sweep.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types socketConnect ../bpf/socket_connect.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types socketSendmsg ../bpf/socket_sendmsg.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types socketRecvmsg ../bpf/socket_recvmsg.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types socketGetpeername ../bpf/socket_getpeername.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types socketList ../bpf/socket_list.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types socketDestroy ../bpf/socket_destroy.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types socketBind ../bpf/socket_bind.bpf.c
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types socketRelease ../bpf/socket_release.bpf.c
