package loader

import "errors"

// Features are what the running kernel offers beyond what is required.
type Features struct {
	TCX              bool   // programs are attached with tcx (Linux 6.6), else with clsact filters
	CsumIPv6Flag     bool   // bpf_l4_csum_replace knows BPF_F_IPV6
	JiffiesPerSecond uint32 // CONFIG_HZ, measured
}

// Probe finds out what the kernel offers. The error says in one sentence what is missing and what to do.
func Probe() (Features, error) {
	return Features{}, errors.ErrUnsupported
}
