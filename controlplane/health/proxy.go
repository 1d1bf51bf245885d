// Package health tells load balancers and the kubelet, over HTTP and in the words of kube-proxy, whether the node
// serves.
package health

import (
	"encoding/json"
	"net/http"
	"time"

	"k8s.io/utils/ptr"
)

// Progress is how far the maps are behind.
type Progress struct {
	Applied time.Time     // when they last held everything; zero: not yet
	Lag     time.Duration // age of the oldest change that they do not hold
}

// Options are what a Proxy works with.
type Options struct {
	Late     time.Duration // changes that wait for longer make the node unhealthy
	Progress func() Progress
	Eligible func() bool // whether new connections shall come to this node: it is not about to go

	// Answered is told of each answer, by the path that was asked. May be nil.
	Answered func(path string, code int)
}

// Proxy answers /healthz and /livez (rules Hc4 to Hc6).
type Proxy struct{ options Options }

// NewProxy returns a proxy's health.
func NewProxy(options Options) *Proxy {
	if options.Answered == nil {
		options.Answered = func(string, int) {}
	}
	return &Proxy{options: options}
}

// report is what is answered.
type report struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyReport `json:"status,omitempty"`
}

type familyReport struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// Healthy tells whether changes reach the maps. An agent that has just started is healthy: what is in the maps is
// served.
func (p *Proxy) Healthy() bool { return p.report().Healthy }

func (p *Proxy) report() report {
	progress := p.options.Progress()
	r := report{CurrentTime: time.Now(), Healthy: true}
	if progress.Applied.IsZero() {
		return r
	}
	r.Healthy = progress.Lag < p.options.Late
	r.LastUpdated = progress.Applied
	if r.Healthy {
		r.LastUpdated = r.CurrentTime
	}
	// One writer serves both families.
	family := familyReport{LastUpdated: progress.Applied, Healthy: r.Healthy}
	r.Status = map[string]familyReport{"IPv4": family, "IPv6": family}
	return r
}

// Handler answers on the two paths. A node that is about to go fails /healthz, which load balancers ask, and not
// /livez, which the kubelet asks.
func (p *Proxy) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		r := p.report()
		eligible := p.options.Eligible()
		r.NodeEligible = ptr.To(eligible)
		p.answer(w, "/healthz", r, r.Healthy && eligible)
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		r := p.report()
		p.answer(w, "/livez", r, r.Healthy)
	})
	return mux
}

func (p *Proxy) answer(w http.ResponseWriter, path string, r report, well bool) {
	code := http.StatusOK
	if !well {
		code = http.StatusServiceUnavailable
	}
	p.options.Answered(path, code)
	writeJSON(w, code, r)
}

// writeJSON answers as kube-proxy does.
func writeJSON(w http.ResponseWriter, code int, body any) {
	content, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(content) // whoever asked may have gone
}
