// SPDX-License-Identifier: Apache-2.0

// Package converge is the agent's half: from the agreed document and one look at its own server, the single next thing
// to do there, self-fencing included.
//
// It is not a loop and touches nothing; the agent package performs the order and looks again. Its invariant: a server is
// writable only while the agreed document names exactly its process and its lease is good, which counts from a linearizable
// read or from pledges of all other nodes; and nothing is obeyed that is older than what this node has promised. No goroutines.
package converge

import (
	"fmt"
	"time"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// Kind is what to do.
type Kind string

// The things that an agent can do to its server.
const (
	Nothing   Kind = ""
	Promise   Kind = "promise"    // write Epoch to disk: never follow or promote for a lower one
	Fence     Kind = "fence"      // nobody writes here now
	Freeze    Kind = "freeze"     // stop following, stay read-only
	Salvage   Kind = "salvage"    // keep the writes behind offset From, which following would discard
	Follow    Kind = "follow"     // replicate from Addr
	Promote   Kind = "promote"    // become the primary, if the server is exactly Expect
	CheckSync Kind = "check-sync" // read the position of the primary at Addr
	Drain     Kind = "drain"      // wait for the proxies to be done, then fence
	Restart   Kind = "restart"    // start the exited server, frozen
	Enforce   Kind = "enforce"    // see that nothing is under way under an older rule than Law, then write a barrier that Acks replicas hold
)

// Order is the one next thing to do, and why.
type Order struct {
	Rule   string
	Why    string
	Do     Kind
	Epoch  topo.Epoch
	Addr   string
	From   int64 // Salvage; FromJournal: there is no position to begin at
	Expect topo.Elected
	Unread bool // nothing can be done before a read confirms the document

	// Enforce: of change Change
	Change uint64
	Law    uint64 // the number that proxies' connections must carry; 0: the rule does not change
	Acks   int
	Disk   bool // … on their disks, and on this one
	Cut    bool // whoever has not taken the rule by now has a table that has expired: cut what is left of it
}

// FromJournal stands for the offset where the process that had the writes is gone: what its append-only file has is kept.
const FromJournal = -1

// Memory is what an agent remembers between two looks. The zero value is an agent that has just started.
type Memory struct {
	RunID      string        // process that the rest is about
	Heard      bool          // it has said what it is
	WasPrimary bool          // it was seen as a primary
	Widowed    bool          // the process before this one was a primary when it ended
	SyncEpoch  topo.Epoch    // epoch whose primary's position was read
	SyncOffset int64         // that position
	InSync     topo.Epoch    // own offset has reached it
	FollowedAt time.Duration // uptime of the latest Follow
	Salvaged   Tail          // what lies behind the branch there was kept, or cannot be
	LostAt     time.Duration // uptime since when a replica's link to the primary has been down; 0: it is up
	Growth     Growth
}

// Tail names the position of a server that has writes which the history that goes on does not have.
type Tail struct {
	ReplID string
	Offset int64
}

// Salvaged notes that the tail of a server that stood at pos needs no more care.
func Salvaged(m Memory, pos topo.Position) Memory {
	m.Salvaged = Tail{pos.ReplID, pos.Offset}
	return m
}

// Input is everything that the order may depend on.
type Input struct {
	Self     topo.NodeID
	Shard    *topo.Shard // nil: no document is known
	Read     bool        // this very revision was returned by a linearizable read, not only pushed
	Aware    bool        // a read of this process returned this revision or an earlier one: what is pushed is not from before it began
	LeaseEnd time.Duration
	Now      time.Duration // uptime, counting suspend
	Promised topo.Epoch    // on disk
	Pledged  Pledge        // given to a primary while the store was away
	Seen     topo.Sighting // the server's part: health, role, position, …
	Memory   Memory
	Hasty    bool // Seen is a moment old: where the server stands now is for the verb to find out

	quiet bool // no sentence is wanted yet
}

func (in *Input) say(format string, args ...any) string {
	if in.quiet {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

// Remember folds one look into the memory.
func Remember(m Memory, in Input) Memory {
	s := in.Seen
	if s.RunID != "" && s.RunID != m.RunID {
		m = Memory{RunID: s.RunID, Widowed: m.Widowed || m.WasPrimary, LostAt: m.LostAt}
	}
	m = noteChange(m, in)
	switch {
	case s.LinkUp && s.Whole || s.Role == topo.RolePrimary:
		m.LostAt = 0
	case m.LostAt == 0:
		m.LostAt = in.Now
	}
	switch s.Role {
	case topo.RolePrimary:
		m.Heard, m.WasPrimary = true, true
	case topo.RoleReplica:
		m.Heard, m.WasPrimary = true, false
	}
	if s.Health == topo.HealthExited {
		return Memory{Widowed: m.Widowed || m.WasPrimary, LostAt: m.LostAt}
	}
	if s.Role == topo.RoleReplica && s.LinkUp && s.Whole {
		m.Widowed = false // its data are another server's
	}
	if in.Shard == nil {
		return m
	}
	if !s.LinkUp || !s.Whole {
		m.SyncEpoch = 0 // the next link may begin with a full sync, which gets past that position without its stream
	}
	last, ok := in.Shard.Assigned.Latest()
	reached := ok && m.SyncEpoch == in.Shard.Assigned.Epoch && s.LinkUp && s.Whole && s.Pos.ReplID == last.ReplID && s.Pos.Offset >= m.SyncOffset
	if reached && in.Shard.Assigned.Phase == topo.PhaseServing {
		m.InSync = in.Shard.Assigned.Epoch
	}
	return m
}

// Synced folds the answer to CheckSync into the memory: the primary of epoch was at pos, read after the link came up.
func Synced(m Memory, epoch topo.Epoch, role topo.Role, pos topo.Position, last topo.HistoryEntry) Memory {
	if role == topo.RolePrimary && pos.ReplID == last.ReplID {
		m.SyncEpoch, m.SyncOffset = epoch, pos.Offset
	}
	return m
}

type rule struct {
	name string
	when func(*Input) (bool, string)
	do   func(*Input) Order
}

// rules is the agent's whole judgement, in order. It never changes.
var rules = [...]rule{
	{"boot-frozen", exited, just(Restart)},
	{"no-order", writableWithoutOrder, just(Fence)},
	{"old-order", olderThanPromise, nil},
	// A fence waits for nothing, not even for the disk that keeps the promise; its position counts only after that.
	{"fence-order", fenceOrdered, just(Fence)},
	{"deposed", writableButNotNamed, just(Fence)},
	{"lease-over", leaseOver, just(Fence)},
	{"pledged", pledged, nil},
	{"promise", unpromisedFencing, promise},
	{"promise-ahead", electedNext, promiseAhead},
	{"unanswered", notAnswering, nil},
	{"freeze", mustFreeze, just(Freeze)},
	{"elected-unread", electedButUnread, awaitRead},
	{"elected-behind", electedButBehind, nil},
	{"promote", electedHere, promote},
	{"drain", drainHere, just(Drain)},
	{"enforce", mustEnforce, enforce},
	{"serve", servesHere, nil},
	{"wait-for-election", namedButNotWritable, nil},
	{"unread", followUnread, awaitRead},
	{"salvage-freeze", tailMoves, just(Freeze)},
	{"salvage", tailStands, salvage},
	{"salvage-journal", journalLeft, func(in *Input) Order { return Order{Do: Salvage, Epoch: in.a().Epoch, From: FromJournal} }},
	{"follow", mustFollow, follow},
	{"check-sync", syncUnknown, checkSync},
	{"in-order", func(*Input) (bool, string) { return true, "as ordered" }, nil},
}

// Next returns the one next thing to do; Nothing when the node is as ordered or must wait.
func Next(in Input) Order {
	in.quiet = true
	for _, r := range rules {
		if matched, _ := r.when(&in); !matched {
			continue
		}
		in.quiet = false
		_, why := r.when(&in)
		var o Order
		if r.do != nil {
			o = r.do(&in)
		}
		o.Rule, o.Why = r.name, why
		return o
	}
	panic("unreachable: the last rule always matches")
}

func just(k Kind) func(*Input) Order { return func(*Input) Order { return Order{Do: k} } }

func awaitRead(*Input) Order { return Order{Unread: true} }

func (in *Input) a() *topo.Assigned { return &in.Shard.Assigned }

func (in *Input) leaseGood() bool {
	return in.Now < in.LeaseEnd
}

// named: the document lets exactly this process be a primary (if the lease is good).
func (in *Input) named() bool {
	a := in.a()
	return a.Primary == in.Self && a.RunID == in.Seen.RunID &&
		(a.Phase == topo.PhaseServing || a.Phase == topo.PhaseDraining || a.Phase == topo.PhasePromoting)
}

// mayBeWritable: the server says that it is a primary, or was one when it last answered. To an agent that took over one which
// has not answered since, the document tells who may still be writing: a stopped server would, once it goes on (SAFETY B1).
func (in *Input) mayBeWritable() bool {
	switch {
	case in.Seen.Health == topo.HealthExited:
		return false
	case in.Seen.Role != topo.RoleUnknown || in.Memory.WasPrimary:
		return in.Seen.Role != topo.RoleReplica
	case in.Memory.Heard || in.Shard == nil || in.a().Primary != in.Self:
		return false
	}
	h := in.Seen.Health // the process is in sight, and is not about to begin
	return h == topo.HealthStopped || h == topo.HealthHung || h == topo.HealthBusy
}

func exited(in *Input) (bool, string) {
	return in.Seen.Health == topo.HealthExited && (in.Shard == nil || in.Promised >= in.a().Epoch || in.a().Phase != topo.PhaseFencing),
		"the server is " + string(in.Seen.Health)
}

func writableWithoutOrder(in *Input) (bool, string) {
	return in.Shard == nil && in.mayBeWritable(), "a server may not be writable before the agreed order is known"
}

// olderThanPromise: the view is stale, or the store was rolled back. Nothing of it is obeyed; a writable server is fenced.
func olderThanPromise(in *Input) (bool, string) {
	if in.Shard == nil {
		return true, "no order is known"
	}
	if in.a().Epoch >= in.Promised || invariant.Planted("order-delayed-past-epoch") {
		return false, in.say("epoch %d, promised %d", in.a().Epoch, in.Promised)
	}
	return !in.mayBeWritable(), in.say("the order is of epoch %d, but this node has promised epoch %d", in.a().Epoch, in.Promised)
}

// unpromisedFencing: a position counts in an election only if this node can never again follow an older primary
// (SAFETY A6). The promise comes first, on disk.
func unpromisedFencing(in *Input) (bool, string) {
	p := in.a().Phase
	due := p == topo.PhaseFencing || p == topo.PhasePromoting
	return due && in.Promised < in.a().Epoch, in.say("phase %s of epoch %d is not promised yet", p, in.a().Epoch)
}

func promise(in *Input) Order { return Order{Do: Promise, Epoch: in.a().Epoch} }

// electedNext: a switchover to this node is under way, and the primary still drains. Whatever comes of it has a higher epoch, so
// that epoch is promised already: the disk is not waited for once nobody can write. It makes no witness of this node, which
// has not frozen; but it ends a pledge, so one that was given is kept first.
func electedNext(in *Input) (bool, string) {
	a := in.a()
	due := a.Phase == topo.PhaseDraining && a.Primary != in.Self && a.Elected != nil && a.Elected.Node == in.Self && in.Promised <= a.Epoch
	return due && !in.Pledged.Binds(a.Phase, a.Epoch+1, in.Promised, in.Now), in.say("a switchover to this node is under way: epoch %d is next", a.Epoch+1)
}

func promiseAhead(in *Input) Order { return Order{Do: Promise, Epoch: in.a().Epoch + 1} }

func fenceOrdered(in *Input) (bool, string) {
	return in.a().Phase == topo.PhaseFencing && in.mayBeWritable(), in.say("epoch %d: nobody may write", in.a().Epoch)
}

func writableButNotNamed(in *Input) (bool, string) {
	if !in.mayBeWritable() || in.Seen.RunID == "" && in.a().Primary == in.Self {
		return false, "not writable, or not answering"
	}
	if in.Promised > in.a().Epoch && !invariant.Planted("order-delayed-past-epoch") {
		return true, "writable under an order older than this node's promise"
	}
	return !in.named(), in.say("%s (process %.8s) is the one that may write", in.a().Primary, in.a().RunID)
}

// leaseOver is the self-fence: whether or not anybody can be reached, and also for a server that does not answer.
func leaseOver(in *Input) (bool, string) {
	if invariant.Planted("no-self-fence") {
		return false, "planted"
	}
	return in.mayBeWritable() && !in.leaseGood(), in.say("the lease ended %s ago", (in.Now - in.LeaseEnd).Round(time.Millisecond))
}

func notAnswering(in *Input) (bool, string) {
	return in.Seen.Health != topo.HealthUp, "the server is " + string(in.Seen.Health)
}

func mustFreeze(in *Input) (bool, string) {
	a := in.a()
	if in.Seen.Role != topo.RoleReplica || in.Seen.Frozen {
		return false, "frozen already, or a primary"
	}
	switch a.Phase {
	case topo.PhaseNew, topo.PhaseFencing:
		return true, in.say("phase %s of epoch %d", a.Phase, a.Epoch)
	case topo.PhasePromoting:
		return a.Primary != in.Self, in.say("%s is being promoted at epoch %d", a.Primary, a.Epoch)
	case topo.PhaseServing:
		if in.outside() {
			return true, "this node is not in the roster, or is leaving it: it may not follow anybody"
		}
		return a.Primary == in.Self, "the document names this node, which may not follow anybody"
	}
	return false, "phase " + string(a.Phase)
}

func (in *Input) electedHere() bool {
	a := in.a()
	return a.Phase == topo.PhasePromoting && a.Primary == in.Self && in.Seen.Role == topo.RoleReplica
}

// electedButUnread: promotion needs the lease, and a lease counts from a read.
func electedButUnread(in *Input) (bool, string) {
	return in.electedHere() && !in.leaseGood(), "elected, but the order is not confirmed by a read yet"
}

// electedButBehind: in a switchover the rest of the stream may still be on its way from the demoted primary.
func electedButBehind(in *Input) (bool, string) {
	if !in.electedHere() || in.Hasty || in.Seen.Frozen || in.Seen.RunID != in.a().RunID {
		return false, "not elected, or nothing more can arrive"
	}
	e := in.a().Elected
	return in.Seen.Pos.ReplID == e.ReplID && in.Seen.Pos.Offset < e.Offset && in.Seen.Following != "", in.say("elected at offset %d, now at %d", e.Offset, in.Seen.Pos.Offset)
}

func electedHere(in *Input) (bool, string) {
	return in.electedHere(), in.say("elected at epoch %d", in.a().Epoch)
}

func promote(in *Input) Order {
	return Order{Do: Promote, Epoch: in.a().Epoch, Expect: *in.a().Elected}
}

func drainHere(in *Input) (bool, string) {
	return in.a().Phase == topo.PhaseDraining && in.a().Primary == in.Self && in.Seen.Role == topo.RolePrimary, "a switchover is under way"
}

func servesHere(in *Input) (bool, string) {
	return in.Seen.Role == topo.RolePrimary, "named, with a good lease"
}

// namedButNotWritable: a node that lost its role never takes it back by itself; only a new epoch gives it.
func namedButNotWritable(in *Input) (bool, string) {
	return in.a().Primary == in.Self || in.a().Primary == "", "only an election makes a primary"
}

func (in *Input) primaryAddr() string {
	n, _ := in.Shard.Spec.Node(in.a().Primary)
	return n.Addr
}

func (in *Input) followsWhom() bool {
	return in.a().Phase == topo.PhaseServing && !in.outside()
}

// followUnread: a pushed document may be old news for an agent that has just started; following needs a read. An order of
// the very epoch that this node has promised is not old news, except to a process that has read nothing yet: the node may have
// been taken out of the roster since.
func followUnread(in *Input) (bool, string) {
	unread := !in.Read && (in.Promised != in.a().Epoch || !in.Aware) && !invariant.Planted("order-delayed-past-epoch")
	return in.followsWhom() && unread && in.Seen.Following != in.sourceAddr(), "the order is not confirmed by a read yet"
}

// tail tells from where on this server's data would be discarded by following, if that was not seen to yet. One that follows
// the primary already is in that primary's hands.
func (in *Input) tail() (from int64, ok bool) {
	if !in.followsWhom() || in.Seen.Role != topo.RoleReplica || !in.Seen.Whole || in.Seen.Following == in.sourceAddr() ||
		in.Memory.Salvaged == (Tail{in.Seen.Pos.ReplID, in.Seen.Pos.Offset}) {
		return 0, false
	}
	return topo.Branch(in.a().History, in.Seen.Pos)
}

// tailMoves: what is to be kept must stand still.
func tailMoves(in *Input) (bool, string) {
	from, ok := in.tail()
	return ok && !in.Seen.Frozen, in.say("at offset %d it has writes behind %d that epoch %d does not have", in.Seen.Pos.Offset, from, in.a().Epoch)
}

// tailStands: evidence before discarding. What follows from here on is lost at this node.
func tailStands(in *Input) (bool, string) {
	from, ok := in.tail()
	return ok, in.say("at offset %d it has writes behind %d that epoch %d does not have", in.Seen.Pos.Offset, from, in.a().Epoch)
}

// journalLeft: a primary ended, and another node serves. With async it may have acknowledged what nobody else has; its
// memory is gone, but the new process has loaded its append-only file, and still has it until it follows.
func journalLeft(in *Input) (bool, string) {
	if !in.Memory.Widowed || in.Shard.Spec.Durability != topo.Async || !in.followsWhom() || in.Seen.Following == in.sourceAddr() {
		return false, "its process did not end as a primary"
	}
	left := in.Seen.Frozen && in.Memory.Salvaged != (Tail{in.Seen.Pos.ReplID, in.Seen.Pos.Offset})
	return left, in.say("its process ended as a primary: its append-only file may have writes that epoch %d does not have", in.a().Epoch)
}

func salvage(in *Input) Order {
	from, _ := in.tail()
	return Order{Do: Salvage, Epoch: in.a().Epoch, From: from}
}

// refollowAfter paces repeated orders to follow: the server itself reconnects only once a second (SAFETY C2).
const refollowAfter = 200 * time.Millisecond

// unwholeAfter is the same for a node in the middle of a sync, or with what an aborted one has left: it may go on with the
// login of an earlier tenure for ever. The verb does not disturb a sync that is under way.
const unwholeAfter = time.Second

func mustFollow(in *Input) (bool, string) {
	if !in.followsWhom() {
		return false, "phase " + string(in.a().Phase)
	}
	if addr := in.sourceAddr(); in.Seen.Following != addr {
		return true, in.say("%s serves epoch %d at %s", in.a().Primary, in.a().Epoch, addr)
	}
	pause := refollowAfter
	if !in.Seen.Whole {
		pause = unwholeAfter
	}
	if !in.Seen.LinkUp && in.Now-in.Memory.FollowedAt > pause {
		return true, "the link to the primary is down"
	}
	return false, "follows the primary"
}

func follow(in *Input) Order { return Order{Do: Follow, Epoch: in.a().Epoch, Addr: in.sourceAddr()} }

func syncUnknown(in *Input) (bool, string) {
	m := in.Memory
	return in.followsWhom() && in.Seen.LinkUp && in.Seen.Whole && !hasProblem(in.Seen, "aof-rewrite") &&
		m.InSync != in.a().Epoch && m.SyncEpoch != in.a().Epoch, "the link is up; it is not known yet whether this node has caught up"
}

func checkSync(in *Input) Order {
	return Order{Do: CheckSync, Epoch: in.a().Epoch, Addr: in.primaryAddr()}
}

func hasProblem(s topo.Sighting, name string) bool {
	for _, p := range s.Problems {
		if p == name {
			return true
		}
	}
	return false
}
