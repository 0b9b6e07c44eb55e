// SPDX-License-Identifier: Apache-2.0

package kube

import "time"

// Meta is an object's metadata, as far as it is used here.
type Meta struct {
	Name            string            `json:"name,omitempty"`
	GenerateName    string            `json:"generateName,omitempty"`
	Namespace       string            `json:"namespace,omitempty"`
	UID             string            `json:"uid,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
	OwnerReferences []Owner           `json:"ownerReferences,omitempty"`
}

// Owner is the object with which another one goes.
type Owner struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
}

// Type is what every object begins with.
type Type struct {
	Kind       string `json:"kind,omitempty"`
	APIVersion string `json:"apiVersion,omitempty"`
}

// ConfigMap is a small document.
type ConfigMap struct {
	Type
	Metadata   Meta              `json:"metadata"`
	Data       map[string]string `json:"data,omitempty"`
	BinaryData map[string][]byte `json:"binaryData,omitempty"`
}

// List is a list of objects, and the version of it.
type List[T any] struct {
	Metadata Meta `json:"metadata"`
	Items    []T  `json:"items"`
}

// Pod is where containers run.
type Pod struct {
	Type
	Metadata Meta `json:"metadata"`
	Status   struct {
		PodIP string `json:"podIP,omitempty"`
		Phase string `json:"phase,omitempty"`
	} `json:"status"`
}

// Service is a name with an address of its own. Those that are made here have no selector: somebody else says where they lead.
type Service struct {
	Type
	Metadata Meta        `json:"metadata"`
	Spec     ServiceSpec `json:"spec"`
}

// ServiceSpec is the part of a service that is set here.
type ServiceSpec struct {
	Selector map[string]string `json:"selector,omitempty"`
	Ports    []ServicePort     `json:"ports"`
}

// ServicePort is one port of a service.
type ServicePort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     int    `json:"port"`
}

// EndpointSlice says where a service leads.
type EndpointSlice struct {
	Type
	Metadata    Meta        `json:"metadata"`
	AddressType string      `json:"addressType"` // IPv4 or IPv6; it cannot be changed
	Endpoints   []Endpoint  `json:"endpoints"`
	Ports       []SlicePort `json:"ports"`
}

// Endpoint is one place of a slice.
type Endpoint struct {
	Addresses  []string   `json:"addresses"`
	Conditions Conditions `json:"conditions"`
	TargetRef  *Ref       `json:"targetRef,omitempty"`
}

// Conditions say whether an endpoint is to be used.
type Conditions struct {
	Ready   bool `json:"ready"`
	Serving bool `json:"serving"`
}

// SlicePort is one port of all endpoints of a slice.
type SlicePort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     int    `json:"port"`
}

// Endpoints say where a service leads, in the form that came before slices.
type Endpoints struct {
	Type
	Metadata Meta     `json:"metadata"`
	Subsets  []Subset `json:"subsets,omitempty"`
}

// Subset is the places of a service that have the same ports.
type Subset struct {
	Addresses []Address   `json:"addresses"`
	Ports     []SlicePort `json:"ports"`
}

// Address is one place of a subset.
type Address struct {
	IP        string `json:"ip"`
	TargetRef *Ref   `json:"targetRef,omitempty"`
}

// Ref names an object.
type Ref struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name,omitempty"`
	UID        string `json:"uid,omitempty"`
}

// News is an Event of events.k8s.io: what happened to an object, for people.
type News struct {
	Type
	Metadata            Meta   `json:"metadata"`
	EventTime           string `json:"eventTime"` // RFC 3339 with microseconds
	ReportingController string `json:"reportingController"`
	ReportingInstance   string `json:"reportingInstance"`
	Action              string `json:"action"`
	Reason              string `json:"reason"`
	Regarding           Ref    `json:"regarding"`
	Related             *Ref   `json:"related,omitempty"`
	Note                string `json:"note"`
	Severity            string `json:"type"` // Normal or Warning
}

// MicroTime writes a time as events have it.
func MicroTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00") }
