// SPDX-License-Identifier: Apache-2.0

package kubereg

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"

	"redoubt/internal/coord"
	"redoubt/internal/kube"
	"redoubt/internal/topo"
)

const (
	primaryOf    = "-primary" // behind the service's name
	readOf       = "-read"
	labelService = "kubernetes.io/service-name"
	labelManager = "endpointslice.kubernetes.io/managed-by"
	labelMirror  = "endpointslice.kubernetes.io/skip-mirror"
	manager      = "redoubt.io"
	portName     = "redis"
	protocol     = "TCP"
	slicesGroup  = "discovery.k8s.io/v1"
)

// slice is the endpoint slice of a service in a picture.
func (t *teller) slice(p picture, service string, in func(place) bool) *kube.EndpointSlice {
	s := &kube.EndpointSlice{
		Type: kube.Type{Kind: "EndpointSlice", APIVersion: slicesGroup}, AddressType: "IPv4", Endpoints: []kube.Endpoint{}, Ports: []kube.SlicePort{},
		Metadata: kube.Meta{
			Name: service, Labels: map[string]string{labelService: service, labelManager: manager},
			Annotations: map[string]string{noteEpoch: strconv.FormatUint(uint64(p.at.epoch), 10), noteRevision: strconv.FormatUint(uint64(p.at.rev), 10), notePrimary: p.tenure(), noteShard: t.part.ID},
		},
	}
	for _, n := range p.nodes {
		if !in(n) {
			continue
		}
		ip, ref := t.address(n)
		switch {
		case ip == "":
			t.trouble("address of "+string(n.id), errors.New("there is no pod of that name with an address, and the roster has no address that a service can lead to"))
			continue
		case len(s.Ports) > 0 && s.Ports[0].Port != n.port:
			t.trouble("port of "+string(n.id), errors.New("a service leads to one port: give all servers the same"))
			continue
		}
		t.trouble("address of "+string(n.id), nil)
		t.trouble("port of "+string(n.id), nil)
		if net.ParseIP(ip).To4() == nil {
			s.AddressType = "IPv6"
		}
		s.Ports = []kube.SlicePort{{Name: portName, Protocol: protocol, Port: n.port}}
		s.Endpoints = append(s.Endpoints, kube.Endpoint{Addresses: []string{ip}, Conditions: kube.Conditions{Ready: true, Serving: true}, TargetRef: ref})
	}
	return s
}

// publish brings the objects of a service to the picture, and returns the tenure that its slice told of.
func (t *teller) publish(ctx context.Context, p picture, service string, in func(place) bool) (string, error) {
	want := t.slice(p, service, in)
	if t.o.Endpoints {
		if _, err := endpoints().publish(ctx, t, p, asEndpoints(want)); err != nil {
			return "", err
		}
	}
	return endpointSlices().publish(ctx, t, p, want)
}

// asEndpoints says the same in the older form. What is marked so is not made into another slice by the cluster.
func asEndpoints(s *kube.EndpointSlice) *kube.Endpoints {
	e := &kube.Endpoints{Type: kube.Type{Kind: "Endpoints", APIVersion: "v1"}, Metadata: s.Metadata}
	e.Metadata.Labels = map[string]string{labelManager: manager, labelMirror: "true"}
	e.Metadata.Annotations = maps.Clone(s.Metadata.Annotations)
	if len(s.Endpoints) == 0 {
		return e
	}
	sub := kube.Subset{Ports: s.Ports}
	for _, x := range s.Endpoints {
		sub.Addresses = append(sub.Addresses, kube.Address{IP: x.Addresses[0], TargetRef: x.TargetRef})
	}
	e.Subsets = []kube.Subset{sub}
	return e
}

// lead is a kind of objects that say where a service leads.
type lead[T any] struct {
	group, resource, kind string
	meta                  func(*T) *kube.Meta
	same                  func(now, want *T) bool // both lead to the same places
	another               func(now, want *T) bool // now cannot be changed into want
}

func endpointSlices() lead[kube.EndpointSlice] {
	return lead[kube.EndpointSlice]{
		group: slicesGroup, resource: "endpointslices", kind: "EndpointSlice", same: same,
		meta: func(s *kube.EndpointSlice) *kube.Meta { return &s.Metadata },
		another: func(now, want *kube.EndpointSlice) bool {
			if len(want.Endpoints) == 0 {
				want.AddressType = now.AddressType // nobody has addresses of any kind
			}
			return now.AddressType != want.AddressType
		},
	}
}

