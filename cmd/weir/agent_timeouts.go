package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-lb/weir/controlplane/sweep"
)

// A timeout is at least what a sweep can tell apart, and at most what fits into the programs' clock.
const (
	shortestTimeout = time.Second
	longestTimeout  = 7 * 24 * time.Hour
)

// timeoutFlag is a flag that says how long flows may be idle.
type timeoutFlag struct {
	to   *time.Duration
	name string
	what string
}

func timeoutFlags(t *sweep.Timeouts) []timeoutFlag {
	return []timeoutFlag{
		{&t.Unanswered, "unanswered-timeout", "that the backend, or then the client, has not answered"},
		{&t.TCP, "tcp-timeout", "of TCP, established"},
		{&t.TCPHalfClosed, "tcp-half-closed-timeout", "of TCP that one side has closed"},
		{&t.TCPClosed, "tcp-closed-timeout", "of TCP that both sides have closed, or one has reset, and of SCTP that one has"},
		{&t.UDP, "udp-timeout", "of UDP that both sides have answered"},
		{&t.SCTP, "sctp-timeout", "of SCTP, established"},
		{&t.Foreign, "foreign-timeout", "of TCP that are not Weir's"},
	}
}

// addTimeouts adds the flags, with the standard timeouts.
func addTimeouts(c *cobra.Command, timeouts *sweep.Timeouts) {
	*timeouts = sweep.DefaultTimeouts()
	for _, flag := range timeoutFlags(timeouts) {
		c.Flags().DurationVar(flag.to, flag.name, *flag.to, "idle flows "+flag.what+" are forgotten after that")
	}
}

// addQuarantine adds the flag that says for how long a silent backend gets no new flows.
func addQuarantine(c *cobra.Command, quarantine *time.Duration) {
	c.Flags().DurationVar(quarantine, "quarantine", 10*time.Second,
		"a backend that three clients in a row have found silent gets no new flows for so long, unless it is the last; 0: it gets them")
}

// checkQuarantine refuses what programs, which count in seconds, cannot tell apart. The error is a usageError.
func checkQuarantine(quarantine time.Duration) error {
	if quarantine != 0 && (quarantine < time.Second || quarantine > time.Hour) {
		return usagef("--quarantine %s: use 1s to 1h, or 0", quarantine)
	}
	return nil
}

// checkTimeouts refuses what cannot be. The error is a usageError.
func checkTimeouts(timeouts sweep.Timeouts) error {
	for _, flag := range timeoutFlags(&timeouts) {
		if *flag.to < shortestTimeout || *flag.to > longestTimeout {
			return usagef("--%s %s: use %s to %s", flag.name, *flag.to, shortestTimeout, longestTimeout)
		}
	}
	return nil
}
