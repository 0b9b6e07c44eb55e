// SPDX-License-Identifier: Apache-2.0

// Package kubestore is coord.Backend on the API server of Kubernetes: each document is a ConfigMap, revisions are resource versions.
//
// It uses no Lease objects: package seat elects over any backend. Its invariants: a read names no resource version, which makes
// the API server ask its own store for the newest one; a write names the version that it replaces and differs from it, because
// the API server does not count one that changes nothing; and a swap whose outcome is not certain says so.
//
// Goroutines: those of net/http, and one for each document but the first of a read, which waits for them.
package kubestore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"redoubt/internal/coord"
	"redoubt/internal/kube"
)

// Options say which documents these are.
type Options struct {
	Client *kube.Client // Close closes it
	Prefix string       // of all keys; without slashes around
	Log    *slog.Logger // nil: silent
}

// How long an attempt may take before it is made on another connection, behind which may be another API server.
const (
	readTry    = 400 * time.Millisecond // the first; it doubles with each one that follows
	readTryMax = 3200 * time.Millisecond
	swapTry    = 2 * time.Second
	followTry  = 5 * time.Second
	pauseTry   = 50 * time.Millisecond
	pauseMax   = 2 * time.Second        // between watches that fail
	watchFor   = 240 * time.Second      // one watch
	slowDown   = 500 * time.Millisecond // after the API server has said that there are too many requests
)

// What a ConfigMap carries beside the document.
const (
	dataKey     = "document" // in data or, if it is no text, in binaryData
	labelKind   = "app.kubernetes.io/managed-by"
	noteKey     = "redoubt.io/key"   // the document's key
	noteWrite   = "redoubt.io/write" // random, so that every write is a change
	contentKind = "redoubt"
)

// Store is the documents under one prefix. Its methods are safe for concurrent use.
type Store struct {
	client *kube.Client
	prefix string
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc

	reads, swaps, failures atomic.Uint64

	mu  sync.Mutex
	err error // of the latest attempt; nil: it answered
}

var _ coord.Backend = (*Store)(nil)

