// SPDX-License-Identifier: Apache-2.0

// Package reshard decides how slots move between the shards of a cluster: which ones (Balance makes a plan that a person can
// read before it is carried out), and what is to be done next about a batch of slots that is on its way (Next).
//
// It is not for carrying anything out (mover does), nor for storing. Its invariants: every slot of a plan moves once, and no
// plan moves more than it must; the same Move and Facts give the same Step, so that whoever finds a stored Move goes on
// with it. No goroutines, no clock.
package reshard

import "time"

// Stage is how far a batch of slots has come. It is stored before the first act of the stage, so that a stage tells what may have
// been done, and the servers tell what was.
type Stage string

// The stages. Until the target takes the slots, which it may do in letting-go alone, a move can be taken back; from there on it only
// goes forward.
const (
	Planned   Stage = ""           // no server was touched
	Copying   Stage = "copying"    // the target has, or may have, copies; the source has everything
	LettingGo Stage = "letting-go" // the target may take the slots at any moment: nobody else is promoted with them
	Settling  Stage = "settling"   // the target owns the slots; others are told, the source deletes its copies
	Undoing   Stage = "undoing"    // the copies are deleted
	Done      Stage = "done"
	Cancelled Stage = "cancelled"
)

// Wish is what an operator wants of a move that is under way.
type Wish string

// The wishes.
const (
	GoOn   Wish = ""
	Pause  Wish = "pause"  // stop where it is, clients being served by the source
	Cancel Wish = "cancel" // take it back, if it has not let go
)

// Move is a batch of slots that moves together: what is stored about it.
type Move struct {
	Slots []int  `json:"slots"` // ascending
	From  string `json:"from"`  // shards
	To    string `json:"to"`
	Stage Stage  `json:"stage,omitempty"`
	Wish  Wish   `json:"wish,omitempty"`
	// Tenure is that of both primaries when letting-go was stored. With any other, what the target has is not known to be all.
	Tenure string `json:"tenure,omitempty"`
	Force  bool   `json:"force,omitempty"` // also what is written all the time moves, at the price of a longer stop for its clients
}

// Over reports that there is nothing left to do.
func (m Move) Over() bool { return m.Stage == Done || m.Stage == Cancelled }

// Owner says who has the slots of a batch by the word of one primary.
type Owner string

// The owners. Mixed is a batch of which a part has been handed over.
const (
	Nobody   Owner = "nobody"
	BySource Owner = "source"
	ByTarget Owner = "target"
	Mixed    Owner = "mixed"
	BySome   Owner = "somebody else"
)

// Side is what was last seen of one shard, as far as it concerns the batch.
type Side struct {
	Owner   Owner // by its primary's own word
	Marked  bool  // the primary has the mark of the move (IMPORTING, MIGRATING) on every slot that it does not hand or has not taken over
	AnyMark bool  // it has it on some slot
	Keys    int64 // of the slots, at the primary
	Left    int64 // at those of its replicas that answered: the largest number
}

// Copy is how far copying has come in this process. Nothing of it survives a crash: then everything is copied again.
type Copy struct {
	Tracked bool  // the source's stream is followed, so that no write is missed
	Listed  bool  // everything that was there has been copied once
	Dirty   int64 // keys written since their last copy
	Bytes   int64 // what these are estimated to be
	Rounds  int   // of copying what was dirty
}

// Facts is everything that a step may depend on.
type Facts struct {
	Tenure    string // of both primaries, as Move.Tenure
	Busy      string // why the shards must be left alone now (a failover under way); empty: nothing
	Seen      bool   // both primaries were looked at since anything unexpected happened
	Source    Side
	Target    Side
	Settled   bool // the target knows the source's latest epoch, and has another one: what it takes cannot be taken back
	Copy      Copy
	Parked    bool // clients that come by us do not write these slots
	Drained   bool // since the park: the source gave up the slots, the stream was read to its end, enough replicas of the target have all
	Late      bool // the last park ended without a hand-over
	Tried     int  // parks that ended without a hand-over since the last stage
	Confirmed bool // behind letting-go, the tenures were seen to be those of the move
	Told      bool // the source and all other primaries were told of the new owner
	Counted   bool // the target's replicas were seen to have what their primary has
	Limits    Limits
}

// Limits are the numbers of a move.
type Limits struct {
	ParkKeys  int64 // this many dirty keys are copied while clients wait
	ParkBytes int64 // of this size
	Rounds    int   // after so many rounds it is tried with more
	HardKeys  int64 // but never with more than this, unless forced
	HardBytes int64
}

// DefaultLimits keep a stop of clients within a few milliseconds.
func DefaultLimits() Limits {
	return Limits{ParkKeys: 100, ParkBytes: 256 << 10, Rounds: 8, HardKeys: 2000, HardBytes: 4 << 20}
}

// Verb is one thing to do. Each can be repeated.
type Verb string

// The verbs.
const (
	Nothing   Verb = "nothing"   // it is over
	Wait      Verb = "wait"      // look again after Step.Recheck
	Halt      Verb = "halt"      // a person is needed
	Look      Verb = "look"      // gather the facts of both sides
	Store     Verb = "store"     // Step.Stage
	Import    Verb = "import"    // SETSLOT IMPORTING on the target
	Purge     Verb = "purge"     // delete what the target and its replicas have in these slots
	Track     Verb = "track"     // follow the source's stream from here on
	CopyAll   Verb = "copy"      // every key of the slots
	CopyDirty Verb = "copy-more" // what was written meanwhile
	Park      Verb = "park"      // clients of these slots wait
	Drain     Verb = "drain"     // the stream to its end, the last keys, WAIT; DELSLOTS on the source
	Readmit   Verb = "readmit"   // the source has the slots again
	Confirm   Verb = "confirm"   // read the tenures anew
	Recall    Verb = "recall"    // back to copying, or on to settling if the target owns the slots
	Flip      Verb = "flip"      // SETSLOT NODE on the target
	Flow      Verb = "flow"      // clients of these slots go to the shard Step.Owner
	Tell      Verb = "tell"      // SETSLOT NODE everywhere
	Clean     Verb = "clean"     // delete what the source or its replicas still have
	Count     Verb = "count"     // compare the target's replicas with their primary
	Stable    Verb = "stable"    // SETSLOT STABLE on the target
)

// Step is what to do now.
type Step struct {
	Rule    string // name of the row that matched
	Why     string
	Do      Verb
	Stage   Stage         // of Store
	Owner   string        // of Flow
	Recheck time.Duration // wait for so long before it
}
