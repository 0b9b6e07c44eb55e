// SPDX-License-Identifier: Apache-2.0

// Package redis is the port to one data node: the verbs of our domain, not of RESP. It holds interfaces and their
// contracts only; redisd implements them on a real redis-server or valkey-server, redistest holds the conformance suite
// and an in-memory fake. No goroutines.
package redis

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/topo"
)

// The errors of a node. Callers branch on these alone.
var (
	// ErrRefused: the condition of the verb does not hold (another run id, another position, a lower epoch); nothing was done.
	ErrRefused = errors.New("refused: the node is not what was expected")
	// ErrBehind: the server is what was expected and still follows, but has not reached the expected offset; nothing was done.
	ErrBehind = errors.New("not there yet: the rest of the stream is still on its way")
	// ErrStarting: a server of a cluster began a moment ago, and would refuse its clients: it is promoted when it would not.
	ErrStarting = errors.New("it started a moment ago and would answer CLUSTERDOWN: it is opened when it serves")
	// ErrUnanswered: the server did not answer in time; the verb may or may not have been carried out.
	ErrUnanswered = errors.New("the server did not answer")
	// ErrNoTail: the server's memory does not hold that part of its stream any more, and never will again.
	ErrNoTail = errors.New("not in the server's memory any more")
)

// Observation is what one look at a node showed. The zero value means "nothing is known".
type Observation struct {
	At        time.Duration // clock.Uptime at the start of the look
	Health    topo.Health
	HealthFor time.Duration
	Role      topo.Role
	Frozen    bool // replica of the dead address (127.0.0.1 port 0)
	Whole     bool // loading:0, no sync in progress, slave_repl_offset = master_repl_offset (or a primary)
	RunID     string
	Pos       topo.Position
	Backlog   bool
	Following string     // host:port, empty for a primary
	LinkUp    bool       // to Following, and heard from it lately
	Keys      int64      // the commit marker does not count
	Kept      bool       // see topo.Sighting
	Mark      *topo.Mark // see topo.Sighting
	Settings  []string   // settings that would make it lie (SAFETY A10), each as "name is value, must be value"
	Problems  []string   // "disk-full: …", "oom: …", "aof-rewrite", …
	Replicas  []string   // host:port of each server that replicates from this one, as the server tells
	Open      bool       // the server cannot be told who may replicate from it: it refuses to have its ACLs changed
	AOFBusy   bool       // an append-only rewrite is in progress or scheduled: enrolment waits (SAFETY A1)
	PID       int
	Version   string
	Detail    string // one sentence for people

	Disk   topo.DiskState // whether what the server says of its disk can be believed
	NoDisk string         // DiskUnable: why, and what to do

	Unreadable string // exited: the data on disk that no start of it will be able to read; see SetAside
}

