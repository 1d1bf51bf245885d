package kubernetes

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// The labels that say whose a Service and its slices are (rules S03, S04).
const (
	labelProxyName = "service.kubernetes.io/service-proxy-name"
	labelHeadless  = corev1.IsHeadlessService
)

// Options are what a Source works with.
type Options struct {
	Client    clientset.Interface
	Metadata  metadata.Interface // nil: of other Nodes than the agent's own nothing is to be known
	Store     *store.Store
	NodeName  string
	ProxyName string // see compile.Input
	Pods      bool   // also those of the node, and the Namespaces that say something of them
	Advice    string // what to do when the server cannot be reached
	Log       *zap.Logger
}

// Source keeps a store up to date with an API server. The package comment says how.
type Source struct {
	options  Options
	failures *failures

	mu         sync.Mutex
	unlisted   map[resource]struct{} // of which the store does not have a complete listing yet
	suggestion string                // of the Node that this machine may be
}

// New returns a source. Nothing is asked for until Run.
func New(options Options) *Source {
	s := &Source{options: options, unlisted: map[resource]struct{}{}}
	s.failures = newFailures(options.Advice, options.Log)
	for _, r := range []resource{services, endpointSlices, nodes, serviceCIDRs} {
		s.unlisted[r] = struct{}{}
	}
	if options.Pods {
		s.unlisted[pods], s.unlisted[namespaces] = struct{}{}, struct{}{}
	}
	if options.Metadata != nil {
		s.unlisted[otherNodes] = struct{}{}
	}
	return s
}

// Run follows the server until the context ends.
func (s *Source) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(klog.NewContext(ctx, quiet()))
	reflectors := []*cache.Reflector{s.followServices(), s.followSlices(), s.followNode(ctx), s.followRanges()}
	if s.options.Pods {
		reflectors = append(reflectors, s.followPods(), s.followNamespaces())
	}
	if s.options.Metadata != nil {
		reflectors = append(reflectors, s.followOtherNodes())
	}
	for _, r := range reflectors {
		group.Go(func() error { r.RunWithContext(ctx); return nil })
	}
	return group.Wait()
}

// followServices follows all Services: the addresses of those that are another proxy's are to be left alone (rule C05),
// and so have to be known.
func (s *Source) followServices() *cache.Reflector {
	client := s.options.Client.CoreV1().Services(metav1.NamespaceAll)
	to := &sink[*corev1.Service]{
		strip: stripService,
		update: func(batch store.Batch, now map[store.Key]*corev1.Service) {
			batch.Services = now
			s.options.Store.Update(batch)
		},
		listed: func() { s.listed(services) },
	}
	list := inPieces[corev1.Service](s.options.Client.CoreV1().RESTClient(), services, client.List, to.Transformer())
	return follow(s, services, s.options.Client, &corev1.Service{}, &lister[runtime.Object]{list: list, watch: client.Watch}, to)
}

func (s *Source) followSlices() *cache.Reflector {
	client := s.options.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceAll)
	to := &sink[*discoveryv1.EndpointSlice]{
		strip: stripSlice,
		update: func(batch store.Batch, now map[store.Key]*discoveryv1.EndpointSlice) {
			batch.Slices = now
			s.options.Store.Update(batch)
		},
		listed: func() { s.listed(endpointSlices) },
	}
	list := inPieces[discoveryv1.EndpointSlice](s.options.Client.DiscoveryV1().RESTClient(), endpointSlices, client.List, to.Transformer())
	return follow(s, endpointSlices, s.options.Client, &discoveryv1.EndpointSlice{}, &lister[runtime.Object]{list: list, watch: client.Watch, labels: s.selector()}, to)
}

