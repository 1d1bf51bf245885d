// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/connect: a socket that is connected to a frontend is connected to a backend of it. From then on its
 * packets cost nothing.
 */
#include "access_socket.h"
#include "cluster_ip_socket.h"
#include "socket_load.h"

/* Notes in the socket's storage what it was told, for getpeername and recvmsg. */
static __always_inline bool connect_note(struct bpf_sock_addr *context, const struct endpoint *frontend,
					 const struct service *service, const struct backend *backend, __u32 index)
{
	struct socket_peer *peer;

	if (!context->sk)
		return false;
	peer = bpf_sk_storage_get(&socket_peers, context->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peer)
		return false;
	peer_leave(peer);
	load_add_socket(index, 1);
	peer->frontend = frontend->address;
	peer->frontend_port = bpf_ntohs(frontend->port);
	peer->backend = backend->address;
	peer->backend_port = backend->port;
	peer->service = service->id;
	peer->index = index;
	peer->generation = backend->generation;
	return true;
}

/* A socket connected anew, to something that is no frontend, is to be told nothing of the old one. */
static __always_inline int connect_forget(struct bpf_sock_addr *context)
{
	struct socket_peer *peer;

	if (!context->sk)
		return SOCKET_PROCEED;
	peer = bpf_sk_storage_get(&socket_peers, context->sk, NULL, 0);
	if (!peer)
		return SOCKET_PROCEED;
	peer_leave(peer);
	bpf_sk_storage_delete(&socket_peers, context->sk);
	return SOCKET_PROCEED;
}

/* A refused connect() leaves the socket as it was. */
static __always_inline int connect_unclaimed(struct bpf_sock_addr *context, const struct endpoint *endpoint)
{
	if (socket_unclaimed(context, endpoint) == SOCKET_REFUSE)
		return SOCKET_REFUSE;
	return connect_forget(context);
}

/* Whether a connection has the tuple, seen from its backend; also one that has just ended. */
static __noinline bool tuple_is_taken_tcp(struct bpf_sock_addr *context, struct bpf_sock_tuple *tuple, __u32 size)
{
	struct bpf_sock *other = bpf_skc_lookup_tcp(context, tuple, size, BPF_F_CURRENT_NETNS, 0);
	bool taken;

	if (!other)
		return false;
	taken = other->state != BPF_TCP_LISTEN;
	bpf_sk_release(other);
	return taken;
}

/* The same of a connected UDP socket. */
static __always_inline bool tuple_is_taken_udp(struct bpf_sock_addr *context, struct bpf_sock_tuple *tuple,
					       __u32 size)
{
	struct bpf_sock *other = bpf_sk_lookup_udp(context, tuple, size, BPF_F_CURRENT_NETNS, 0);
	bool taken;

	if (!other)
		return false;
	taken = other->state == BPF_TCP_ESTABLISHED;
	bpf_sk_release(other);
	return taken;
}

/*
 * Whether another socket has the connection to the backend that this one would make: that is so where both are
 * bound to one port, and were told of different frontends.
 */
static __always_inline bool connect_is_taken(struct bpf_sock_addr *context, const struct endpoint *backend)
{
	struct bpf_sock_tuple tuple = {};
	struct address client;
	__u32 size;

	if (!context->sk || !context->sk->src_port || context->sk->dst_port ||
	    !socket_client(context, backend, &client))
		return false;
	size = socket_tuple_fill(&tuple, &backend->address, backend->port, &client, bpf_htons(context->sk->src_port));
	if (backend->protocol == IPPROTO_TCP)
		return tuple_is_taken_tcp(context, &tuple, size);
	return tuple_is_taken_udp(context, &tuple, size);
}

/*
 * Connects to a backend to which no other socket has the connection; where there is none, to the frontend: the
 * packet edges have ports of their own. False: `verdict` is all there is to say.
 */
static __always_inline bool connect_open(struct bpf_sock_addr *context, struct endpoint *endpoint,
					 const struct service *service, int *verdict)
{
	__u32 start = bpf_get_prandom_u32(), index, i;
	struct endpoint frontend = *endpoint;
	struct backend *backend;
	struct address client;
	int error = 0;

	socket_affinity_client(context, endpoint, service, &client);
	for (i = 0; i < SOCKET_PICKS; i++) {
		index = socket_pick(service, &client, start, i, &error);
		backend = index ? backend_find(index) : NULL;
		if (!backend) {
			*verdict = socket_refuse(error ? error : ECONNREFUSED);
			return false;
		}
		endpoint_set_backend(endpoint, backend);
		if (connect_is_taken(context, endpoint))
			continue;
		if (!connect_note(context, &frontend, service, backend, index))
			break;
		socket_served(service, &client, index, backend->generation);
		return true;
	}
	count(socket_left);
	*verdict = connect_forget(context);
	return false;
}

/* Replaces the destination where it is a frontend; false: `verdict` is all there is to say. */
static __always_inline bool connect_translate(struct bpf_sock_addr *context, struct endpoint *endpoint, int *verdict)
{
	struct service_view view = {};

	*verdict = SOCKET_PROCEED;
	if (!socket_is_served(context))
		return false;
	switch (socket_service(context, endpoint, &view)) {
	case SERVICE_NONE:
		*verdict = connect_unclaimed(context, endpoint);
		return false;
	case SERVICE_STALE:
		*verdict = connect_forget(context);
		return false;
	case SERVICE_FOUND:
		break;
	}
	if (socket_finds_local_listener(context, endpoint, &view) || socket_is_masqueraded(context, &view)) {
		*verdict = connect_forget(context);
		return false;
	}
	if (!socket_is_admitted(context, endpoint, &view, verdict))
		return false;
	return connect_open(context, endpoint, view.service, verdict);
}

SEC("cgroup/connect4")
int socket_connect4(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;
	int verdict;

	if (socket_is_probe(context))
		return socket_refuse(ECONNREFUSED);
	endpoint_read4(&endpoint, context);
	if (connect_translate(context, &endpoint, &verdict))
		endpoint_write4(context, &endpoint);
	return verdict;
}

SEC("cgroup/connect6")
int socket_connect6(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;
	int verdict;

	endpoint_read6(&endpoint, context);
	if (connect_translate(context, &endpoint, &verdict))
		endpoint_write6(context, &endpoint);
	return verdict;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
