// Package packet runs packets through the programs with BPF_PROG_TEST_RUN, in a network namespace with real routes
// and neighbours, over maps that the agent's own code has written.
//
// Three things are held against each other: what a program makes of a packet; a packet built from the ground
// up from its description (Frame); and a model of all programs (Model), which also follows flows and
// counters. What a test run cannot show is looked for on devices (Wire).
package packet
