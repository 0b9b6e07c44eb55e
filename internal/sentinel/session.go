// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"redoubt/internal/resp"
)

// session is one client's connection. Its reader owns it; out is drained by its writer.
type session struct {
	s      *Server
	id     int64
	conn   net.Conn
	since  time.Duration
	out    chan []byte
	parser resp.Parser

	announce *Announce // what this client is told instead of addresses
	authed   bool
	user     string
	buf      []byte // replies not yet queued
	ended    bool   // close after the replies that are queued

	mu       sync.Mutex
	proto    int
	name     string
	last     string // latest command, for CLIENT LIST
	channels map[string]bool
	patterns map[string]bool
}

func (s *Server) session(conn net.Conn) *session {
	return &session{
		s: s, id: s.nextID.Add(1), conn: conn, announce: s.announceFor(conn.RemoteAddr()), since: s.o.Clock.Uptime(), out: make(chan []byte, queueMax),
		authed: s.o.Password == "", user: "default", proto: 2, channels: map[string]bool{}, patterns: map[string]bool{},
	}
}

// write drains the queue until the reader closes it. After an error it goes on draining, so that nobody waits for it.
func (se *session) write() {
	broken := false
	for b := range se.out {
		if broken {
			continue
		}
		_ = se.conn.SetWriteDeadline(time.Now().Add(writeMax))
		if _, err := se.conn.Write(b); err != nil {
			broken = true
			se.conn.Close()
		}
	}
	se.conn.Close()
}

func (se *session) read(ctx context.Context) {
	defer close(se.out)
	defer se.s.hub.remove(se)
	in := make([]byte, 0, 4096)
	for !se.ended {
		if len(in) == cap(in) {
			if len(in) >= inputMax {
				return
			}
			in = append(in, make([]byte, len(in))...)[:len(in)]
		}
		n, err := se.conn.Read(in[len(in):cap(in)])
		in = in[:len(in)+n]
		rest, perr := se.consume(ctx, in)
		in = in[:copy(in, rest)]
		var protocol resp.ProtocolError
		if errors.As(perr, &protocol) {
			se.buf = resp.AppendError(se.buf, "ERR "+protocol.Error())
			se.ended = true
		}
		se.flush()
		if err != nil {
			return
		}
	}
}

// consume runs the complete commands at the start of in and returns what is left.
func (se *session) consume(ctx context.Context, in []byte) ([]byte, error) {
	for len(in) > 0 && !se.ended {
		n, err := se.parser.Next(in, resp.Limits{Bulk: argumentMax, Unauth: !se.authed})
		if err != nil || n == 0 {
			return in, err
		}
		if len(se.parser.Args) > 0 {
			args := make([]string, len(se.parser.Args))
			for i, a := range se.parser.Args {
				args[i] = string(a)
			}
			se.s.commands.Add(1)
			se.run(ctx, args)
		}
		in = in[n:]
	}
	return in, nil
}

// flush queues the replies so far; it waits while the queue is full, and the writer never stops draining it.
func (se *session) flush() {
	if len(se.buf) > 0 {
		se.out <- se.buf
		se.buf = nil
	}
}

func (se *session) bulk(v string)    { se.buf = resp.AppendBulk(se.buf, v) }
func (se *session) simple(v string)  { se.buf = resp.AppendSimple(se.buf, v) }
func (se *session) fail(text string) { se.buf = resp.AppendError(se.buf, text) }
func (se *session) number(v int64)   { se.buf = resp.AppendInt(se.buf, v) }
func (se *session) array(n int)      { se.buf = resp.AppendArray(se.buf, n) }
func (se *session) null()            { se.buf = resp.AppendNull(se.buf, se.proto) }
func (se *session) nullArray()       { se.buf = resp.AppendNullArray(se.buf, se.proto) }

func (se *session) fields(f fields) {
	se.buf = resp.AppendMap(se.buf, se.proto, len(f))
	for _, kv := range f {
		se.bulk(kv[0])
		se.bulk(kv[1])
	}
}

// modal reports that a RESP2 connection has subscriptions, where only a few commands are allowed.
func (se *session) modal() bool { return se.proto < 3 && len(se.channels)+len(se.patterns) > 0 }

// subscribe acknowledges first and listens then, so that no message overtakes its acknowledgement.
func (se *session) subscribe(names []string, patterns bool) {
	kind, set := "subscribe", se.channels
	if patterns {
		kind, set = "psubscribe", se.patterns
	}
	for _, name := range names {
		count := len(se.channels) + len(se.patterns)
		if !set[name] {
			if count >= subscribedMax {
				se.fail("ERR too many subscriptions on this connection")
				continue
			}
			count++
		}
		se.acknowledge(kind, &name, count)
		se.flush()
		se.mu.Lock()
		set[name] = true
		se.mu.Unlock()
	}
}

func (se *session) unsubscribe(names []string, patterns bool) {
	kind, set := "unsubscribe", se.channels
	if patterns {
		kind, set = "punsubscribe", se.patterns
	}
	if len(names) == 0 {
		for name := range set {
			names = append(names, name)
		}
		if len(names) == 0 {
			se.acknowledge(kind, nil, len(se.channels)+len(se.patterns))
		}
	}
	for _, name := range names {
		se.mu.Lock()
		delete(set, name)
		se.mu.Unlock()
		se.acknowledge(kind, &name, len(se.channels)+len(se.patterns))
	}
}

func (se *session) acknowledge(kind string, name *string, count int) {
	if se.proto >= 3 {
		se.buf = resp.AppendPush(se.buf, 3)
	} else {
		se.array(3)
	}
	se.bulk(kind)
	if name == nil {
		se.null()
	} else {
		se.bulk(*name)
	}
	se.number(int64(count))
}

func (se *session) reset() {
	se.mu.Lock()
	defer se.mu.Unlock()
	clear(se.channels)
	clear(se.patterns)
	se.proto, se.name, se.user = 2, "", "default"
	se.authed = se.s.o.Password == ""
}

func upper(args []string, i int) string {
	if i >= len(args) {
		return ""
	}
	return strings.ToUpper(args[i])
}
