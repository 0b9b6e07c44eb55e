// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
)

// RecordFormat is the version of Record. Every change of it, also an added field, takes a new number: a reader that
// ignored what it does not know would serve a client as somebody else.
const RecordFormat = 2

// octets is text of a client's own: any bytes. A JSON string would only carry what is UTF-8.
type octets string

// MarshalJSON implements json.Marshaler.
func (o octets) MarshalJSON() ([]byte, error) { return json.Marshal([]byte(o)) }

// UnmarshalJSON implements json.Unmarshaler.
func (o *octets) UnmarshalJSON(b []byte) error {
	var raw []byte
	err := json.Unmarshal(b, &raw)
	*o = octets(raw)
	return err
}

// ErrRecord: a record is of another format, or damaged.
var ErrRecord = errors.New("the record of a client cannot be used")

// Record is what one process tells another about a client that it hands over, together with its socket, at a moment when
// no command of the client is unanswered and no reply untaken.
type Record struct {
	Format   int    `json:"format"`
	ID       uint64 `json:"id"`
	Readonly bool   `json:"readonly,omitempty"`
	AgeMS    int64  `json:"age_ms"`
	IdleS    uint32 `json:"idle_s,omitempty"`
	DueS     uint32 `json:"due_s,omitempty"` // it must have introduced itself within that; 0: it has

	Proto  int    `json:"proto"`
	DB     int    `json:"db,omitempty"`
	Authed bool   `json:"authed,omitempty"`
	User   octets `json:"user,omitempty"`
	Pass   octets `json:"pass,omitempty"`
	Quiet  bool   `json:"quiet,omitempty"`
	Skip   bool   `json:"skip,omitempty"`
	Multi  bool   `json:"multi,omitempty"`
	Poison bool   `json:"poison,omitempty"`
	Lax    bool   `json:"lax,omitempty"`   // PROXY DURABILITY ASYNC
	Maint  bool   `json:"maint,omitempty"` // wants notifications
	Told   int64  `json:"told,omitempty"`  // the latest

	Name    string         `json:"name,omitempty"`
	Lib     string         `json:"lib,omitempty"`
	LibVer  string         `json:"lib_ver,omitempty"`
	Shown   octets         `json:"shown,omitempty"` // user, as CLIENT LIST shows it
	Last    string         `json:"last,omitempty"`  // command
	LastSub string         `json:"last_sub,omitempty"`
	NoEvict bool           `json:"no_evict,omitempty"`
	NoTouch bool           `json:"no_touch,omitempty"`
	Far     netip.AddrPort `json:"far"`
	Door    string         `json:"door,omitempty"`
	SaidFar netip.AddrPort `json:"said_far"` // by a PROXY header
	SaidOur netip.AddrPort `json:"said_our"`
	Preface HeaderPolicy   `json:"preface,omitempty"`
	Begun   bool           `json:"begun,omitempty"`

	Wrote   uint64 `json:"wrote,omitempty"`    // epoch of its latest write
	WroteAt int64  `json:"wrote_at,omitempty"` // on the machine's clock, which both processes read

	Input []byte `json:"input,omitempty"` // read from it, and not carried out
	Own   *Own   `json:"own,omitempty"`
}

// Own is what the server knows about a client on a connection of its own.
type Own struct {
	Subs     [kinds][]octets `json:"subs"`
	Watch    bool            `json:"watch,omitempty"`
	Lost     bool            `json:"lost,omitempty"`
	Monitor  bool            `json:"monitor,omitempty"`
	Tracking [][]byte        `json:"tracking,omitempty"`
	Caching  string          `json:"caching,omitempty"` // yes or no: what CLIENT CACHING said of the command that comes next
	DB       int             `json:"db"`
	Txn      *Txn            `json:"txn,omitempty"`
	Upstream *Upstream       `json:"upstream,omitempty"` // the connection itself comes along
}

// Txn is an open transaction.
type Txn struct {
	Log     [][]byte `json:"log"`
	Caching string   `json:"caching,omitempty"` // as Own.Caching, of its MULTI
	DB      int      `json:"db"`
	Broken  bool     `json:"broken,omitempty"`
}

// Upstream says where an upstream connection leads.
type Upstream struct {
	Epoch    uint64 `json:"epoch"`
	Node     string `json:"node"`
	Addr     string `json:"addr"`
	Process  string `json:"process"` // run id that was promoted
	History  string `json:"history"`
	RunID    string `json:"run_id"` // that answered
	ClientID string `json:"client_id"`
	Input    []byte `json:"input,omitempty"`
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
