// SPDX-License-Identifier: Apache-2.0

// Package raftstore is the embedded store: coord.Store on hashicorp/raft, one process per member, one TCP port, one data
// directory. It is not for large or many documents, knows nothing of shards, and does not encrypt or authenticate: its
// port belongs on a network that only members can reach. Its invariant: an acknowledged swap is on the disks of a majority, and
// a Get is answered only by a controller that a majority confirmed after the Get arrived. DESIGN.md tells the rest.
//
// Its goroutines, all ended by Close, which waits for them: those of package raft; rule (takes and leaves office); one
// confirmer per term in office; follow (the stream to the controller); one reader and one writer per stream; at most
// requestsMax per stream for requests that wait.
package raftstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// Store is one member. Its methods are safe for concurrent use.
type Store struct {
	opts      Options
	log       *slog.Logger
	advertise string
	disk      disk
	machine   *machine
	hub       *kit.Hub
	port      *port
	transport *raft.NetworkTransport
	raft      atomic.Pointer[raft.Raft]

	ctx    context.Context // ends with the store
	cancel context.CancelFunc
	work   kit.Group
	ended  sync.Once

	raised  notices
	news    kit.Signal                         // reign, link or left changed
	reign   atomic.Pointer[reign]              // nil unless in office
	link    atomic.Pointer[kit.Link]           // nil unless there is a stream to the controller
	members atomic.Pointer[raft.Configuration] // the latest committed one
	changed atomic.Int64                       // clock.Uptime when that was learned, or when this process began
	oaths   oaths
	lines   kit.Lines
	inbox   kit.Inbox
	left    departure

	admitted atomic.Bool // false: it is joining, and was not added yet. What Raft sends to the one that had its name before can reach it
}

// notices come from package raft.
type notices struct {
	office chan bool             // won or lost an election; package raft blocks until it is read
	seen   chan raft.Observation // lossy: only says "look again"
	leader kit.Signal            // the leader that package raft knows may have changed
}

// departure tells that this member takes no part any more.
type departure struct {
	done chan struct{}
	why  atomic.Pointer[string] // set before done is closed
}

// disk is everything in the data directory.
type disk struct {
	dir   string
	lock  *os.File
	log   *journal
	votes *votes
	mu    sync.Mutex
	me    identity
}

var (
	_ coord.Store    = (*Store)(nil)
	_ coord.ReadAges = (*Store)(nil)
	_ coord.Members  = (*Store)(nil)
)

// Open starts this member. With a bootstrap list, or a directory in use, it returns when the member runs, which says
// nothing about a majority; with an address to join, when the member was added, or with an error when ctx ends.
func Open(ctx context.Context, opts Options) (_ *Store, err error) {
	opts = opts.withDefaults()
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	s := &Store{opts: opts, log: opts.Log.With("member", opts.ID), hub: kit.NewHub(), inbox: kit.NewInbox()}
	s.raised.office, s.raised.seen, s.left.done = make(chan bool, 16), make(chan raft.Observation, 16), make(chan struct{})
	s.oaths.clock, s.oaths.before = opts.Clock, opts.Clock.Uptime()
	s.changed.Store(int64(s.oaths.before))
	s.lines.Dial, s.lines.Idle = s.dialPeer, opts.Timing.Request
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	s.machine = &machine{docs: map[string]coord.Doc{}, seats: map[string]string{}, changed: s.docChanged, configured: s.configured, named: s.named}
	if err := s.disk.open(opts.Dir, opts.ID); err != nil {
		return nil, err
	}
	if s.port, err = openPort(s, opts.ListenAddr); err != nil {
		return nil, err
	}
	if s.advertise = opts.AdvertiseAddr; s.advertise == "" {
		s.advertise = s.port.Port.Addr()
	}
	isNew, err := s.startRaft()
	if err != nil {
		return nil, err
	}
	joins := isNew && opts.Join != ""
	s.admitted.Store(!joins)
	s.port.start()
	for _, run := range []func(){s.rule, s.follow, s.observe} {
		s.spawn(run)
	}
	if joins {
		return s, s.join(ctx, opts.Join)
	}
	s.spawn(s.rise)
	return s, nil
}

