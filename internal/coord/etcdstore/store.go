// SPDX-License-Identifier: Apache-2.0

// Package etcdstore is coord.Backend on etcd (3.4 or later): documents are keys under a prefix, revisions are etcd's.
//
// It is not an election and carries no reports: package seat does both, over any backend. Its invariants: a read is
// linearizable, and a swap whose outcome is not certain says so. It has one client for each endpoint and leaves an endpoint that
// does not answer in time, because a client for all would send every n-th request to a machine that is gone.
//
// Goroutines: one that asks the endpoints how they are, one while a client logs in, and those of etcd's client; Close ends all.
package etcdstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// Options say where etcd is.
type Options struct {
	Endpoints []string // http://host:port or https://host:port
	Prefix    string   // of all keys; without a slash at its end
	Username  string   // empty: none
	Password  string
	TLS       *tls.Config  // nil: as the system has it, for https
	Log       *slog.Logger // nil: silent
}

// How long an attempt may take before another endpoint is asked.
const (
	readTry    = 100 * time.Millisecond // the first; it doubles with each one that follows
	readTryMax = 1600 * time.Millisecond
	swapTry    = time.Second
	loginTry   = 10 * time.Second
	connectTry = 100 * time.Millisecond
	followTry  = 5 * time.Second
)

// Store is etcd under one prefix. Its methods are safe for concurrent use.
type Store struct {
	*kit.Endpoints[*client]
	prefix string
}

// client is etcd's client of one endpoint. It is made when it is first used, beside who asks for it: a login takes an answer, and
// etcd some time for the password.
type client struct {
	config clientv3.Config
	cancel context.CancelFunc // of its context
	work   sync.WaitGroup
	why    atomic.Pointer[error] // there is no connection because of this; nil: not known

	mu     sync.Mutex // guards what follows
	made   *clientv3.Client
	err    error         // of the latest attempt to make it
	making chan struct{} // closed when the attempt under way is over; nil: there is none
	closed bool
}

type endpoint = kit.Endpoint[*client]

var _ coord.Backend = (*Store)(nil)

// Open does not wait until any endpoint answers.
func Open(o Options) (*Store, error) {
	if len(o.Endpoints) == 0 || o.Prefix == "" {
		return nil, errors.New("etcd: endpoints or prefix are missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	all, err := kit.NewEndpoints("etcd", o.Prefix, o.Log, o.Endpoints, func(addr string) (*client, error) {
		ctx, cancel := context.WithCancel(context.Background())
		c := &client{cancel: cancel, config: clientv3.Config{
			Context: ctx, Endpoints: []string{addr}, Username: o.Username, Password: o.Password, TLS: o.TLS, Logger: zap.NewNop(), MaxUnaryRetries: 3,
			DialTimeout: loginTry, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
			DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}, MinConnectTimeout: time.Second,
			})},
		}}
		if o.TLS != nil && o.TLS.ServerName != "" { // etcd's client takes the name of the endpoint in its place
			c.config.DialOptions = append(c.config.DialOptions, grpc.WithAuthority(o.TLS.ServerName))
		}
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	s := &Store{Endpoints: all, prefix: o.Prefix + "/"}
	s.Probe(func(ctx context.Context, c *client) error {
		if err := c.look(ctx); err != nil {
			return explain(err)
		}
		made, err := c.use(ctx)
		if err == nil {
			_, err = made.Get(ctx, s.prefix, clientv3.WithCountOnly(), clientv3.WithSerializable())
		}
		return explain(err)
	})
	return s, nil
}

// use returns the client, which it waits for until ctx ends.
func (c *client) use(ctx context.Context) (*clientv3.Client, error) {
	c.mu.Lock()
	if c.made != nil || c.closed {
		defer c.mu.Unlock()
		if c.closed {
			return nil, coord.ErrClosed
		}
		return c.made, nil
	}
	if c.making == nil {
		c.making = make(chan struct{})
		c.work.Go(c.make)
	}
	done := c.making
	c.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
		return nil, fmt.Errorf("the login takes its time: %w", ctx.Err())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made, c.err
}

