package devices

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	weirmaps "github.com/weir-lb/weir/maps"
)

// maxPrefixes is how many routes may have changed before all backends are looked at.
const maxPrefixes = 256

// news are what neighbours has heard since it last looked.
type news struct {
	located  bool                      // it has been said where backends are, now or before
	backends map[weirmaps.Address]bool // that came or, where false, left
	devices  map[int]bool              // nil: they and the routers are as they were
	routers  map[nextHop]bool
	prefixes map[netip.Prefix]struct{}
	anew     bool // all routes may be others
}

// follow says where backends have come to or left. The map is its own from then on: there may be a million of them.
func (n *neighbours) follow(backends map[weirmaps.Address]bool) {
	n.hear(func(news *news) bool {
		isFirst := !news.located
		news.located = true
		if news.backends == nil {
			news.backends = backends
		} else {
			maps.Copy(news.backends, backends)
		}
		return isFirst || len(backends) > 0
	})
}

// use says on which devices next hops shall be kept resolved, and which routers are there. Touched are devices that
// something has happened to.
func (n *neighbours) use(devices map[int]bool, routers map[nextHop]bool, touched []int) {
	n.hear(func(news *news) bool {
		changed := n.told == nil || !maps.Equal(n.told, devices) || !maps.Equal(n.named, routers)
		for _, index := range touched {
			changed = changed || devices[index]
		}
		if changed {
			n.told, n.named = devices, routers
			news.devices, news.routers, news.anew = devices, routers, true
		}
		return changed
	})
}

// listen takes in changes of routes until the context ends, after which the socket is closed.
func (n *neighbours) listen(ctx context.Context) {
	for {
		messages, _, err := n.heard.Receive()
		if ctx.Err() != nil {
			return
		}
		n.hear(func(news *news) bool {
			for _, message := range messages {
				news.addRoute(message)
			}
			news.anew = news.anew || err != nil
			return true
		})
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			n.log.Error("changes of routes are not heard of any more", zap.Error(err))
			return
		}
	}
}

// addRoute takes in that a route has come or gone.
func (n *news) addRoute(message syscall.NetlinkMessage) {
	prefix, known := prefixOf(message)
	if !known || len(n.prefixes) >= maxPrefixes {
		n.anew = true
		return
	}
	if n.prefixes == nil {
		n.prefixes = map[netip.Prefix]struct{}{}
	}
	n.prefixes[prefix] = struct{}{}
}

// doubt has everything looked at anew when there are news next.
func (n *neighbours) doubt() {
	n.hear(func(news *news) bool {
		news.anew = true
		return false
	})
}

// hear takes in what changes the news, and has them dealt with where there are any.
func (n *neighbours) hear(change func(*news) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !change(&n.news) {
		return
	}
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// take returns the news.
func (n *neighbours) take() news {
	n.mu.Lock()
	defer n.mu.Unlock()
	taken := n.news
	n.news = news{located: taken.located}
	return taken
}