// spawn runs f in a goroutine that Close waits for; false, and not at all, when the store is being closed.
func (s *Store) spawn(f func()) bool { return s.work.Spawn(f) }

// open takes and checks the data directory.
func (d *disk) open(dir, member string) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	d.dir = dir
	if d.lock, err = lockDir(dir); err != nil {
		return err
	}
	if d.me, err = openIdentity(dir, member); err != nil {
		return err
	}
	if d.votes, err = openVotes(dir); err != nil {
		return err
	}
	if d.log, err = openJournal(dir); err != nil {
		return fmt.Errorf("%w; restore the file, or remove this member, empty its directory and join again", err)
	}
	return nil
}

// checkSnapshots refuses a directory whose newest snapshot is damaged or missing: an older one would be a state from
// which acknowledged swaps are gone.
func (d *disk) checkSnapshots(snaps raft.SnapshotStore) error {
	list, err := snaps.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	var upTo uint64
	if len(list) > 0 {
		upTo = list[0].Index
		_, r, err := snaps.Open(list[0].ID) // checks the checksum
		if err != nil {
			return fmt.Errorf("snapshot %s in %s is damaged; remove this member, empty its directory and join again: %w", list[0].ID, d.dir, err)
		}
		_ = r.Close()
	}
	if first, _ := d.log.FirstIndex(); first > upTo+1 {
		return fmt.Errorf("%s: the log begins at %d but the newest snapshot ends at %d; remove this member, empty its directory and join again", d.dir, first, upTo)
	}
	return nil
}