// look finds out why there is no connection: etcd's client says only that it waited.
func (c *client) look(ctx context.Context) error {
	c.mu.Lock()
	connected := c.made != nil && c.made.ActiveConnection().GetState() == connectivity.Ready
	c.mu.Unlock()
	var err error
	if !connected {
		err = kit.Handshake(ctx, c.config.Endpoints[0], c.config.TLS)
	}
	if err == nil {
		c.why.Store(nil)
	} else {
		c.why.Store(&err)
	}
	return err
}

// reason is what is known about why there is no connection, or err.
func (c *client) reason(err error) error {
	if why := c.why.Load(); why != nil {
		return *why
	}
	return err
}

func (c *client) make() {
	made, err := clientv3.New(c.config)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made, c.err = made, err
	close(c.making)
	c.making = nil
}

func (c *client) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	if c.made != nil {
		_ = c.made.Close()
	}
}

// Close ends everything that is under way.
func (s *Store) Close() error {
	s.Endpoints.Close((*client).close)
	return nil
}

// ready waits a moment for an endpoint's connection: without one, nothing can have been sent.
func ready(ctx context.Context, e *endpoint) (*clientv3.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTry)
	defer cancel()
	c, err := e.Client.use(ctx)
	if err != nil {
		return nil, e.Client.reason(err)
	}
	conn := c.ActiveConnection()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return c, nil
		case connectivity.Idle:
			conn.Connect()
		case connectivity.TransientFailure:
			if _, err := c.Get(ctx, "/", clientv3.WithCountOnly()); err != nil { // fails at once, and says why
				return nil, fmt.Errorf("no connection to %s: %w", e.Addr, e.Client.reason(err))
			}
		}
		if !conn.WaitForStateChange(ctx, state) {
			return nil, e.Client.reason(fmt.Errorf("no connection to %s within %s", e.Addr, connectTry))
		}
	}
}

// Read implements coord.Backend: one linearizable transaction that only reads.
func (s *Store) Read(ctx context.Context, keys ...string) (map[string]coord.Doc, error) {
	docs, _, err := s.read(ctx, keys...)
	return docs, err
}

// read also returns etcd's revision at the time.
func (s *Store) read(ctx context.Context, keys ...string) (map[string]coord.Doc, int64, error) {
	s.Reading()
	gets := make([]clientv3.Op, 0, len(keys))
	for _, k := range keys {
		gets = append(gets, clientv3.OpGet(s.prefix+k))
	}
	for try, n := readTry, 1; ; n++ {
		e, _ := s.Current()
		resp, err := txn(ctx, e, try, nil, gets)
		if err == nil {
			s.Answered(e)
			docs := map[string]coord.Doc{}
			for i, r := range resp.Responses {
				for _, kv := range r.GetResponseRange().GetKvs() {
					docs[keys[i]] = coord.Doc{Key: keys[i], Value: kv.Value, Rev: coord.Rev(kv.ModRevision)}
				}
			}
			return docs, resp.Header.Revision, nil
		}
		s.Failed(ctx, e, n, explain(err))
		if final(err) || ctx.Err() != nil {
			return nil, 0, fmt.Errorf("read from etcd at %s: %w: %w", e.Addr, coord.ErrUnavailable, explain(err))
		}
		try = min(2*try, readTryMax)
	}
}

// txn carries one transaction out at this endpoint.
func txn(ctx context.Context, e *endpoint, within time.Duration, ifs []clientv3.Cmp, then []clientv3.Op) (*clientv3.TxnResponse, error) {
	c, err := ready(ctx, e)
	if err != nil {
		return nil, notSent{err}
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return c.Txn(ctx).If(ifs...).Then(then...).Commit()
}

// notSent is an error that came before anything was sent.
type notSent struct{ why error }

func (e notSent) Error() string { return e.why.Error() }
func (e notSent) Unwrap() error { return e.why }

// Swap implements coord.Backend: a transaction on the key's revision of modification.
func (s *Store) Swap(ctx context.Context, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	s.Swapping()
	ifs := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(s.prefix+key), "=", int64(old))}
	then := []clientv3.Op{clientv3.OpPut(s.prefix+key, string(value))}
	for n := 1; ; n++ {
		e, _ := s.Current()
		resp, err := txn(ctx, e, swapTry, ifs, then)
		if err == nil {
			s.Answered(e)
			if !resp.Succeeded {
				return 0, fmt.Errorf("its revision is not %d: %w", old, coord.ErrConflict)
			}
			return coord.Rev(resp.Header.Revision), nil
		}
		s.Failed(ctx, e, n, explain(err))
		switch sent := !errors.As(err, new(notSent)); {
		case refused(err):
			return 0, fmt.Errorf("write to etcd at %s: %w: %w", e.Addr, coord.ErrUnavailable, explain(err))
		case sent:
			return 0, fmt.Errorf("write to etcd at %s: %w: %w", e.Addr, coord.ErrUnsure, explain(err))
		case ctx.Err() != nil:
			return 0, fmt.Errorf("write to etcd at %s: %w: %w", e.Addr, coord.ErrUnavailable, explain(err))
		}
	}
}

