package dsr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
)

// annotateWithin is how long one try to write the annotation may take.
const annotateWithin = 10 * time.Second

// announce makes the annotation of this node's Node what it is to be, or says what that is.
func (m *Member) announce(ctx context.Context, problems *[]compile.Problem) error {
	wanted := ""
	if m.options.On {
		wanted = m.options.Ends().String()
	}
	held, there := m.annotation()
	switch {
	case held == wanted && there == (wanted != ""):
		return nil
	case m.options.Annotator == nil:
		m.advise(wanted, problems)
		return nil
	case m.options.Own() == nil:
		return nil // the source tells of it
	}
	ctx, cancel := context.WithTimeout(ctx, annotateWithin)
	defer cancel()
	if err := m.options.Annotator.Annotate(ctx, compile.AnnotationDSR, wanted); err != nil {
		problem := m.options.Annotator.Explain(err)
		*problems = append(*problems, problem)
		return errors.New(problem.Message)
	}
	m.options.Log.Info("the Node says where tunnels come from", zap.String(compile.AnnotationDSR, wanted))
	return nil
}

// advise says what a Node that is written by hand should say. What it says beyond that does no harm.
func (m *Member) advise(wanted string, problems *[]compile.Problem) {
	add := func(reason, format string, args ...any) {
		*problems = append(*problems, compile.Problem{Object: "Node " + m.options.Node, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	if !m.options.On {
		add("TunnelSourcesLeft", "its manifest has the annotation %s, so that others send it packets in tunnels, and its agent runs with --forward snat: remove it",
			compile.AnnotationDSR)
		return
	}
	own, ends := m.options.Tunnels().Own, m.options.Ends()
	switch {
	case wanted == "": // no tunnel can come from anywhere
	case !own.Covers(ends.Sources):
		add("TunnelSourcesUnknown", "packets are not sent in tunnels, as other nodes do not know all addresses that they come from: give its manifest the annotation %s: %q",
			compile.AnnotationDSR, wanted)
	case !own.CoversPrefixes(ends.Prefixes):
		add("TunnelPrefixesUnknown", "what pods of this node send to other nodes, and would come back to its pods in a tunnel, is lost, as those do not know all prefixes that bridges connect here: give its manifest the annotation %s: %q",
			compile.AnnotationDSR, wanted)
	}
}
