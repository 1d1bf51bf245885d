// Package sockets closes sockets that the socket edge has connected to a backend which has since left its service: the
// application connects anew, and gets another one (rule D05). It goes by what is, not by what happened: each time it
// looks at all such sockets, in every network namespace.
package sockets

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/loader"
)

const (
	// lookPause is the shortest time between two looks.
	lookPause = 100 * time.Millisecond
	// lookAgain is when sockets are found that were being connected while the maps changed, and the first pause after a
	// look that has failed; each further one takes twice as long, up to lookAtLeast.
	lookAgain   = time.Second
	lookAtLeast = time.Minute
)

// Kernel lists and closes sockets of the calling thread's network namespace; a *loader.Sockets does.
type Kernel interface {
	List(protocol int) ([]loader.ConnectedSocket, error)
	Destroy(protocol int, cookies []uint64) error
}

// Options are what a Closer works with.
type Options struct {
	Kernel   Kernel
	Visit    func(func() error) error // calls in every network namespace
	Services Services
	Log      *zap.Logger
}

// Closer closes sockets.
type Closer struct {
	options Options
	touched chan struct{} // holds a token when backends have left services
	closed  atomic.Uint64

	// Owned by Run.
	since   map[uint64]time.Time // sockets that are to be closed later, by cookie, and when that was found
	failure string               // of the last look
	retry   time.Duration        // until the next one, if that has failed
}

// New returns a closer. Nothing happens until Run.
func New(options Options) *Closer {
	return &Closer{options: options, touched: make(chan struct{}, 1), since: map[uint64]time.Time{}}
}

// Touch says that backends have left services, and that the maps say so.
func (c *Closer) Touch() {
	select {
	case c.touched <- struct{}{}:
	default:
	}
}

// Closed tells how many sockets have been closed.
func (c *Closer) Closed() uint64 { return c.closed.Load() }

// Run works until the context ends.
func (c *Closer) Run(ctx context.Context) error {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again:
			again = nil
		case <-c.touched:
			again = time.After(lookAgain)
		}
		due, err := c.look(time.Now())
		if c.tell(err); err != nil {
			due = sooner(due, c.retry)
		}
		if due > 0 && again == nil {
			again = time.After(due)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookPause):
		}
	}
}

// tell logs a failure once, however often it comes again, and says when to try again.
func (c *Closer) tell(err error) {
	if err == nil {
		c.failure, c.retry = "", 0
		return
	}
	c.retry = min(max(2*c.retry, lookAgain), lookAtLeast)
	if c.failure == err.Error() {
		return
	}
	c.failure = err.Error()
	c.options.Log.Error("sockets of removed backends may stay open", zap.Error(err))
}

// look closes what is to be closed, and returns when there will be more; 0: nothing is known of.
func (c *Closer) look(now time.Time) (due time.Duration, err error) {
	services, closed := c.options.Services, 0
	since := map[uint64]time.Time{}
	err = c.options.Visit(func() error {
		var failed error
		for _, protocol := range protocols(services) {
			listed, err := c.options.Kernel.List(int(protocol))
			if err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			var cookies []uint64
			for _, socket := range listed {
				end, after := ends(services, protocol, socket.Peer)
				if !end {
					continue
				}
				if wait := c.wait(socket.Cookie, after, now, since); wait > 0 {
					due = sooner(due, wait)
					continue
				}
				cookies = append(cookies, socket.Cookie)
			}
			if len(cookies) == 0 {
				continue
			}
			if err := c.options.Kernel.Destroy(int(protocol), cookies); err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s: %w", protocol, err))
				continue
			}
			closed += len(cookies)
		}
		return failed
	})
	c.since = since
	if closed > 0 {
		c.closed.Add(uint64(closed))
		c.options.Log.Info("closed sockets of removed backends", zap.Int("sockets", closed), zap.Duration("took", time.Since(now)))
	}
	return due, err
}

// wait returns for how long a socket may still be open, of those that are to be closed after a while.
func (c *Closer) wait(cookie uint64, after time.Duration, now time.Time, since map[uint64]time.Time) time.Duration {
	if after == 0 {
		return 0
	}
	found, known := c.since[cookie]
	if !known {
		found = now
	}
	since[cookie] = found
	return found.Add(after).Sub(now)
}

// sooner returns the shorter of two waits, of which 0 does not count.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return min(a, b)
}
