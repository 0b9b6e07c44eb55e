// SPDX-License-Identifier: Apache-2.0

// Package coord is the port to the store, where the agreed state lives: the weakest thing that embedded Raft, etcd,
// Consul and Kubernetes can all do. Compare-and-swap on one document, one elected controller, and cheap reports with a
// time-to-live. It knows nothing of shards or failovers. Its contract is the suite in coordtest. No goroutines.
package coord

import (
	"context"
	"errors"
	"time"
)

// The errors of a store. Callers branch on these alone.
var (
	// ErrNotFound: no document under that key.
	ErrNotFound = errors.New("no such document")
	// ErrConflict: somebody else wrote; nothing was changed. Re-read and decide again.
	ErrConflict = errors.New("document was changed by somebody else")
	// ErrUnsure: the outcome is unknown (timeout, leader lost after sending). Re-read before anything else.
	ErrUnsure = errors.New("outcome of the write is unknown")
	// ErrUnavailable: the store cannot be reached or has no majority; nothing was changed.
	ErrUnavailable = errors.New("store is unavailable")
	// ErrClosed: the store was closed by this process.
	ErrClosed = errors.New("store is closed")
)

// Rev is a document's revision: it grows with every successful Swap of that document. Zero means "does not exist".
type Rev uint64

// Doc is one version of one document.
type Doc struct {
	Key   string
	Value []byte
	Rev   Rev
}

// Docs are small versioned documents (at most DocMax bytes).
type Docs interface {
	// Get is linearizable: it sees every Swap that was acknowledged to anybody before Get was called.
	Get(ctx context.Context, key string) (Doc, error)
	// Swap replaces the document if its revision is still old (0: create it) and returns the new revision.
	// ErrConflict: it was not; ErrUnsure: it may or may not have happened.
	Swap(ctx context.Context, key string, value []byte, old Rev) (Rev, error)
	// Watch delivers the document's present version, if it exists, and then newer ones as soon as this process can
	// learn of them. It may skip versions and never goes back. The channel holds the latest version only and is closed
	// when ctx ends. What it delivers is NOT linearizable: a lease counts from Get alone.
	Watch(ctx context.Context, key string) <-chan Doc
}

// DocMax bounds a document, in bytes. Kubernetes and etcd allow somewhat more.
const DocMax = 512 << 10

// Election chooses the one controller among the members.
type Election interface {
	// Campaign blocks until this process is the controller or ctx ends.
	Campaign(ctx context.Context) (Lease, error)
	// Controller returns the member that this process believes to be the controller; "" when unknown.
	Controller() string
}

// Lease is the right to control. Swaps by a deposed holder are refused by the term in the documents, not by this.
type Lease interface {
	Term() uint64          // grows with every new holder
	Lost() <-chan struct{} // closed when this process is no longer the controller
	Release(ctx context.Context) error
}

// Beat is one member's latest report.
type Beat struct {
	Body []byte        // not to be changed
	Age  time.Duration // since it arrived at the controller
}

// Beats are cheap, lossy reports with a time-to-live. They are never logged or replicated, and are empty after the
// controller moved until everybody has reported again.
type Beats interface {
	// Send delivers a report to the controller, replacing the earlier one under that name. At most BeatMax bytes.
	// An error means only that it may not have arrived; the next one replaces it anyway.
	Send(ctx context.Context, from string, body []byte, ttl time.Duration) error
	// All returns the reports that have not expired, as the controller has them (asked over the network elsewhere).
	All(ctx context.Context) (map[string]Beat, error)
	// Arrived gets a value (capacity one, coalesced) whenever a report arrives in this process.
	Arrived() <-chan struct{}
}

// Sieve is implemented by stores whose reports can be told apart before they are handed over, which shards that share a store need: what
// one of them costs must not grow with what the others report.
type Sieve interface {
	// Some is All for the names that want takes; nil takes all.
	Some(ctx context.Context, want func(name string) bool) (map[string]Beat, error)
	// Fresh returns whose reports arrived in this process since it was asked last; all: they were too many to note.
	Fresh() (names []string, all bool)
}

// BeatMax bounds a report, in bytes.
const BeatMax = 64 << 10

// ReadAges is implemented by stores that know when each member last read. With it a controller needs to wait only for
// the lease that can really exist, side by side with detection, instead of a full one after its fencing swap.
type ReadAges interface {
	// ReadAge returns the shortest time that can have passed since the start of the latest Get by that member that may
	// have seen an older state than this process would read now. ok is false when nothing is known (not the
	// controller). It must count Gets that any earlier controller answered.
	ReadAge(member string) (age time.Duration, ok bool)
	// VacantFor returns the shortest time since an earlier controller can have answered any Get. It counts what passed
	// before this process took the seat, which is what a controller cannot see by itself.
	VacantFor() (age time.Duration, ok bool)
}

// Members are the processes that hold the store's state. Stores with members of their own kind implement it.
type Members interface {
	Members(ctx context.Context) ([]Member, error)
	// AddMember and RemoveMember change the membership by one; they work on any member while a majority is alive.
	AddMember(ctx context.Context, m Member) error
	RemoveMember(ctx context.Context, id string) error
}

// Member is one process of the store.
type Member struct {
	ID         string `json:"id"`
	Addr       string `json:"addr"` // host:port of its one store port
	Controller bool   `json:"controller"`
}

// Store is everything that a process needs to take part.
type Store interface {
	Docs
	Election
	Beats
	Close() error
}