func (d *disk) close() error {
	var errs []error
	if d.log != nil {
		errs = append(errs, d.log.Close())
	}
	if d.votes != nil {
		errs = append(errs, d.votes.Close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

const (
	snapshotEvery = 1024 // log entries
	snapshotKeep  = 2
	logTrail      = 4096 // entries kept behind a snapshot, for members that were away
	logCached     = 128  // entries
)

// startRaft starts package raft and reports whether the directory was empty.
func (s *Store) startRaft() (isNew bool, err error) {
	hlog := raftLog{to: s.log}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(filepath.Clean(s.opts.Dir), snapshotKeep, hlog)
	if err != nil {
		return false, fmt.Errorf("open snapshots: %w", err)
	}
	if err := s.disk.checkSnapshots(snaps); err != nil {
		return false, err
	}
	logs, err := raft.NewLogCache(logCached, s.disk.log)
	if err != nil {
		return false, fmt.Errorf("open log cache: %w", err)
	}
	c := raft.DefaultConfig()
	c.LocalID, c.Logger, c.NotifyCh = raft.ServerID(s.opts.ID), hlog, s.raised.office
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = s.opts.Timing.Election, s.opts.Timing.Election, s.opts.Timing.Lease
	c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = snapshotEvery, logTrail, 30*time.Second
	c.ShutdownOnRemove, c.NoLegacyTelemetry = false, true
	s.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: s.port, MaxPool: 4, Timeout: time.Second, Logger: hlog})
	used, err := raft.HasExistingState(logs, s.disk.votes, snaps)
	if err != nil {
		return false, fmt.Errorf("read raft state: %w", err)
	}
	if !used && len(s.opts.Bootstrap) > 0 {
		var first raft.Configuration
		for _, m := range s.opts.Bootstrap {
			first.Servers = append(first.Servers, raft.Server{ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.Addr)})
		}
		if err := raft.BootstrapCluster(c, logs, s.disk.votes, snaps, s.transport, first); err != nil {
			return false, fmt.Errorf("bootstrap: %w", err)
		}
	}
	mute := muteTransport{ballotTransport{s.transport, s.voters}, func() bool { return s.disk.log.hangs(hangFactor * s.opts.Timing.Election) }}
	r, err := raft.NewRaft(c, s.machine, logs, s.disk.votes, snaps, mute)
	if err != nil {
		return false, fmt.Errorf("start raft: %w", err)
	}
	r.RegisterObserver(raft.NewObserver(s.raised.seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	s.raft.Store(r)
	return !used, nil
}

// observe turns the lossy observations of package raft into a signal.
func (s *Store) observe() {
	for {
		select {
		case <-s.raised.seen:
			s.raised.leader.Fire()
		case <-s.ctx.Done():
			return
		}
	}
}

// Close stops this member and waits for all its goroutines. A controller gives up its seat without handing it over;
// call Release first where that matters.
func (s *Store) Close() error {
	var errs []error
	s.ended.Do(func() {
		s.cancel()
		s.news.Fire()
		if s.port != nil {
			errs = append(errs, s.port.Close())
		}
		if s.port != nil {
			s.port.Wait()
		}
		// Before Raft is stopped, because it may forget to answer what is under way then. Until then it answers: without
		// connections it loses its majority within the lease, or it is alone and commits.
		s.work.Wait()
		if r := s.raft.Load(); r != nil {
			errs = append(errs, r.Shutdown().Error())
		}
		if s.transport != nil {
			errs = append(errs, s.transport.Close())
			s.port.inRaft.Wait()
		}
		s.hub.Close()
		errs = append(errs, s.disk.close())
	})
	return errors.Join(errs...)
}

// Deployment is the random name that the first controller gave to this store; "" before this member learned it. It
// tells one deployment's documents from another's, for whoever keeps notes about them elsewhere.
func (s *Store) Deployment() string {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	return s.disk.me.Store
}

// Addr is the address that this member gives to others.
func (s *Store) Addr() string { return s.advertise }

// Removed is closed when this member learned that the store goes on without it: it was removed, or it came back without
// its data. It takes no part any more; its calls answer ErrUnavailable and say what to do.
func (s *Store) Removed() <-chan struct{} { return s.left.done }

// named keeps the deployment's name on disk. It comes from the replicated state, or from the controller before that.
func (s *Store) named(store string) {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	if store == "" || s.disk.me.Store == store {
		return
	}
	if s.disk.me.Store != "" {
		s.log.Error("the replicated state belongs to another deployment", "directory", s.disk.me.Store, "state", store)
		return
	}
	s.disk.me.Store = store
	if err := writeIdentity(s.disk.dir, s.disk.me); err != nil {
		s.log.Error("keep the deployment's name", "err", err)
	}
}

func newName() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// configured keeps the latest committed membership.
func (s *Store) configured(c raft.Configuration) {
	s.members.Store(&c)
	s.changed.Store(int64(s.opts.Clock.Uptime()))
	if g := s.reign.Load(); g != nil {
		g.keepPeers(func(id string) bool { return isMember(&c, id) })
	}
}

// votersOf are the members that count towards a majority: all but those that have just joined.
func votersOf(c *raft.Configuration) (voters []raft.Server) {
	for _, m := range c.Servers {
		if m.Suffrage == raft.Voter {
			voters = append(voters, m)
		}
	}
	return voters
}

// voters are those of the latest list in the log, which may not be committed; none while Raft is being started.
func (s *Store) voters() []raft.Server {
	r := s.raft.Load()
	if r == nil {
		return nil
	}
	config := r.GetConfiguration().Configuration()
	return votersOf(&config)
}

func isVoter(c *raft.Configuration, id string) bool {
	return slices.ContainsFunc(votersOf(c), func(m raft.Server) bool { return string(m.ID) == id })
}

func isMember(c *raft.Configuration, id string) bool {
	for _, m := range c.Servers {
		if string(m.ID) == id {
			return true
		}
	}
	return false
}

// docChanged is called for every committed version, in order.
func (s *Store) docChanged(doc coord.Doc) {
	s.hub.Learn(doc)
	if g := s.reign.Load(); g != nil {
		g.push(kit.Frame{Kind: kit.KindDoc, Key: doc.Key, Value: doc.Value, Rev: uint64(doc.Rev)}.Encode())
	}
}

// pause waits for d, or until ctx or early end.
func (s *Store) pause(ctx context.Context, early <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-early:
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
}

var _ net.Listener = (*port)(nil)
