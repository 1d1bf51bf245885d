package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"
)

const (
	// listenAgain is the pause between two tries to listen.
	listenAgain = 5 * time.Second
	// requestLimit is how long a request may take to come in.
	requestLimit = 10 * time.Second
)

// Serve answers on an address until the context ends. If it cannot be listened on, that is tried again and again, or
// with hardFail an error (rule Hc7).
func Serve(ctx context.Context, address string, handler http.Handler, hardFail bool, log *zap.Logger) error {
	for told := false; ; {
		err := serveOnce(ctx, address, handler)
		if ctx.Err() != nil {
			return nil
		}
		if hardFail {
			return err
		}
		if !told {
			log.Warn("serve HTTP; it is tried again", zap.String("address", address), zap.Error(err))
			told = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(listenAgain):
		}
	}
}

func serveOnce(ctx context.Context, address string, handler http.Handler) error {
	listener, err := listen(ctx, address)
	if err != nil {
		return err
	}
	server := newServer(handler)
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", address, err)
	}
	return nil
}

func newServer(handler http.Handler) *http.Server {
	return &http.Server{Handler: handler, ReadHeaderTimeout: requestLimit}
}

// listen listens on an address of either family; 0.0.0.0 is IPv4's alone, as it is everywhere else.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return listener, nil
}
