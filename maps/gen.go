package maps

// The maps and their records come from bpf/maps.h and bpf/types.h. `make generate` runs this with the
// pinned compiler; what it writes is not committed.

//go:generate go tool bpf2go -tags linux -target bpfel -type address -type frontend_key -type frontend -type algorithm -type slot_range -type service -type service_name -type source_key -type cluster_ip_use -type prefix_key -type address_bounds -type slot_block -type backend -type tunnel_target -type backend_load -type health -type affinity_key -type affinity_entry -type tuple -type flow_key -type flow_key_ipv4 -type flow_action -type flow_half -type flow_state -type flow -type socket_peer -type socket_key -type socket_flow -type network_namespace -type local_vip -type edge_kind -type device -type device_record -type packet_counters -type traffic -type ending_key -type ending -type sweep_settings -type live_settings -type agent_record bpf ../bpf/maps.bpf.c