// Node is one data node. All verbs are idempotent, and those that change something return nil only after the effect has
// been read back. Verbs are called by one goroutine at a time, except Fence, which may overtake any of them.
type Node interface {
	// Observe looks at the server and at its process. It returns an Observation even when the server does not answer;
	// it never blocks longer than ctx allows.
	Observe(ctx context.Context) Observation
	// Follow makes the server a replica of addr, with what the primary there demands. Zero credentials are the
	// deployment's own password.
	Follow(ctx context.Context, addr string, cred Credentials) error
	// Freeze stops following and stays read-only: REPLICAOF to the dead address. On a primary it is Fence.
	Freeze(ctx context.Context) error
	// Fence makes sure that nobody writes here now: freeze, and cut normal and pub/sub clients in the same transaction
	// (SAFETY A5, B1). A managed primary that does not carry that out before ctx ends is killed and seen to exit.
	Fence(ctx context.Context) error
	// Promote makes the server a primary if, on the same connection, its run id, replication id and offset are the
	// elected ones; otherwise ErrRefused and nothing was done (SAFETY A6), or ErrBehind for a replica that may still get there. It leaves a primary with an active backlog and
	// a final replication id, and returns the position read back (SAFETY A3). From the instant of the promotion on, only
	// replicas that present cred are attached (SAFETY A7); with zero credentials, all that know the deployment's password.
	Promote(ctx context.Context, expect topo.Elected, cred Credentials) (topo.Position, error)
	// PrimaryPosition reads the position of another node's server.
	PrimaryPosition(ctx context.Context, addr string) (topo.Role, topo.Position, error)
	// StreamPosition is PrimaryPosition for the in-sync check (SAFETY A1). A replica that gets there has its primary's stream: the
	// position is behind something that the primary sends for this question, which may take it 100 ms.
	StreamPosition(ctx context.Context, addr string) (topo.Role, topo.Position, error)
	// Acknowledge has a replica acknowledge to its primary now, which may wait for it to begin with its stream. On a primary it does nothing.
	Acknowledge(ctx context.Context) error
	// Tail writes to w the end of a frozen server's own replication stream, as its replicas would get it: the commands behind
	// offset from, up to where it stands, or as many bytes as max allows. It leaves the server frozen, at the same position,
	// and never makes it writable. ErrRefused: it is not frozen, or not behind from. ErrNoTail: it cannot be had.
	Tail(ctx context.Context, from, max int64, w io.Writer) (Tail, error)
	// Journal writes to w the commands that a frozen server's append-only file got since its last rewrite, and returns how many
	// bytes that are: what a process that began anew still has of the one before it. ErrNoTail: there are none, or more than max.
	Journal(ctx context.Context, max int64, w io.Writer) (int64, error)
	// ProxyConnections counts the connections by which proxies say that something may be on its way to this server (Undrained):
	// zero means that draining is over.
	ProxyConnections(ctx context.Context) (int, error)
	// Enforce makes sure of an acknowledgement rule on a primary (SAFETY A7). It looks for proxies' connections that may still
	// carry what was sent under an older rule than r.Law and returns whose they are. With r.Cut it ends them; when there are none
	// it writes a marker and waits a moment for r.Acks replicas to hold it: held says whether they do.
	Enforce(ctx context.Context, r Rule) (late []string, held bool, err error)
	// Mark writes the commit marker into the data of a primary, unless nothing was written there since the last one. A server that
	// refuses writes at the moment is no error: there is no new marker then.
	Mark(ctx context.Context, m topo.Mark) error
	// Configure applies the settings that safety needs (SAFETY A10, B2, C5), and is a no-op when they hold.
	Configure(ctx context.Context, s Settings) error
	// Restart brings a server that exited back, frozen. Managed nodes only; ErrRefused otherwise.
	Restart(ctx context.Context) error
	// SetAside moves data that the server of an exited managed node cannot read to another name beside it, which it returns, so
	// that the next start is empty. ErrRefused when that is not why it ended. Only for a node whose data somebody else has.
	SetAside(ctx context.Context) (string, error)
	// Kill ends a managed server's process with SIGKILL and returns when it was seen to exit. Never used on a replica as a fence.
	Kill(ctx context.Context) error
	// Wake gets a value (capacity one, coalesced) when something changed that a look would show: exit, start, stop.
	Wake() <-chan struct{}
	Close() error
}

// Rule is what an acknowledgement stands for, and how far everybody is with it.
type Rule struct {
	Change uint64 // for which it is enforced: a barrier that was written for it is asked about again
	Law    uint64 // number that proxies' connections must carry; 0: the rule is as it was
	Acks   int    // replicas that must hold what is acknowledged
	Disk   bool   // on their disks, and on the primary's own
	Cut    bool   // connections of older rules are ended, and the barrier may be written
}

// Tail says which part of a server's stream was read.
type Tail struct {
	RunID  string
	ReplID string
	To     int64 // offset of the last byte that was written
	End    int64 // where the server stands; more than To when the limit was reached
}

