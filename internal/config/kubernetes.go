// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"redoubt/internal/kubereg"
)

// Kubernetes is the cluster around this member: where its API server is, and what it is told of the deployment. What is empty is as
// a pod finds it.
type Kubernetes struct {
	API       string `yaml:"api"`        // URL of the API server
	Namespace string `yaml:"namespace"`  // of all objects
	TokenFile string `yaml:"token-file"` // of the service account
	CA        string `yaml:"ca"`         // file of the authorities that are trusted
	Service   string `yaml:"service"`    // the services NAME-primary and NAME-read (of a shard: NAME-SHARD-primary) lead to the servers; empty: nothing is told
	Endpoints bool   `yaml:"endpoints"`  // the services have Endpoints beside their slices
}

// serviceMax leaves room for what is put behind a service's name, of which there are 63 bytes.
const serviceMax = 50

// isService tells what the name of a service may look like.
func isService(name string) bool {
	return len(name) <= serviceMax && regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`).MatchString(name)
}

// complete: relative files start at base.
func (k *Kubernetes) complete(base string) { below(base, &k.TokenFile, &k.CA) }

func (c Config) validateKubernetes(f *findings) {
	k := c.Kubernetes
	if k.Service != "" && len(c.Deployments) > 0 {
		k.validateShards(f, c.Deployments[0])
	}
	if k.Service == "" && k.Endpoints {
		f.add("kubernetes.endpoints", "is for the services that kubernetes.service names")
	}
	if k.API != "" {
		if u, err := url.Parse(k.API); err != nil || u.Host == "" || u.Path != "" || u.User != nil || !slices.Contains([]string{"http", "https"}, u.Scheme) {
			f.add("kubernetes.api", "%q: write https://, host and port, and nothing more", k.API)
		}
	}
	if k.Service != "" && !isService(k.Service) {
		f.add("kubernetes.service", "%q: use up to %d small letters, digits and dashes, starting with a letter", k.Service, serviceMax)
	}
}

// validateShards: each shard has services of its own, whose names have its name in them.
func (k Kubernetes) validateShards(f *findings, d Deployment) {
	seen := map[string]string{}
	for i, s := range d.Shards {
		path := fmt.Sprintf("deployments[0].shards[%d].name", i)
		name := kubereg.ServiceOf(k.Service, s.Name)
		if len(name) > serviceMax || strings.HasSuffix(name, "-") {
			f.add(path, "%q: services are named after it (kubernetes.service): %q must have up to %d letters and end with a letter or digit", s.Name, name, serviceMax)
		}
		f.unique(seen, path, "service "+name)
	}
}

// ParseKubernetesURL reads kubernetes://host:port/prefix?namespace=…&token-file=…&ca=…&service=…&endpoints=true, for the store and the cluster around
// it; kubernetes:///prefix is for a process in a pod.
func ParseKubernetesURL(text string) (Store, Kubernetes, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != StoreKubernetes {
		return Store{}, Kubernetes{}, fmt.Errorf("%q: write kubernetes://host:port/prefix?namespace=…&token-file=…&ca=…", text)
	}
	var k Kubernetes
	if u.Host != "" {
		k.API = "https://" + u.Host
	}
	query := u.Query()
	if values, ok := query["endpoints"]; ok {
		if k.Endpoints = len(values) == 1 && values[0] == "true"; !k.Endpoints {
			return Store{}, Kubernetes{}, fmt.Errorf("%q: write endpoints=true, or leave it out", text)
		}
		delete(query, "endpoints")
	}
	for name, values := range query {
		to := map[string]*string{"namespace": &k.Namespace, "token-file": &k.TokenFile, "ca": &k.CA, "service": &k.Service}[name]
		if to == nil || len(values) != 1 {
			return Store{}, Kubernetes{}, fmt.Errorf("%q: %s is not known, or there more than once: write namespace, token-file, ca, service and endpoints", text, name)
		}
		*to = values[0]
	}
	return Store{Kind: StoreKubernetes, Prefix: strings.Trim(u.Path, "/")}, k, nil
}
