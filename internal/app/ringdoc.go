// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"

	"redoubt/internal/front"
	"redoubt/internal/ring"
	"redoubt/internal/topo"
)

// Which shards have a part in a ring is agreed, once that was changed: until then it is as the members' files say. The document says, too, what is being
// changed, and who may give commands to shards meanwhile (ADR 46).

const ringFormat = 1

// ringDoc is the document.
type ringDoc struct {
	Format int         `json:"format"`
	Gen    uint64      `json:"gen"`   // grows with each change of Shards
	Stamp  uint64      `json:"stamp"` // grows whenever it changes who may give commands to shards, and by which ring
	Shards []ringShard `json:"shards"`
	Change *ringChange `json:"change,omitempty"` // under way
	Last   *ringChange `json:"last,omitempty"`   // that is over
}

// ringShard is a shard's part.
type ringShard struct {
	Name   string `json:"name"`
	Label  string `json:"label"` // what its place follows from
	Weight uint32 `json:"weight"`
}

// The stages of a change of a ring.
const (
	ringCopying  = "copying"  // keys are copied, and what is written is copied again
	ringClosing  = "closing"  // only the members of the crew give commands to shards, until the ring has changed, or not
	ringSettling = "settling" // the ring has changed; the former shards lose what is not theirs any more
	ringUndoing  = "undoing"  // it was cancelled; the copies are removed
	ringDone     = "done"
	ringUndone   = "cancelled"
)

// ringChange is a change of the ring.
type ringChange struct {
	N         int           `json:"n"`
	By        string        `json:"by,omitempty"`
	What      string        `json:"what"` // in words
	Stage     string        `json:"stage"`
	Cancel    bool          `json:"cancel,omitempty"` // is wanted
	Other     []ringShard   `json:"other,omitempty"`  // the next ring; from settling on, the former one
	Leaves    string        `json:"leaves,omitempty"` // the shard that is removed
	Driver    string        `json:"driver,omitempty"` // who carries it out, in this attempt
	Secret    string        `json:"secret,omitempty"` // of redis.MoverUser, while it is under way
	Crew      []string      `json:"crew,omitempty"`   // closing: processes, see ringBook.me
	Keys      int64         `json:"keys"`             // copied, each time counted
	Bytes     int64         `json:"bytes"`
	Of        int64         `json:"of"` // keys of the shards that give some away
	Removed   int64         `json:"removed"`
	Tries     int           `json:"tries"`             // of the hand-over
	Waited    topo.Duration `json:"waited,omitempty"`  // by clients, in the hand-over
	Without   []string      `json:"without,omitempty"` // members that did not answer in it
	StartedMS int64         `json:"started_ms"`
	EndedMS   int64         `json:"ended_ms,omitempty"`
}

// shuts reports whether a process may give no commands to shards.
func (d *ringDoc) shuts(me string) bool {
	return d.Change != nil && d.Change.Stage == ringClosing && !slices.Contains(d.Change.Crew, me)
}

// clone is a copy that can be changed.
func (d ringDoc) clone() ringDoc {
	d.Shards = slices.Clone(d.Shards)
	if d.Change != nil {
		c := *d.Change
		d.Change = &c
	}
	return d
}

func decodeRing(value []byte) (ringDoc, error) {
	var d ringDoc
	if err := json.Unmarshal(value, &d); err != nil || d.Format != ringFormat || len(d.Shards) == 0 {
		return d, fmt.Errorf("the agreed ring cannot be used (format %d): all members need the same version: %w", d.Format, err)
	}
	return d, nil
}

// ringOfFile is the ring of the member's file.
func (m *member) ringOfFile() (out []ringShard) {
	for _, s := range m.deploy.Shards {
		out = append(out, ringShard{s.Name, s.RingName, uint32(max(s.Weight, 0))})
	}
	return out
}

// ringSpec is the placement that these shards make.
func (m *member) ringSpec(shards []ringShard) (*ring.Ring, error) {
	spec := m.deploy.RingSpec()
	spec.Nodes = nil
	for _, s := range shards {
		spec.Nodes = append(spec.Nodes, ring.Node{Name: s.Label, Weight: s.Weight})
	}
	r, err := ring.New(spec)
	if err != nil {
		return nil, fmt.Errorf("place keys on the ring: %w", err)
	}
	return r, nil
}

// frontRing is the ring with the front's numbers of its shards; false: not all of them are open here.
func (m *member) frontRing(gen uint64, shards []ringShard) (*front.Ring, bool, error) {
	r, err := m.ringSpec(shards)
	if err != nil {
		return nil, false, err
	}
	all := m.all()
	live := make([]int, len(shards))
	for i, s := range shards {
		if live[i] = slices.IndexFunc(all, func(u *unit) bool { return u.deploy.Shard == s.Name }); live[i] < 0 {
			return nil, false, nil
		}
	}
	place := func(key []byte) int {
		if i := r.Shard(key, rand.Uint32()); i >= 0 {
			return live[i]
		}
		return ring.None
	}
	return &front.Ring{Gen: gen, Place: place, Live: live}, true, nil
}
