// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"

	"redoubt/internal/config"
	"redoubt/internal/kube"
	"redoubt/internal/kubereg"
)

// openKube makes a client of the API server around this member.
func openKube(c config.Config) (*kube.Client, error) {
	k := c.Kubernetes
	return kube.Open(kube.Options{URL: k.API, Namespace: k.Namespace, TokenFile: k.TokenFile, CA: k.CA, Agent: "redoubt/" + c.Member.ID})
}

// startKube starts what tells the cluster around this member of the primary.
func (m *member) startKube() error {
	c := m.o.Config
	if c.Kubernetes.Service == "" {
		return nil
	}
	client, err := openKube(c)
	if err != nil {
		return fmt.Errorf("tell Kubernetes: %w", err)
	}
	m.parts.start("kubernetes", kubereg.New(kubereg.Options{
		Client: client, Parts: m.kubeParts, Member: c.Member.ID, Service: c.Kubernetes.Service, Endpoints: c.Kubernetes.Endpoints, Clock: m.clock, Log: m.log,
	}).Run)
	return nil
}

// kubeParts are the shards of which the cluster is told.
func (m *member) kubeParts() []kubereg.Part {
	var parts []kubereg.Part
	for _, u := range m.all() {
		parts = append(parts, kubereg.Part{ID: u.deploy.ID(), Name: u.deploy.Shard, View: u.view, Store: u.store})
	}
	return parts
}
