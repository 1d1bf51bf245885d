// Package xfrm follows the policies of XFRM (IPsec) of this network namespace. Programs do not redirect what an outgoing
// policy may concern, but leave it to the stack, which asks its policies (bpf/policy.h): the package keeps the map
// xfrm_prefixes, and has a rule of netfilter made by which such packets get the node's address.
package xfrm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// retryAfter is the pause before what failed is tried again, lookEvery the one between two looks whether the rule is
// still there while there are policies.
const (
	retryAfter = time.Second
	lookEvery  = 30 * time.Second
)

// Options are what a Follower works with.
type Options struct {
	Set        *maps.Set
	Masquerade func() error // makes the rule, where it is not there
	Log        *zap.Logger
}

// Follower keeps the map.
type Follower struct {
	options  Options
	socket   *nl.NetlinkSocket // nil: the kernel has no XFRM
	heard    chan error
	problems atomic.Pointer[[]compile.Problem]
}

// New subscribes to changes of policies in the calling thread's network namespace.
func New(options Options) (*Follower, error) {
	f := &Follower{options: options, heard: make(chan error, 1)}
	socket, err := nl.Subscribe(unix.NETLINK_XFRM, nl.XFRMNLGRP_POLICY)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe to policies of XFRM: %w", err)
	}
	f.socket = socket
	return f, nil
}

// Problems lists what keeps policies from being respected.
func (f *Follower) Problems() []compile.Problem {
	if found := f.problems.Load(); found != nil {
		return *found
	}
	return nil
}

// Run keeps the map until the context ends, in the network namespace that New was called in.
func (f *Follower) Run(ctx context.Context) error {
	if f.socket == nil {
		<-ctx.Done()
		return nil
	}
	defer f.socket.Close()
	go f.listen(ctx)
	for {
		wait := lookEvery
		if err := f.converge(); err != nil {
			f.options.Log.Error("follow the policies of XFRM", zap.Error(err))
			wait = retryAfter
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-f.heard:
			if err != nil {
				return fmt.Errorf("listen to changes of policies of XFRM: %w", err)
			}
		case <-time.After(wait):
		}
	}
}

// listen says that something has changed. Changes that are lost have changed something too.
func (f *Follower) listen(ctx context.Context) {
	for {
		_, _, err := f.socket.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			err = nil
		}
		select {
		case <-ctx.Done():
			return
		case f.heard <- err:
		}
		if err != nil {
			return
		}
	}
}

// converge makes the map hold what the policies say.
func (f *Follower) converge() error {
	prefixes, err := destinations()
	if err != nil {
		return err
	}
	var problems []compile.Problem
	if len(prefixes) > 0 {
		if err := f.options.Masquerade(); err != nil {
			problems = append(problems, problem("XFRMMasqueradeRefused", fmt.Sprintf(
				"policies of XFRM concern backends, and what goes there cannot get the node's address (%v): it keeps the client's, to which they may have no way; it needs nf_tables in the kernel", err)))
		}
	}
	full, err := Write(f.options.Set, prefixes)
	if full {
		problems = append(problems, problem("XFRMPoliciesTooMany",
			"the policies of XFRM have more destinations than xfrm_prefixes has room for: all traffic to backends elsewhere goes by the stack"))
	}
	f.problems.Store(&problems)
	return err
}

func problem(reason, message string) compile.Problem {
	return compile.Problem{Object: "Node", Reason: reason, Message: message}
}

// destinations returns where outgoing policies lead to. Those of an interface of their own (if_id) are asked only there.
func destinations() ([]netip.Prefix, error) {
	var found []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		policies, err := netlink.XfrmPolicyList(family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // a notification follows
			return nil, fmt.Errorf("list policies of XFRM: %w", err)
		}
		for _, policy := range policies {
			if policy.Dir == netlink.XFRM_DIR_OUT && policy.Ifid == 0 {
				found = append(found, destinationOf(policy, family))
			}
		}
	}
	return found, nil
}

// destinationOf returns where a policy leads to: everywhere, if it does not say.
func destinationOf(policy netlink.XfrmPolicy, family int) netip.Prefix {
	everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if family == netlink.FAMILY_V6 {
		everywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if policy.Dst == nil {
		return everywhere
	}
	address, ok := netip.AddrFromSlice(policy.Dst.IP)
	ones, bits := policy.Dst.Mask.Size()
	if !ok || bits == 0 {
		return everywhere
	}
	return netip.PrefixFrom(address.Unmap(), ones).Masked()
}
