// SPDX-License-Identifier: Apache-2.0

// Package consulstore is coord.Backend on the key-value store of Consul (1.12 or later): documents are keys under a prefix,
// revisions are Consul's indexes of modification.
//
// It uses no sessions and no locks, whose time to live has a floor of ten seconds and is honoured at twice its value: package
// seat elects over any backend. Its invariants: a read asks for Consul's mode "consistent", and a swap whose outcome is not
// certain says so. It leaves an endpoint that does not answer in time.
//
// Goroutines: one that asks the endpoints how they are; Close ends it.
package consulstore

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// Options say where Consul is.
type Options struct {
	Endpoints []string // http://host:port or https://host:port
	Prefix    string   // of all keys; without slashes around
	Token     string   // empty: none
	TLS       *tls.Config
	Log       *slog.Logger // nil: silent
}

// How long an attempt may take before another endpoint is asked.
const (
	readTry    = 150 * time.Millisecond // the first; it doubles with each one that follows
	readTryMax = 2400 * time.Millisecond
	swapTry    = time.Second
	dialTry    = 300 * time.Millisecond
	watchFor   = 30 * time.Second // one blocking query
)

// txnMax is the largest document that is written by a transaction, which tells its revision at once: Consul bounds the body, in
// which values are larger by a third.
const txnMax = 256 << 10

// Store is Consul under one prefix. Its methods are safe for concurrent use.
type Store struct {
	*kit.Endpoints[*client]
	prefix string
}

// client is Consul's client of one endpoint.
type client struct {
	*api.Client
	http *http.Transport
}

type endpoint = kit.Endpoint[*client]

var _ coord.Backend = (*Store)(nil)

// Open does not wait until any endpoint answers.
func Open(o Options) (*Store, error) {
	if len(o.Endpoints) == 0 || o.Prefix == "" {
		return nil, errors.New("consul: endpoints or prefix are missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	all, err := kit.NewEndpoints("consul", o.Prefix, o.Log, o.Endpoints, func(addr string) (*client, error) {
		u, err := url.Parse(addr)
		if err != nil {
			return nil, fmt.Errorf("consul endpoint %s: %w", addr, err)
		}
		t := &http.Transport{DialContext: (&net.Dialer{Timeout: dialTry}).DialContext, TLSClientConfig: o.TLS, TLSHandshakeTimeout: swapTry, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute}
		c, err := api.NewClient(&api.Config{Address: u.Host, Scheme: u.Scheme, Token: o.Token, HttpClient: &http.Client{Transport: t}})
		if err != nil {
			return nil, fmt.Errorf("consul client for %s: %w", addr, err)
		}
		return &client{c, t}, nil
	})
	if err != nil {
		return nil, err
	}
	s := &Store{Endpoints: all, prefix: o.Prefix + "/"}
	s.Probe(func(ctx context.Context, c *client) error {
		_, _, err := c.KV().Keys(s.prefix+"store/", "", (&api.QueryOptions{AllowStale: true}).WithContext(ctx))
		return explain(err)
	})
	return s, nil
}

// Close ends everything that is under way.
func (s *Store) Close() error {
	s.Endpoints.Close(func(c *client) { c.http.CloseIdleConnections() })
	return nil
}

// Read implements coord.Backend: one transaction that only reads.
func (s *Store) Read(ctx context.Context, keys ...string) (map[string]coord.Doc, error) {
	s.Reading()
	ops := make(api.KVTxnOps, 0, len(keys))
	for _, k := range keys {
		ops = append(ops, &api.KVTxnOp{Verb: api.KVGetOrEmpty, Key: s.prefix + k})
	}
	var why error // of the latest attempt that did not end because of its time
	for try, n := readTry, 1; ; n++ {
		e, _ := s.Current()
		ok, resp, err := txn(ctx, e, try, ops)
		switch {
		case err == nil && !ok:
			err = refusal(resp)
		case err == nil && len(resp.Results) != len(ops): // what may not be read is left out, as if nobody had asked
			err = fmt.Errorf("permission denied: %d of %d keys were left out of the answer", len(ops)-len(resp.Results), len(ops))
		}
		if err == nil {
			s.Answered(e)
			docs := map[string]coord.Doc{}
			for _, kv := range resp.Results {
				if key := strings.TrimPrefix(kv.Key, s.prefix); kv.ModifyIndex > 0 {
					docs[key] = coord.Doc{Key: key, Value: kv.Value, Rev: coord.Rev(kv.ModifyIndex)}
				}
			}
			return docs, nil
		}
		if why == nil || !errors.Is(err, context.DeadlineExceeded) {
			why = explain(err)
		}
		s.Failed(ctx, e, n, why)
		if final(err) || ctx.Err() != nil {
			return nil, fmt.Errorf("read from consul at %s: %w: %w", e.Addr, coord.ErrUnavailable, why)
		}
		try = min(2*try, readTryMax)
	}
}

