// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The kinds of connections on the one port; the first byte tells.
const (
	dialRaft   = 'R'
	dialMember = 'M'
	dialPeer   = 'P' // questions between members (coord.Peers)
)

// kind is the meaning of a frame.
type kind byte

const (
	kindHello   kind = iota + 1 // first frame of a connection: Key member, Text address, Value greeting
	kindWelcome                 // answer: Code, Text leader's address or reason, Key leader's id, Value store id
	kindReply                   // answer to a request of the same ID: Code, Text, Rev, Value
	kindGet                     // Key
	kindSwap                    // Key, Value, Rev
	kindBeat                    // Key from, Value body, Rev ttl in nanoseconds; no reply
	kindAll                     // reply: Value is a list of beats
	kindMembers                 // reply: Value is a list of members
	kindAdd                     // Key id, Text address, Value name of the directory if a process asks for itself
	kindRemove                  // Key id
	kindDoc                     // push from the leader: Key, Value, Rev
	kindConfirm                 // from the leader: ID round, Rev Raft term; the answer repeats both, with the age of the last oath to an earlier term
	kindJoin                    // like Hello, from a process that asks to be added; answered with Reply
	kindAsk                     // a member's question to another one: Value; answered with Reply
)

// code is an outcome on the wire.
type code byte

const (
	codeOK code = iota
	codeNotFound
	codeConflict
	codeUnsure
	codeUnavailable
	codeRefused   // will not change by itself; Text says why
	codeNotMember // this store does not know you (any more)
	codeNotLeader // Text and Key name the leader, if known
	codeForgot    // this member's data belong to another directory than the caller's
)

// frame is one message. One shape for all keeps the protocol small; unused fields cost a byte each.
type frame struct {
	Kind  kind
	Code  code
	ID    uint64
	Rev   uint64
	Key   string
	Text  string
	Value []byte
}

const (
	frameMax  = 32 << 20 // bytes; the largest is a list of reports
	helloMax  = 4 << 10  // bytes, before a stranger has been let in
	streamBuf = 32 << 10
)

var errFrame = errors.New("malformed frame")

func appendBytes[T ~string | ~[]byte](b []byte, v T) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

// encode returns the frame with its length in front.
func (f frame) encode() []byte {
	b := make([]byte, 4, 4+2+20+len(f.Key)+len(f.Text)+len(f.Value)+15)
	b = append(b, byte(f.Kind), byte(f.Code))
	b = binary.AppendUvarint(b, f.ID)
	b = binary.AppendUvarint(b, f.Rev)
	b = appendBytes(b, f.Key)
	b = appendBytes(b, f.Text)
	b = appendBytes(b, f.Value)
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// readFrame reads one frame of at most limit bytes.
func readFrame(r *bufio.Reader, limit int) (frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	size := int(binary.LittleEndian.Uint32(head[:]))
	if size > limit {
		return frame{}, fmt.Errorf("frame of %d bytes, the limit is %d: %w", size, limit, errFrame)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return frame{}, err
	}
	return decodeFrame(data)
}

func decodeFrame(data []byte) (frame, error) {
	d := decoder{data: data}
	f := frame{Kind: kind(d.byte()), Code: code(d.byte()), ID: d.uint(), Rev: d.uint()}
	f.Key, f.Text, f.Value = string(d.bytes()), string(d.bytes()), d.bytes()
	return f, d.finish("frame")
}

// decoder reads the values that appendBytes and binary.Append… wrote. After the first error it returns zeros.
type decoder struct {
	data []byte
	bad  bool
}

func (d *decoder) byte() byte {
	if len(d.data) == 0 {
		d.bad = true
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return b
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.data)
	if n <= 0 {
		d.bad, d.data = true, nil
		return 0
	}
	d.data = d.data[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.data)
	if n <= 0 {
		d.bad, d.data = true, nil
		return 0
	}
	d.data = d.data[n:]
	return v
}

// bytes returns a view on the data; nil when there are none.
func (d *decoder) bytes() []byte {
	n := d.uint()
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

// finish reports whether everything was there and nothing more.
func (d *decoder) finish(what string) error {
	if d.bad || len(d.data) > 0 {
		return fmt.Errorf("decode %s: %w", what, errFrame)
	}
	return nil
}