func endpoints() lead[kube.Endpoints] {
	return lead[kube.Endpoints]{
		resource: "endpoints", kind: "Endpoints",
		meta:    func(e *kube.Endpoints) *kube.Meta { return &e.Metadata },
		another: func(now, want *kube.Endpoints) bool { return false },
		same: func(now, want *kube.Endpoints) bool {
			return slices.EqualFunc(now.Subsets, want.Subsets, func(x, y kube.Subset) bool {
				return slices.Equal(x.Ports, y.Ports) && slices.EqualFunc(x.Addresses, y.Addresses, func(a, b kube.Address) bool { return a.IP == b.IP && uid(a.TargetRef) == uid(b.TargetRef) })
			})
		},
	}
}

// publish brings one object to the picture, and returns the tenure that it told of.
func (l lead[T]) publish(ctx context.Context, t *teller, p picture, want *T) (string, error) {
	meta := l.meta(want)
	var now T
	err := t.o.Client.Do(ctx, http.MethodGet, t.o.Client.Path(l.group, l.resource, meta.Name), nil, "", nil, &now)
	if kube.Is(err, http.StatusNotFound) {
		if owner := t.ownerOf(ctx, meta.Name); owner != nil {
			meta.OwnerReferences = []kube.Owner{*owner}
		}
		if err = t.o.Client.Do(ctx, http.MethodPost, t.o.Client.Path(l.group, l.resource), nil, kube.JSON, want, nil); err != nil {
			return "", fmt.Errorf("make %s %s: %w", l.kind, meta.Name, err)
		}
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s %s: %w", l.kind, meta.Name, err)
	}
	old := l.meta(&now)
	if shard := old.Annotations[noteShard]; old.Labels[labelManager] != manager || shard != "" && shard != t.part.ID {
		return "", fmt.Errorf("%s %s is somebody else's: use another kubernetes.service", l.kind, meta.Name)
	}
	was, told := stampOf(*old, noteEpoch, noteRevision), old.Annotations[notePrimary]
	if p.at.before(was) {
		return told, fmt.Errorf("%s %s: %w", l.kind, meta.Name, errLater)
	}
	if p.primary == "" {
		meta.Annotations[notePrimary] = told
	}
	if was == p.at && l.same(&now, want) {
		return told, nil
	}
	if l.another(&now, want) {
		if err := t.o.Client.Do(ctx, http.MethodDelete, t.o.Client.Path(l.group, l.resource, meta.Name), nil, "", nil, nil); err != nil {
			return told, fmt.Errorf("replace %s %s: %w", l.kind, meta.Name, err)
		}
		return told, fmt.Errorf("%s %s had addresses of another kind", l.kind, meta.Name)
	}
	meta.ResourceVersion, meta.OwnerReferences = old.ResourceVersion, old.OwnerReferences
	if err := t.o.Client.Do(ctx, http.MethodPut, t.o.Client.Path(l.group, l.resource, meta.Name), nil, kube.JSON, want, nil); err != nil {
		return told, fmt.Errorf("write %s %s: %w", l.kind, meta.Name, err)
	}
	return told, nil
}

// stampOf reads the stamp of an object under two keys; one that cannot be read counts as none.
func stampOf(m kube.Meta, epochKey, revKey string) stamp {
	epoch, err := strconv.ParseUint(m.Annotations[epochKey], 10, 64)
	rev, bad := strconv.ParseUint(m.Annotations[revKey], 10, 64)
	if err != nil || bad != nil {
		return stamp{}
	}
	return stamp{topo.Epoch(epoch), coord.Rev(rev)}
}

// same reports whether two slices lead to the same places.
func same(a, b *kube.EndpointSlice) bool {
	return slices.Equal(a.Ports, b.Ports) && slices.EqualFunc(a.Endpoints, b.Endpoints, func(x, y kube.Endpoint) bool {
		return slices.Equal(x.Addresses, y.Addresses) && x.Conditions == y.Conditions && uid(x.TargetRef) == uid(y.TargetRef)
	})
}

func uid(r *kube.Ref) string {
	if r == nil {
		return ""
	}
	return r.UID
}

// ownerOf is the service that an object goes with; nil when it cannot be told.
func (t *teller) ownerOf(ctx context.Context, service string) *kube.Owner {
	if o, ok := t.owner[service]; ok {
		return o
	}
	var s kube.Service
	if err := t.o.Client.Do(ctx, http.MethodGet, t.o.Client.Path("", "services", service), nil, "", nil, &s); err != nil {
		t.trouble("service "+service, fmt.Errorf("make a Service of that name without a selector: %w", err))
		return nil
	}
	t.owner[service] = &kube.Owner{APIVersion: "v1", Kind: "Service", Name: s.Metadata.Name, UID: s.Metadata.UID}
	return t.owner[service]
}