func txn(ctx context.Context, e *endpoint, within time.Duration, ops api.KVTxnOps) (bool, *api.KVTxnResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	ok, resp, _, err := e.Client.KV().Txn(ops, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	return ok, resp, err
}

// refusal is the error in a transaction that was rolled back.
func refusal(resp *api.KVTxnResponse) error {
	var words []string
	for _, e := range resp.Errors {
		words = append(words, e.What)
	}
	return fmt.Errorf("rolled back: %s", strings.Join(words, "; "))
}

// Swap implements coord.Backend: check-and-set on the key's index of modification.
func (s *Store) Swap(ctx context.Context, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	s.Swapping()
	var why error // of the latest attempt that did not end because of its time
	for n := 1; ; n++ {
		e, _ := s.Current()
		write := s.swapSmall
		if len(value) > txnMax {
			write = s.swapLarge
		}
		var sent atomic.Bool
		traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
		rev, err := write(traced, e, key, value, old)
		if err == nil || errors.Is(err, coord.ErrConflict) {
			s.Answered(e)
			return rev, err
		}
		if why == nil || !errors.Is(err, context.DeadlineExceeded) {
			why = explain(err)
		}
		s.Failed(ctx, e, n, why)
		switch {
		case final(err):
			return 0, fmt.Errorf("write to consul at %s: %w: %w", e.Addr, coord.ErrUnavailable, why)
		case sent.Load() && !refused(err):
			return 0, fmt.Errorf("write to consul at %s: %w: %w", e.Addr, coord.ErrUnsure, why)
		case ctx.Err() != nil:
			return 0, fmt.Errorf("write to consul at %s: %w: %w", e.Addr, coord.ErrUnavailable, why)
		}
	}
}

// swapSmall writes by a transaction of one operation, whose answer has the new index.
func (s *Store) swapSmall(ctx context.Context, e *endpoint, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	ok, resp, err := txn(ctx, e, swapTry, api.KVTxnOps{{Verb: api.KVCAS, Key: s.prefix + key, Value: value, Index: uint64(old)}})
	switch {
	case err != nil:
		return 0, err
	case !ok:
		if err = refusal(resp); strings.Contains(err.Error(), "index is stale") {
			return 0, fmt.Errorf("its revision is not %d: %w", old, coord.ErrConflict)
		}
		return 0, err
	case len(resp.Results) != 1 || resp.Results[0].ModifyIndex == 0:
		return 0, errors.New("the answer has no index")
	}
	return coord.Rev(resp.Results[0].ModifyIndex), nil
}

// swapLarge writes by a plain check-and-set, which does not tell the new index, and reads it.
func (s *Store) swapLarge(ctx context.Context, e *endpoint, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	within, cancel := context.WithTimeout(ctx, swapTry)
	defer cancel()
	ok, _, err := e.Client.KV().CAS(&api.KVPair{Key: s.prefix + key, Value: value, ModifyIndex: uint64(old)}, (&api.WriteOptions{}).WithContext(within))
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, fmt.Errorf("its revision is not %d: %w", old, coord.ErrConflict)
	}
	kv, _, err := e.Client.KV().Get(s.prefix+key, (&api.QueryOptions{RequireConsistent: true}).WithContext(within))
	if err != nil || kv == nil || !bytes.Equal(kv.Value, value) {
		return 0, fmt.Errorf("written, but its revision is not known: %v", err)
	}
	return coord.Rev(kv.ModifyIndex), nil
}

// Follow implements coord.Backend by blocking queries.
func (s *Store) Follow(ctx context.Context, key string, learn func(coord.Doc)) {
	index := uint64(0)
	s.Retry(ctx, "watch "+key, func() (err error) {
		index, err = s.follow(ctx, key, index, learn)
		return err
	})
}

// follow asks once for what is newer than index.
func (s *Store) follow(ctx context.Context, key string, index uint64, learn func(coord.Doc)) (uint64, error) {
	e, stay := s.Current()
	within, cancel := context.WithTimeout(ctx, watchFor+watchFor/8) // Consul adds up to a sixteenth
	defer cancel()
	defer context.AfterFunc(stay, cancel)()
	kv, meta, err := e.Client.KV().Get(s.prefix+key, (&api.QueryOptions{WaitIndex: index, WaitTime: watchFor}).WithContext(within))
	if err != nil {
		return 0, err
	}
	if kv != nil {
		learn(coord.Doc{Key: key, Value: kv.Value, Rev: coord.Rev(kv.ModifyIndex)})
	}
	if meta.LastIndex < index { // the state was restored: begin anew
		return 0, nil
	}
	return max(meta.LastIndex, 1), nil
}

// refused reports whether Consul said that it did not write, and may do so later.
func refused(err error) bool {
	return says(err, "No cluster leader") || says(err, "rate limit") || says(err, "rpc limit") ||
		says(err, "remote error: tls:") || says(err, "HTTP request to an HTTPS server") // nobody read it
}

// final reports whether asking again cannot help before somebody does something. Nothing was written then.
func final(err error) bool {
	return says(err, "Permission denied") || says(err, "ACL not found") || says(err, "ACL support disabled") || says(err, "too large") || says(err, "exceeds")
}

// says looks for the words in what Consul answered: its client has no kinds of errors for transactions.
func says(err error, words string) bool {
	return err != nil && strings.Contains(strings.ToLower(err.Error()), strings.ToLower(words))
}

// explain says what to do about the errors that somebody has to do something about.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case says(err, "ACL not found"):
		return fmt.Errorf("consul does not know the token: check store.token: %w", err)
	case says(err, "Permission denied"):
		return fmt.Errorf("the token may not read and write under the prefix: give it a policy with key_prefix write: %w", err)
	case says(err, "No cluster leader"):
		return fmt.Errorf("consul has no leader: %w", err)
	case says(err, "ACL support disabled"):
		return fmt.Errorf("consul has no access control: remove store.token: %w", err)
	}
	return kit.Certificate(err)
}