// Open makes the store. It does not wait until the API server answers.
func Open(o Options) (*Store, error) {
	if o.Client == nil || o.Prefix == "" {
		return nil, errors.New("kubernetes: client or prefix is missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{client: o.Client, prefix: o.Prefix, log: o.Log}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Close ends everything that is under way.
func (s *Store) Close() error {
	s.cancel()
	s.client.Close()
	return nil
}

// nameMax is the longest name that an object can have, less what is put behind one that had to be changed.
const nameMax = 253 - 18

// objectName is the ConfigMap of a key: the key itself with dots for slashes where that can be a name; otherwise, what can be of it and
// a digest.
func objectName(prefix, key string) string {
	full := prefix + "/" + key
	clean, same := make([]byte, 0, len(full)), true
	for i := range len(full) {
		switch c := full[i]; {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
			clean = append(clean, c)
		case c == '-' && i > 0 && i < len(full)-1 && full[i-1] != '/' && full[i+1] != '/':
			clean = append(clean, c)
		case c == '/' && i > 0 && i < len(full)-1 && full[i-1] != '/':
			clean = append(clean, '.')
		default:
			clean, same = append(clean, '0'), false
		}
	}
	if same && len(clean) <= nameMax {
		return string(clean)
	}
	sum := sha256.Sum256([]byte(full))
	name := strings.TrimRight(string(clean[:min(len(clean), nameMax)]), ".-")
	return name + ".x" + hex.EncodeToString(sum[:8])
}

func (s *Store) path(key string) string {
	return s.client.Path("", "configmaps", objectName(s.prefix, key))
}

// within bounds an attempt by the store's life as well.
func (s *Store) within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, d)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

func (s *Store) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err = explain(err); err != nil {
		s.failures.Add(1)
	}
}

// Read implements coord.Backend.
func (s *Store) Read(ctx context.Context, keys ...string) (map[string]coord.Doc, error) {
	s.reads.Add(1)
	docs, errs := make([]coord.Doc, len(keys)), make([]error, len(keys))
	var all sync.WaitGroup
	for i, k := range keys {
		if i > 0 {
			all.Go(func() { docs[i], errs[i] = s.get(ctx, k) })
		}
	}
	if len(keys) > 0 {
		docs[0], errs[0] = s.get(ctx, keys[0])
	}
	all.Wait()
	found := map[string]coord.Doc{}
	for i, k := range keys {
		switch {
		case errs[i] == nil:
			found[k] = docs[i]
		case !errors.Is(errs[i], coord.ErrNotFound):
			return nil, errs[i]
		}
	}
	return found, nil
}

// get reads one document, and again while ctx allows.
func (s *Store) get(ctx context.Context, key string) (coord.Doc, error) {
	for try := readTry; ; try = min(2*try, readTryMax) {
		var m kube.ConfigMap
		attempt, cancel := s.within(ctx, try)
		err := s.client.Do(attempt, http.MethodGet, s.path(key), nil, "", nil, &m)
		cancel()
		if err == nil || kube.Is(err, http.StatusNotFound) {
			s.note(nil)
			if err != nil {
				return coord.Doc{}, coord.ErrNotFound
			}
			return document(&m, key)
		}
		s.note(err)
		if refused(err) || ctx.Err() != nil || s.ctx.Err() != nil {
			return coord.Doc{}, fmt.Errorf("read from the API server at %s: %w: %w", s.client.URL(), coord.ErrUnavailable, explain(err))
		}
		s.pause(ctx, after(err))
	}
}

// document takes a ConfigMap apart.
func document(m *kube.ConfigMap, key string) (coord.Doc, error) {
	if m.Metadata.Annotations[noteKey] != key {
		return coord.Doc{}, fmt.Errorf("%w: ConfigMap %s is not document %s of Redoubt: remove it, or use another store.prefix", coord.ErrUnavailable, m.Metadata.Name, key)
	}
	rev, err := strconv.ParseUint(m.Metadata.ResourceVersion, 10, 64)
	if err != nil || rev == 0 {
		return coord.Doc{}, fmt.Errorf("%w: this API server has resource versions that are no numbers (%q): keep the agreed state elsewhere", coord.ErrUnavailable, m.Metadata.ResourceVersion)
	}
	d := coord.Doc{Key: key, Rev: coord.Rev(rev)}
	if b, ok := m.BinaryData[dataKey]; ok {
		d.Value = b
	} else {
		d.Value = []byte(m.Data[dataKey])
	}
	return d, nil
}

// isText reports whether a document is shown as it is. One that would grow by being written as a string of JSON is not: a document of zeros
// alone would be six times as large, more than the API server takes.
func isText(value []byte) bool {
	if !utf8.Valid(value) {
		return false
	}
	b, err := json.Marshal(string(value))
	return err == nil && len(b) <= len(value)+len(value)/2+64
}

// Swap implements coord.Backend: one request that names the version that it replaces.
func (s *Store) Swap(ctx context.Context, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	s.swaps.Add(1)
	name := objectName(s.prefix, key)
	m := &kube.ConfigMap{Type: kube.Type{Kind: "ConfigMap", APIVersion: "v1"}, Metadata: kube.Meta{
		Name: name, Labels: map[string]string{labelKind: contentKind}, Annotations: map[string]string{noteKey: key, noteWrite: rand.Text()},
	}}
	if isText(value) {
		m.Data = map[string]string{dataKey: string(value)}
	} else {
		m.BinaryData = map[string][]byte{dataKey: value}
	}
	method, path := http.MethodPost, s.client.Path("", "configmaps")
	if old > 0 {
		m.Metadata.ResourceVersion = strconv.FormatUint(uint64(old), 10)
		method, path = http.MethodPut, s.path(key)
	}
	for {
		var now kube.ConfigMap
		attempt, cancel := s.within(ctx, swapTry)
		err := s.client.Do(attempt, method, path, nil, kube.JSON, m, &now)
		cancel()
		switch {
		case err == nil:
			s.note(nil)
			d, err := document(&now, key)
			if err != nil {
				return 0, fmt.Errorf("write to the API server: %w: %w", coord.ErrUnsure, err)
			}
			return d.Rev, nil
		case kube.Is(err, http.StatusConflict), old > 0 && kube.Is(err, http.StatusNotFound):
			s.note(nil)
			return 0, fmt.Errorf("its revision is not %d: %w", old, coord.ErrConflict)
		}
		s.note(err)
		sent := !errors.As(err, new(*kube.NotSent))
		switch {
		case refused(err):
			return 0, fmt.Errorf("write to the API server at %s: %w: %w", s.client.URL(), coord.ErrUnavailable, explain(err))
		case sent && !kube.Is(err, http.StatusTooManyRequests):
			return 0, fmt.Errorf("write to the API server at %s: %w: %w", s.client.URL(), coord.ErrUnsure, explain(err))
		case ctx.Err() != nil || s.ctx.Err() != nil:
			return 0, fmt.Errorf("write to the API server at %s: %w: %w", s.client.URL(), coord.ErrUnavailable, explain(err))
		}
		s.pause(ctx, after(err))
	}
}

// Follow implements coord.Backend: the present version, and then a watch from there on; again from the present version when the
// watch ends, be it that the API server no longer knows what it would have told.
func (s *Store) Follow(ctx context.Context, key string, learn func(coord.Doc)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	wait := pauseTry
	for ctx.Err() == nil {
		begun := time.Now()
		err := s.follow(ctx, key, learn)
		if err == nil || kube.Is(err, http.StatusGone) || time.Since(begun) > pauseMax {
			wait = pauseTry
		}
		if err != nil && ctx.Err() == nil {
			s.log.Debug("watch of the API server", "key", key, "err", err)
			s.pause(ctx, wait)
			wait = min(2*wait, pauseMax)
		}
	}
}

func (s *Store) follow(ctx context.Context, key string, learn func(coord.Doc)) error {
	query := url.Values{"fieldSelector": {"metadata.name=" + objectName(s.prefix, key)}}
	path := s.client.Path("", "configmaps")
	var list kube.List[kube.ConfigMap]
	reading, cancel := context.WithTimeout(ctx, followTry)
	err := s.client.Do(reading, http.MethodGet, path, query, "", nil, &list)
	cancel()
	if err != nil {
		return err
	}
	tell := func(m *kube.ConfigMap) error {
		d, err := document(m, key)
		if err == nil {
			learn(d)
		}
		return err
	}
	for i := range list.Items {
		if err := tell(&list.Items[i]); err != nil {
			return err
		}
	}
	query.Set("watch", "1")
	query.Set("resourceVersion", list.Metadata.ResourceVersion)
	query.Set("timeoutSeconds", strconv.Itoa(int(watchFor.Seconds())))
	watching, cancel := context.WithTimeout(ctx, watchFor+followTry) // an API server that is gone ends nothing
	defer cancel()
	return s.client.Watch(watching, path, query, func(e kube.Event) error {
		if e.Type != "ADDED" && e.Type != "MODIFIED" {
			return nil
		}
		var m kube.ConfigMap
		if err := json.Unmarshal(e.Object, &m); err != nil {
			return fmt.Errorf("decode what a watch tells: %w", err)
		}
		return tell(&m)
	})
}

// Health implements coord.Outside.
func (s *Store) Health() coord.Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := coord.Endpoint{Addr: s.client.URL(), Up: s.err == nil}
	if s.err != nil {
		e.Err = s.err.Error()
	}
	return coord.Health{Kind: "kubernetes", Prefix: "ConfigMaps " + s.client.Namespace() + "/" + strings.TrimSuffix(objectName(s.prefix, "x"), "x") + "*",
		Endpoints: []coord.Endpoint{e}, Reads: s.reads.Load(), Swaps: s.swaps.Load(), Failures: s.failures.Load()}
}

// refused reports whether the API server said that it did not and will not carry a request out, before somebody does something.
func refused(err error) bool {
	for _, code := range []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity} {
		if kube.Is(err, code) {
			return true
		}
	}
	return false
}

// explain says what to do about the errors that somebody has to do something about.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case kube.Is(err, http.StatusUnauthorized):
		return fmt.Errorf("the API server does not know the service account's token: check kubernetes.token-file: %w", err)
	case kube.Is(err, http.StatusForbidden):
		return fmt.Errorf("the service account may not do this: apply the Role of deploy/kubernetes: %w", err)
	case kube.Is(err, http.StatusRequestEntityTooLarge), kube.Is(err, http.StatusUnprocessableEntity):
		return fmt.Errorf("the API server does not take the document: %w", err)
	}
	return err
}

// after is how long to wait before the next attempt.
func after(err error) time.Duration {
	if kube.Is(err, http.StatusTooManyRequests) {
		return slowDown
	}
	return pauseTry
}

func (s *Store) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
}
