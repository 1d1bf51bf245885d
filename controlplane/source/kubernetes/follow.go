package kubernetes

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// notServedPause is how long a server is not asked again for what it does not have.
const notServedPause = 5 * time.Minute

// isOptional tells whether an error says that the server does not have what can be done without.
func isOptional(r resource, err error) bool { return r == serviceCIDRs && apierrors.IsNotFound(err) }

// pause waits, or until the context ends.
func pause(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// follow returns what carries the objects of a kind from the server, by a client of it, into a sink.
func follow[L runtime.Object, T object](s *Source, r resource, client any, example T, l *lister[L], to *sink[T]) *cache.Reflector {
	listWatch := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := l.list(ctx, l.choose(options))
			if err != nil {
				s.failed(r, "list", err)
				if isOptional(r, err) {
					pause(ctx, notServedPause)
				}
				return nil, err
			}
			s.failures.clear(r, "list")
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			w, err := l.watch(ctx, l.choose(options))
			if err != nil {
				s.failed(r, "watch", err)
				return nil, lost(err)
			}
			s.failures.clear(r, "watch")
			return w, nil
		},
	}
	log := quiet()
	return cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(listWatch, client), example, to,
		cache.ReflectorOptions{Name: r.name, Logger: &log, Backoff: backoff()})
}

// lost hides a refused connection from the reflector, which would go on watching from where it was when the server is
// back: another server may have another history. What it does of any other error is list anew.
func lost(err error) error {
	if utilnet.IsConnectionRefused(err) {
		return errors.New(err.Error())
	}
	return err
}
