package main

import (
	"context"
	"path/filepath"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/source"
	"github.com/weir-lb/weir/controlplane/source/kubernetes"
	"github.com/weir-lb/weir/controlplane/status"
	"github.com/weir-lb/weir/controlplane/store"
)

// objectSource keeps the store up to date.
type objectSource interface {
	Run(ctx context.Context) error
	Problems() []compile.Problem
	NodeMissing() bool // a Node of the agent's name is to be there, and is not
	Failure() string   // why changes are not heard of; empty where they are
}

// makeSource makes what reads the objects, and the store that they go to.
func (d *daemon) makeSource() error {
	d.store = store.New(gatherFor)
	if d.config.source.manifests != "" {
		return d.makeManifests()
	}
	return d.makeKubernetes()
}

func (d *daemon) makeManifests() error {
	state, err := status.Dir(pinsDir(d.config.bpffs))
	if err != nil {
		return err
	}
	d.source, err = source.NewManifests(source.Options{
		Directory: d.config.source.manifests, Store: d.store, Log: d.log, Saved: filepath.Join(state, "manifests"),
	})
	return err
}

func (d *daemon) makeKubernetes() error {
	connection := d.config.source.connection
	client, _, err := connection.Client()
	if err != nil {
		return err
	}
	d.client = client
	options := kubernetes.Options{
		Client: client, Store: d.store, NodeName: d.config.nodeName, ProxyName: d.config.source.proxyName,
		Pods: d.config.socketLB != "off", Advice: connection.Advice(), Log: d.log,
	}
	if d.config.dsr() {
		if options.Metadata, err = connection.Metadata(); err != nil {
			return err
		}
	}
	d.source = kubernetes.New(options)
	return nil
}