// Settings are what a shard demands of each of its servers.
type Settings struct {
	MinReplicas       int // min-replicas-to-write in quorum mode; 0 in async
	MinReplicasMaxLag int // seconds
	// Disk has the server sync every write before it says that it has it. When it is no longer asked for, a managed server goes
	// back to what its configuration says.
	Disk bool
	// Admit is what replicas of this server must present; it is demanded again if somebody changed the server's ACLs. Zero
	// leaves it as it is: that is for replicas, and for a primary whose order holds no secret.
	Admit Credentials
}

// ReplicationUser is the server user that replicas log in as. It may do nothing but replicate.
const ReplicationUser = "redoubt-repl"

// MoverUser is the server user of who moves slots of a cluster. It is there only while there is something to move.
const MoverUser = "redoubt-mover"

// Credentials are what a replica must present to the primary of one tenure. Zero: there are none, and replication is open.
// Printed, they hide themselves.
type Credentials struct{ Secret topo.Secret }

// Open tells whether nothing is demanded.
func (c Credentials) Open() bool { return c.Secret == "" }

// ProxyClientName is the prefix of the CLIENT SETNAME of the connections to the primary that a proxy's sessions share. A proxy
// closes them in a switchover when nothing is on its way.
const ProxyClientName = "redoubt-proxy:"

// PinnedClientName is the prefix for upstream connections of one session (blocked, subscribed, tracked, in MULTI): they stay
// until the fence ends them, because the proxy knows how to carry them over.
const PinnedClientName = "redoubt-pinned:"

// PresentClientName is the prefix for the connection that a proxy keeps to the primary for as long as something may be on its
// way there, on whatever connection.
const PresentClientName = "redoubt-present:"

// Undrained counts what a switchover waits for in the reply to CLIENT LIST of the primary: connections that proxies close when
// nothing is on its way to it any more. Sessions' own connections are not among them: they may be named by nobody, and stay.
func Undrained(clients string) int {
	return strings.Count(clients, " name="+ProxyClientName) + strings.Count(clients, " name="+PresentClientName)
}

// ErrandClientName is the prefix for connections of a proxy that carry nothing of its clients.
const ErrandClientName = "redoubt-errand:"

// WithRule completes the name of a proxy's connection: everything that is sent behind it is acknowledged by the rule of that
// number, or by a stronger one that came later (topo.Assigned.Rule). Nothing is added before the first change.
func WithRule(name string, rule uint64) string {
	if rule == 0 {
		return name
	}
	return name + ruleMark + strconv.FormatUint(rule, 10)
}

// ruleMark stands between a proxy's id, which has no such character, and the number of its rule.
const ruleMark = "#"

// ConfirmsDisk says why a server of that version cannot be asked what is on its disk; empty when it can. WAITAOF came with Redis
// 7.2. There, and in Valkey 7.2, it is not answered for what is replicated and is not data, as a marker is, before data follow.
func ConfirmsDisk(version string) string {
	name, number, _ := strings.Cut(version, " ")
	major, rest, _ := strings.Cut(number, ".")
	minor, _, _ := strings.Cut(rest, ".")
	x, _ := strconv.Atoi(major)
	y, _ := strconv.Atoi(minor)
	if name == "valkey" && x >= 8 || x*100+y >= 704 {
		return ""
	}
	return version + " cannot confirm what is on disk as quorum+disk needs it: run Redis 7.4 or Valkey 8.0, or newer ones, or use durability quorum"
}

// RuleOf reads the name of a client's connection. ok is false for one that carries nothing of a proxy's clients.
func RuleOf(name string) (proxy string, rule uint64, ok bool) {
	for _, prefix := range []string{ProxyClientName, PinnedClientName} {
		if rest, is := strings.CutPrefix(name, prefix); is {
			id, number, _ := strings.Cut(rest, ruleMark)
			rule, _ = strconv.ParseUint(number, 10, 64) // no number: before the first change
			return id, rule, true
		}
	}
	return "", 0, false
}
