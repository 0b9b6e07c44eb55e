// SPDX-License-Identifier: Apache-2.0

package resp

import (
	"bytes"
	"errors"
)

// ErrReply means that what a server sent is not RESP: the connection is of no use any more.
var ErrReply = errors.New("reply is not valid RESP")

// DepthMax bounds the nesting of a reply.
const DepthMax = 512

const untilEnd = -1 // a streamed aggregate: elements up to the "." line

// Scanner measures replies of any RESP2 or RESP3 type, including attributes (they belong to the reply that follows
// them), pushes and streamed strings and aggregates. Between calls it remembers how far it got, so that a reply that
// arrives in many pieces is scanned once.
type Scanner struct {
	pos    int   // bytes of the frame passed over
	levels []int // elements still to come at each level; empty: at the start of a frame
	chunks bool  // inside a streamed string
	rest   int   // bytes of a string that are still to come behind what Drop gave away
	piece  bool  // that string is a piece of a streamed one
}

// Next looks at buf, which starts with the first byte of a reply and, after an incomplete call, again with the same
// bytes and more. It returns the reply's length, or 0 when more bytes are needed, or ErrReply.
func (s *Scanner) Next(buf []byte) (n int, err error) {
	if len(s.levels) == 0 {
		s.pos = 0
		s.levels = append(s.levels, 1)
	}
	if s.rest > 0 {
		if len(buf) < s.rest {
			return 0, nil
		}
		if s.pos = s.rest; !s.piece {
			s.pass(0)
		}
		s.rest = 0
	}
	for len(s.levels) > 0 {
		if s.levels[len(s.levels)-1] == 0 && !s.chunks {
			s.levels = s.levels[:len(s.levels)-1]
			continue
		}
		ok, err := s.element(buf)
		if err != nil || !ok {
			return 0, err
		}
	}
	return s.pos, nil
}

// Drop is for a reply that is handed on while it arrives. After a call of Next(buf) that returned 0, it returns how many bytes
// of buf are known to belong to the reply; the next call of Next gets a buffer that starts behind them.
func (s *Scanner) Drop(buf []byte) int {
	if len(s.levels) == 0 {
		return 0 // nothing of the reply was seen
	}
	if s.rest > 0 {
		s.rest -= len(buf)
		return len(buf)
	}
	n := s.pos
	s.pos = 0
	tail := buf[n:]
	end := bytes.IndexByte(tail, '\n')
	if end < 2 {
		return n
	}
	switch tail[0] {
	case '$', '=', '!', ';':
		size, valid := integer(tail[1 : end-1])
		if !valid || size < 0 {
			return n
		}
		s.rest, s.piece = end+1+int(size)+2-len(tail), tail[0] == ';'
		return len(buf)
	}
	return n
}

// Missing returns how many bytes at least are needed behind a buffer of length have to complete the present reply.
func (s *Scanner) Missing(have int) int { return max(1, s.pos+1-have) }

// element passes over one line with its payload and counts it.
func (s *Scanner) element(buf []byte) (ok bool, err error) {
	if s.pos >= len(buf) {
		return false, nil
	}
	rest := buf[s.pos:]
	i := bytes.IndexByte(rest, '\n')
	if i < 0 {
		return false, nil
	}
	if i < 2 || rest[i-1] != '\r' {
		return false, ErrReply
	}
	line := rest[1 : i-1]
	switch rest[0] {
	case '+', '-', ':', '_', ',', '#', '(':
		s.pass(i + 1)
		return true, nil
	case '$', '=', '!':
		return s.bulk(rest, line, i+1)
	case ';':
		return s.chunk(rest, line, i+1)
	case '*', '~', '>', '%', '|':
		return true, s.aggregate(rest[0], line, i+1)
	case '.':
		return true, s.end(i + 1)
	}
	return false, ErrReply
}

// pass counts one complete element of n bytes.
func (s *Scanner) pass(n int) {
	s.pos += n
	if top := len(s.levels) - 1; s.levels[top] > 0 {
		s.levels[top]--
	}
}