// followNode follows the one node that concerns us: those of a large cluster change all the time.
func (s *Source) followNode(ctx context.Context) *cache.Reflector {
	client := s.options.Client.CoreV1().Nodes()
	name := fields.OneTermEqualSelector(metav1.ObjectNameField, s.options.NodeName).String()
	return follow(s, nodes, s.options.Client, &corev1.Node{}, &lister[*corev1.NodeList]{list: client.List, watch: client.Watch, fields: name},
		&sink[*corev1.Node]{
			strip: stripNode,
			equal: equalNodes,
			update: func(batch store.Batch, now map[store.Key]*corev1.Node) {
				batch.Nodes = make(map[string]*corev1.Node, len(now))
				for key, node := range now {
					batch.Nodes[key.Name] = node
				}
				s.options.Store.Update(batch)
			},
			listed: func() { s.lookForNode(ctx); s.listed(nodes) },
		})
}

// followRanges follows the ranges that ClusterIPs come from. A server before Kubernetes 1.33 has none.
func (s *Source) followRanges() *cache.Reflector {
	client := s.options.Client.NetworkingV1().ServiceCIDRs()
	return follow(s, serviceCIDRs, s.options.Client, &networkingv1.ServiceCIDR{}, &lister[*networkingv1.ServiceCIDRList]{list: client.List, watch: client.Watch},
		&sink[*networkingv1.ServiceCIDR]{
			strip: func(o *networkingv1.ServiceCIDR) { stripMeta(&o.ObjectMeta) },
			update: func(batch store.Batch, now map[store.Key]*networkingv1.ServiceCIDR) {
				batch.Ranges = make(map[string]*networkingv1.ServiceCIDR, len(now))
				for key, object := range now {
					batch.Ranges[key.Name] = object
				}
				s.options.Store.Update(batch)
			},
			listed: func() { s.listed(serviceCIDRs) },
		})
}

// selector chooses the slices of Services that are ours: they have their labels.
func (s *Source) selector() string {
	if s.options.ProxyName != "" {
		return fmt.Sprintf("%s=%s,!%s", labelProxyName, s.options.ProxyName, labelHeadless)
	}
	return fmt.Sprintf("!%s,!%s", labelProxyName, labelHeadless)
}

// listed notes that the store has all objects of a kind, and completes the first listing.
func (s *Source) listed(r resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, waiting := s.unlisted[r]; !waiting {
		return
	}
	delete(s.unlisted, r)
	if len(s.unlisted) == 0 {
		s.options.Store.Synced()
		s.options.Log.Info("objects listed")
	}
}

// failed notes that a request has failed. Services are served without their Node, if its reading is forbidden: what is
// lost are zone hints and primary addresses, and that packets are sent to other nodes in tunnels. So it is without ServiceCIDRs: what is lost is that packets to nobody's
// ClusterIP are dropped; and without Pods and Namespaces: all are served at the socket edge.
func (s *Source) failed(r resource, verb string, err error) {
	if isOptional(r, err) {
		s.listed(r)
		return
	}
	if s.failures.note(r, verb, err) == reasonForbidden && r != services && r != endpointSlices {
		s.listed(r)
	}
}

// Problems lists what keeps the source from following the server, and what is wrong with the node.
func (s *Source) Problems() []compile.Problem {
	return append(s.failures.problems(), s.nodeProblems()...)
}

// Failure says in a sentence why changes are not heard of; empty where they are.
func (s *Source) Failure() string { return s.failures.sentence() }

// lister lists and watches some of the objects of a kind.
type lister[L any] struct {
	list           func(context.Context, metav1.ListOptions) (L, error)
	watch          cache.WatchFuncWithContext
	labels, fields string
}

func (l *lister[L]) choose(options metav1.ListOptions) metav1.ListOptions {
	options.LabelSelector, options.FieldSelector = l.labels, l.fields
	return options
}

// backoff is how long failed requests wait for their next try.
func backoff() *wait.Backoff {
	return &wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 6, Cap: 10 * time.Second}
}

// quiet keeps client-go from logging: failures are noted where they happen.
func quiet() logr.Logger { return logr.Discard() }
