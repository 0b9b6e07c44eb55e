// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The kinds of connections on a member's port; the first byte tells. A store may have further ones.
const (
	DialMember = 'M' // a stream to the controller
	DialPeer   = 'P' // questions between members (coord.Peers)
)

// Kind is the meaning of a frame.
type Kind byte

// What a frame may be. The comments name the fields that it uses.
const (
	KindHello   Kind = iota + 1 // first frame of a connection: Key member, Text address, Value greeting
	KindWelcome                 // answer: Code, Text leader's address or reason, Key leader's id, Value store id
	KindReply                   // answer to a request of the same ID: Code, Text, Rev, Value
	KindGet                     // Key
	KindSwap                    // Key, Value, Rev
	KindBeat                    // Key from, Value body, Rev ttl in nanoseconds; no reply
	KindAll                     // reply: Value is a list of beats
	KindMembers                 // reply: Value is a list of members
	KindAdd                     // Key id, Text address, Value name of the directory if a process asks for itself, Rev 1 if it has what the others have; reply: Rev, where the log has it
	KindRemove                  // Key id
	KindDoc                     // push from the leader: Key, Value, Rev
	KindConfirm                 // from the leader: ID round, Rev Raft term; the answer repeats both, with the age of the last oath to an earlier term
	KindJoin                    // like Hello, from a process that asks to be added, Rev as of Add; answered with Reply
	KindAsk                     // a member's question to another one: Value; answered with Reply
	KindPulse                   // from the controller: it lives
)

// Code is an outcome on the wire.
type Code byte

// The outcomes.
const (
	CodeOK Code = iota
	CodeNotFound
	CodeConflict
	CodeUnsure
	CodeUnavailable
	CodeRefused   // will not change by itself; Text says why
	CodeNotMember // this store does not know you (any more)
	CodeNotLeader // Text and Key name the leader, if known
	CodeForgot    // this member's data belong to another directory than the caller's
)

// Frame is one message. One shape for all keeps the protocol small; unused fields cost a byte each.
type Frame struct {
	Kind  Kind
	Code  Code
	ID    uint64
	Rev   uint64
	Key   string
	Text  string
	Value []byte
}

// The limits of streams.
const (
	FrameMax  = 32 << 20 // bytes; the largest is a list of reports
	HelloMax  = 4 << 10  // bytes, before a stranger has been let in
	StreamBuf = 32 << 10
)

// ErrFrame: the other side speaks something else.
var ErrFrame = errors.New("malformed frame")

// Append writes a value with its length in front.
func Append[T ~string | ~[]byte](b []byte, v T) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

// Encode returns the frame with its length in front.
func (f Frame) Encode() []byte {
	b := make([]byte, 4, 4+2+20+len(f.Key)+len(f.Text)+len(f.Value)+15)
	b = append(b, byte(f.Kind), byte(f.Code))
	b = binary.AppendUvarint(b, f.ID)
	b = binary.AppendUvarint(b, f.Rev)
	b = Append(b, f.Key)
	b = Append(b, f.Text)
	b = Append(b, f.Value)
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// ReadFrame reads one frame of at most limit bytes.
func ReadFrame(r *bufio.Reader, limit int) (Frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Frame{}, err
	}
	size := int(binary.LittleEndian.Uint32(head[:]))
	if size > limit {
		return Frame{}, fmt.Errorf("frame of %d bytes, the limit is %d: %w", size, limit, ErrFrame)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return Frame{}, err
	}
	return decodeFrame(data)
}

func decodeFrame(data []byte) (Frame, error) {
	d := NewDecoder(data)
	f := Frame{Kind: Kind(d.Byte()), Code: Code(d.Byte()), ID: d.Uint(), Rev: d.Uint()}
	f.Key, f.Text, f.Value = string(d.Bytes()), string(d.Bytes()), d.Bytes()
	return f, d.Finish("frame")
}

// Decoder reads the values that Append and binary.Append… wrote. After the first error it returns zeros.
type Decoder struct {
	data []byte
	bad  bool
}

// NewDecoder begins to read data.
func NewDecoder(data []byte) Decoder { return Decoder{data: data} }

// Bad reports whether something did not fit so far.
func (d *Decoder) Bad() bool { return d.bad }

// Byte returns one byte.
func (d *Decoder) Byte() byte {
	if len(d.data) == 0 {
		d.bad = true
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return b
}

// Uint returns a number of binary.AppendUvarint.
func (d *Decoder) Uint() uint64 {
	v, n := binary.Uvarint(d.data)
	if n <= 0 {
		d.bad, d.data = true, nil
		return 0
	}
	d.data = d.data[n:]
	return v
}

// Int returns a number of binary.AppendVarint.
func (d *Decoder) Int() int64 {
	v, n := binary.Varint(d.data)
	if n <= 0 {
		d.bad, d.data = true, nil
		return 0
	}
	d.data = d.data[n:]
	return v
}

// Bytes returns a view on the data; nil when there are none.
func (d *Decoder) Bytes() []byte {
	n := d.Uint()
	if n > uint64(len(d.data)) {
		d.bad, d.data = true, nil
		return nil
	}
	if n == 0 {
		return nil
	}
	v := d.data[:n:n]
	d.data = d.data[n:]
	return v
}

// Finish reports whether everything was there and nothing more.
func (d *Decoder) Finish(what string) error {
	if d.bad || len(d.data) > 0 {
		return fmt.Errorf("decode %s: %w", what, ErrFrame)
	}
	return nil
}