func (s *Scanner) bulk(rest, line []byte, head int) (ok bool, err error) {
	if len(line) == 1 && line[0] == '?' {
		s.chunks = true
		s.pos += head
		return true, nil
	}
	n, valid := integer(line)
	if !valid || n < -1 || n > 1<<40 {
		return false, ErrReply
	}
	if n < 0 {
		s.pass(head)
		return true, nil
	}
	if int64(len(rest)) < int64(head)+n+2 {
		return false, nil
	}
	s.pass(head + int(n) + 2)
	return true, nil
}

func (s *Scanner) chunk(rest, line []byte, head int) (ok bool, err error) {
	n, valid := integer(line)
	if !s.chunks || !valid || n < 0 || n > 1<<40 {
		return false, ErrReply
	}
	if n == 0 {
		s.chunks = false
		s.pass(head)
		return true, nil
	}
	if int64(len(rest)) < int64(head)+n+2 {
		return false, nil
	}
	s.pos += head + int(n) + 2
	return true, nil
}

func (s *Scanner) aggregate(kind byte, line []byte, head int) error {
	if len(s.levels) > DepthMax {
		return ErrReply
	}
	count := int64(untilEnd)
	if len(line) != 1 || line[0] != '?' {
		n, valid := integer(line)
		if !valid || n < -1 || n > 1<<32 {
			return ErrReply
		}
		count = max(n, 0)
		if kind == '%' || kind == '|' {
			count *= 2
		}
	}
	if kind == '|' || kind == '>' && len(s.levels) > 1 {
		// What an attribute belongs to is still to come. A push inside a reply is no element of it: Redis 7.0 writes one into
		// the reply of an EXEC that publishes to its own client.
		s.pos += head
	} else {
		s.pass(head)
	}
	s.levels = append(s.levels, int(count))
	return nil
}

func (s *Scanner) end(head int) error {
	top := len(s.levels) - 1
	if s.levels[top] != untilEnd {
		return ErrReply
	}
	s.pos += head
	s.levels = s.levels[:top]
	return nil
}

// Text returns the payload of a simple string, error, number or (verbatim) bulk string; nil for anything else and for
// null.
func Text(frame []byte) []byte {
	if len(frame) < 3 {
		return nil
	}
	end := bytes.IndexByte(frame, '\n')
	if end < 2 {
		return nil
	}
	switch frame[0] {
	case '+', '-', ':', ',', '#', '(':
		return frame[1 : end-1]
	case '$', '=', '!':
		n, ok := integer(frame[1 : end-1])
		if !ok || n < 0 || int64(len(frame)) < int64(end)+1+n {
			return nil
		}
		body := frame[end+1 : end+1+int(n)]
		if frame[0] == '=' && n >= 4 {
			body = body[4:]
		}
		return body
	}
	return nil
}

// Int returns the value of an integer reply.
func Int(frame []byte) (v int64, ok bool) {
	if len(frame) < 4 || frame[0] != ':' {
		return 0, false
	}
	return integer(Text(frame))
}

// Elements appends the frames of an aggregate's elements to dst; nothing for any other reply, for null and for a
// streamed aggregate.
func Elements(frame []byte, dst [][]byte) [][]byte {
	if len(frame) < 4 {
		return dst
	}
	end := bytes.IndexByte(frame, '\n')
	if end < 2 {
		return dst
	}
	n, ok := integer(frame[1 : end-1])
	switch frame[0] {
	case '*', '~', '>':
	case '%':
		n *= 2
	default:
		return dst
	}
	if !ok {
		return dst
	}
	rest := frame[end+1:]
	var s Scanner
	for ; n > 0; n-- {
		size, err := s.Next(rest)
		if err != nil || size == 0 {
			return dst
		}
		dst = append(dst, rest[:size:size])
		rest = rest[size:]
	}
	return dst
}
