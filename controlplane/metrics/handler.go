package metrics

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// textFormat is what all scrapers understand, and the only one that is spoken: what is written beside the registry must be
// of the same.
const textFormat = "text/plain;version=0.0.4"

// Handler answers with all metrics.
func (m *Metrics) Handler() http.Handler {
	registered := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{DisableCompression: true})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		services, err := m.services()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer := answerTo(w, r)
		asked := r.Clone(r.Context())
		asked.Header.Set("Accept", textFormat)
		registered.ServeHTTP(answer, asked)
		if !answer.failed {
			_ = errors.Join(services(answer.to), answer.to.Close()) // whoever asked may have gone
		}
	})
}

// answer is where the registry writes to. What it cannot collect fails the scrape.
type answer struct {
	http.ResponseWriter
	to     io.WriteCloser
	failed bool
}

// answerTo is compressed where the scraper wants that.
func answerTo(w http.ResponseWriter, r *http.Request) *answer {
	a := &answer{ResponseWriter: w, to: plain{w}}
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		a.to = gzip.NewWriter(w)
	}
	return a
}

// WriteHeader is called before anything is written.
func (a *answer) WriteHeader(code int) {
	if code != http.StatusOK {
		a.failed, a.to = true, plain{a.ResponseWriter}
		a.Header().Del("Content-Encoding")
	}
	a.ResponseWriter.WriteHeader(code)
}

func (a *answer) Write(text []byte) (int, error) { return a.to.Write(text) }

// plain has nothing to be done at its end.
type plain struct{ io.Writer }

func (plain) Close() error { return nil }
