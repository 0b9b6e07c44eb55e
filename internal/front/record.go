// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// RecordFormat is the version of Record. Every change of it, also an added field, takes a new number: a reader that ignored what it does not know would
// serve a client as somebody else.
const RecordFormat = 1

// ErrRecord: a record is of another format, or damaged.
var ErrRecord = errors.New("the record of a client cannot be used")

// Record is what one process tells another about a client that it hands over, together with its socket, at a moment when no command of the client is
// unanswered and no reply untaken. Shards are named: their numbers may be others there.
type Record struct {
	Format int    `json:"format"`
	ID     uint64 `json:"id"`
	AgeMS  int64  `json:"age_ms"`
	IdleS  uint32 `json:"idle_s,omitempty"`

	Proto    int             `json:"proto"`
	DB       int             `json:"db,omitempty"`
	Authed   bool            `json:"authed,omitempty"`
	User     []byte          `json:"user"`     // null: none was named
	Password []byte          `json:"password"` // null: none was given
	Quiet    bool            `json:"quiet,omitempty"`
	Skip     bool            `json:"skip,omitempty"`
	Caching  []byte          `json:"caching,omitempty"`
	Settings []RecordSetting `json:"settings,omitempty"`
	Tracking string          `json:"tracking,omitempty"`
	Subs     []RecordSub     `json:"subs,omitempty"`
	Watch    *RecordWatch    `json:"watch,omitempty"`
	Txn      *RecordTxn      `json:"txn,omitempty"`

	Name    string `json:"name,omitempty"`
	Lib     string `json:"lib,omitempty"`
	LibVer  string `json:"lib_ver,omitempty"`
	Last    string `json:"last,omitempty"` // command
	LastSub string `json:"last_sub,omitempty"`

	Input  []byte        `json:"input,omitempty"` // read from it, and not carried out
	Shards []RecordShard `json:"shards,omitempty"`
}

// RecordSetting is a command that each connection to a shard has to be told.
type RecordSetting struct {
	Key string `json:"key"`
	Raw []byte `json:"raw"`
}

// RecordSub is a subscription.
type RecordSub struct {
	Kind  int    `json:"kind"`
	Name  []byte `json:"name"`
	Shard string `json:"shard,omitempty"` // empty: all
}

// RecordGroup is what the keys of one command have to share: a slot, or, where there are none, a shard.
type RecordGroup struct {
	Slot  int    `json:"slot,omitempty"`
	Shard string `json:"shard,omitempty"`
}

// RecordWatch says where the client watches keys.
type RecordWatch struct {
	Shard string      `json:"shard"`
	Gen   uint64      `json:"gen,omitempty"` // of the ring
	Group RecordGroup `json:"group"`
}

// RecordTxn is an open transaction.
type RecordTxn struct {
	Shard string         `json:"shard,omitempty"` // empty: not known yet
	Group RecordGroup    `json:"group"`
	Keyed bool           `json:"keyed,omitempty"`
	Held  [][]byte       `json:"held,omitempty"`
	Bad   bool           `json:"bad,omitempty"`
	N     int            `json:"n,omitempty"`
	Gen   uint64         `json:"gen,omitempty"`
	Keys  [][]byte       `json:"keys,omitempty"`
	Moved bool           `json:"moved,omitempty"`
	Sent  [][]byte       `json:"sent,omitempty"`
	Bytes [2]int         `json:"bytes,omitempty"` // of Held, of Sent and Keys
	DBs   []RecordSelect `json:"dbs,omitempty"`
}

// RecordSelect is a SELECT in a transaction.
type RecordSelect struct {
	At int    `json:"at"`
	DB string `json:"db"`
}

// RecordShard is a connection to a shard that comes along.
type RecordShard struct {
	Shard  string          `json:"shard"`
	Record json.RawMessage `json:"record"`
	File   bool            `json:"file,omitempty"` // with a descriptor
	Keeps  bool            `json:"keeps,omitempty"`
	Wrote  bool            `json:"wrote,omitempty"`
	Subs   int             `json:"subs,omitempty"`
	ID     string          `json:"id,omitempty"`
}

// Encode returns the record's bytes.
func (r *Record) Encode() ([]byte, error) {
	r.Format = RecordFormat
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode the record of client %d: %w", r.ID, err)
	}
	return b, nil
}

// DecodeRecord reads a record of exactly this format.
func DecodeRecord(b []byte) (*Record, error) {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if head.Format != RecordFormat {
		return nil, fmt.Errorf("%w: it has format %d, this version knows %d", ErrRecord, head.Format, RecordFormat)
	}
	r := &Record{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if r.ID == 0 || r.Proto != 2 && r.Proto != 3 || r.DB < 0 {
		return nil, fmt.Errorf("%w: client %d, protocol %d, database %d", ErrRecord, r.ID, r.Proto, r.DB)
	}
	return r, nil
}
