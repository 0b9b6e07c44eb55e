// SPDX-License-Identifier: Apache-2.0

package coord

import "context"

// Backend is all that has to be known of a store outside (etcd, Consul): package seat makes a Store of it, with an election,
// reports and questions between members of its own. Safe for concurrent use.
type Backend interface {
	// Read returns those of the documents that exist, each as it was at some moment after Read was called.
	Read(ctx context.Context, keys ...string) (map[string]Doc, error)
	// Swap is as in Docs.
	Swap(ctx context.Context, key string, value []byte, old Rev) (Rev, error)
	// Follow tells learn of versions of a document as they come, the present one first, until ctx ends. It gets over errors by
	// itself, may skip versions and tell one twice.
	Follow(ctx context.Context, key string, learn func(Doc))
	Outside
	Close() error
}

// Outside is implemented by stores whose documents other processes keep: etcd, Consul.
type Outside interface {
	Health() Health
}

// Health is what a process knows of the store outside.
type Health struct {
	Kind      string     `json:"kind"`      // etcd, consul
	Prefix    string     `json:"prefix"`    // all documents are under it
	Endpoints []Endpoint `json:"endpoints"` // as they were configured
	Reads     uint64     `json:"reads"`     // of this process, since it began
	Swaps     uint64     `json:"swaps"`
	Failures  uint64     `json:"failures"` // of both
}

// Endpoint is one address of the store outside.
type Endpoint struct {
	Addr string `json:"addr"`
	Up   bool   `json:"up"`            // it answered when it was last asked
	Err  string `json:"err,omitempty"` // what it said instead
}
