package kubernetes

import (
	"context"
	"errors"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// follow returns what carries the objects of a kind from the server into a sink.
func follow[L runtime.Object, T object](s *Source, r resource, example T, l *lister[L], to *sink[T]) *cache.Reflector {
	listWatch := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := l.list(ctx, l.choose(options))
			if err != nil {
				s.failed(r, "list", err)
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
	return cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(listWatch, s.options.Client), example, to,
		cache.ReflectorOptions{Name: r.name, Logger: quiet(), Backoff: backoff()})
}

// lost hides a refused connection from the reflector, which would go on watching from where it was when the server is
// back: another server may have another history. What it does of any other error is list anew.
func lost(err error) error {
	if utilnet.IsConnectionRefused(err) {
		return errors.New(err.Error())
	}
	return err
}