// Follow implements coord.Backend: the present version, and then a watch from there on; again from the present version when the
// watch ends, be it that etcd has compacted what it would have told.
func (s *Store) Follow(ctx context.Context, key string, learn func(coord.Doc)) {
	s.Retry(ctx, "watch "+key, func() error { return s.follow(ctx, key, learn) })
}

func (s *Store) follow(ctx context.Context, key string, learn func(coord.Doc)) error {
	reading, cancel := context.WithTimeout(ctx, followTry)
	docs, rev, err := s.read(reading, key)
	cancel()
	if err != nil {
		return err
	}
	if d, ok := docs[key]; ok {
		learn(d)
	}
	ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	e, stay := s.Current()
	c, err := e.Client.use(ctx)
	if err != nil {
		return err
	}
	told := c.Watch(clientv3.WithRequireLeader(ctx), s.prefix+key, clientv3.WithRev(rev+1))
	for {
		select {
		case <-stay.Done():
			return nil
		case resp, ok := <-told:
			if !ok {
				return errors.New("it ended")
			}
			if err := resp.Err(); err != nil {
				return err
			}
			for _, ev := range resp.Events {
				if ev.Type == clientv3.EventTypePut {
					learn(coord.Doc{Key: key, Value: ev.Kv.Value, Rev: coord.Rev(ev.Kv.ModRevision)})
				}
			}
		}
	}
}

// kind is an error as package rpctypes names it, which goes by the very words.
func kind(err error) error {
	if n := (notSent{}); errors.As(err, &n) {
		err = n.why
	}
	return rpctypes.Error(err)
}

// refused reports whether etcd said that it did not and will not carry a request out.
func refused(err error) bool {
	if final(err) {
		return true
	}
	return errors.Is(kind(err), rpctypes.ErrTooManyRequests)
}

// final reports whether asking again cannot help before somebody does something.
func final(err error) bool {
	for _, e := range []error{rpctypes.ErrNoSpace, rpctypes.ErrRequestTooLarge, rpctypes.ErrPermissionDenied, rpctypes.ErrAuthFailed, rpctypes.ErrUserEmpty,
		rpctypes.ErrInvalidAuthMgmt, rpctypes.ErrAuthNotEnabled, rpctypes.ErrUserNotFound} {
		if errors.Is(kind(err), e) {
			return true
		}
	}
	switch status.Code(kind(err)) {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.Unimplemented:
		return true
	}
	return false
}

// explain says what to do about the errors that somebody has to do something about.
func explain(err error) error {
	is := func(e error) bool { return errors.Is(kind(err), e) }
	switch {
	case err == nil:
		return nil
	case is(rpctypes.ErrNoSpace):
		return fmt.Errorf("etcd is full: compact and defragment it, then disarm the alarm: %w", err)
	case is(rpctypes.ErrAuthFailed), is(rpctypes.ErrUserEmpty), is(rpctypes.ErrUserNotFound), is(rpctypes.ErrInvalidAuthMgmt):
		return fmt.Errorf("etcd refuses the login: check store.username and store.password: %w", err)
	case is(rpctypes.ErrPermissionDenied):
		return fmt.Errorf("the user may not read and write under the prefix: grant it the role: %w", err)
	case is(rpctypes.ErrAuthNotEnabled):
		return fmt.Errorf("etcd has no authentication: remove store.username and store.password: %w", err)
	}
	return kit.Certificate(err)
}
