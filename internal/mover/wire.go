// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/resp"
)

const (
	replyBytesMax = 1 << 30 // of one bulk string: a value dumped in one piece
	replyItemsMax = 1 << 26 // of one array: the keys of a slot
	replyDepthMax = 16
	answerWithin  = 20 * time.Second // bounds one round when ctx does not
)

// reply is one RESP2 reply.
type reply struct {
	kind  byte
	body  []byte // of a string, an error, a status
	num   int64
	items []reply
	null  bool
}

// serverError is an error reply; its first word is the code.
type serverError string

func (e serverError) Error() string { return "the server answered: " + string(e) }

func (e serverError) is(code string) bool { return strings.HasPrefix(string(e), code+" ") }

func (r reply) err() error {
	if r.kind == '-' {
		return serverError(r.body)
	}
	return nil
}

// link is a connection on which commands are collected, sent at once, and answered in order. One goroutine uses it at a time.
type link struct {
	nc   net.Conn
	r    *bufio.Reader
	out  []byte
	adds int // commands in out
	want int // replies to what was sent
	addr string
	db   int // the one that commands are about
}

// use makes further commands be about a database.
func (l *link) use(ctx context.Context, db int) error {
	if l.db == db {
		return nil
	}
	if _, err := l.ask(ctx, "SELECT", strconv.Itoa(db)); err != nil {
		return err
	}
	l.db = db
	return nil
}

// add collects one command.
func (l *link) add(args ...string) {
	l.out = resp.AppendCommand(l.out, args...)
	l.adds++
}

// addValues collects one command that ends with values as they were read.
func (l *link) addValues(head []string, values ...[]byte) {
	l.out = resp.AppendArray(l.out, len(head)+len(values))
	for _, h := range head {
		l.out = resp.AppendBulk(l.out, h)
	}
	for _, v := range values {
		l.out = resp.AppendBulk(l.out, v)
	}
	l.adds++
}

// send writes what was collected. Replies stay where they are until receive.
func (l *link) send(ctx context.Context) error {
	if err := l.deadline(ctx); err != nil {
		return err
	}
	_, err := l.nc.Write(l.out)
	l.want += l.adds
	l.out, l.adds = l.out[:0], 0
	if cap(l.out) > 8<<20 {
		l.out = nil
	}
	return l.failed(ctx, err)
}

// receive reads the replies to everything that was sent.
func (l *link) receive(ctx context.Context) ([]reply, error) { return l.receiveSome(ctx, l.want) }

// receiveSome reads the next replies.
func (l *link) receiveSome(ctx context.Context, n int) ([]reply, error) {
	if err := l.deadline(ctx); err != nil {
		return nil, err
	}
	out := make([]reply, 0, n)
	defer context.AfterFunc(ctx, func() { _ = l.nc.SetDeadline(time.Unix(1, 0)) })()
	for range n {
		rep, err := readReply(l.r, 0)
		if err != nil {
			return nil, l.failed(ctx, err)
		}
		l.want--
		out = append(out, rep)
	}
	return out, nil
}

// round sends what was collected and reads the replies. Error replies are replies.
func (l *link) round(ctx context.Context) ([]reply, error) {
	if err := l.send(ctx); err != nil {
		return nil, err
	}
	return l.receive(ctx)
}

// must is round for commands that are not to be refused.
func (l *link) must(ctx context.Context) ([]reply, error) {
	reps, err := l.round(ctx)
	if err != nil {
		return nil, err
	}
	return reps, l.firstError(reps)
}

func (l *link) firstError(reps []reply) error {
	for _, r := range reps {
		if err := r.err(); err != nil {
			return fmt.Errorf("%s: %w", l.addr, err)
		}
	}
	return nil
}

// ask is must for one command.
func (l *link) ask(ctx context.Context, args ...string) (reply, error) {
	l.add(args...)
	reps, err := l.must(ctx)
	if err != nil {
		return reply{}, err
	}
	return reps[0], nil
}

func (l *link) deadline(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	at := time.Now().Add(answerWithin)
	if d, ok := ctx.Deadline(); ok && d.Before(at) {
		at = d
	}
	return l.failed(ctx, l.nc.SetDeadline(at))
}

func (l *link) failed(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("talk to %s: %w", l.addr, err)
}

func (l *link) close() {
	if l != nil {
		_ = l.nc.Close()
	}
}

// readReply reads one reply. Its errors mean that the connection is unusable from here on.
func readReply(r *bufio.Reader, depth int) (reply, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return reply{}, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' || depth > replyDepthMax {
		return reply{}, fmt.Errorf("not a RESP2 reply: %.40q", line)
	}
	rep := reply{kind: line[0]}
	text := line[1 : len(line)-2]
	switch rep.kind {
	case '+', '-':
		rep.body = append([]byte(nil), text...)
		return rep, nil
	case ':', '$', '*':
	default:
		return reply{}, fmt.Errorf("not a RESP2 reply: %.40q", line)
	}
	if rep.num, err = strconv.ParseInt(string(text), 10, 64); err != nil {
		return reply{}, fmt.Errorf("not a number in a RESP2 reply: %.40q", line)
	}
	switch {
	case rep.kind == ':':
	case rep.num == -1:
		rep.null = true
	case rep.kind == '$':
		if rep.num < 0 || rep.num > replyBytesMax {
			return reply{}, fmt.Errorf("a string of %d bytes is beyond the limit of %d", rep.num, replyBytesMax)
		}
		rep.body = make([]byte, rep.num)
		if _, err := io.ReadFull(r, rep.body); err != nil {
			return reply{}, err
		}
		_, err = r.Discard(2)
	default:
		if rep.num < 0 || rep.num > replyItemsMax {
			return reply{}, fmt.Errorf("an array of %d items is beyond the limit of %d", rep.num, replyItemsMax)
		}
		rep.items = make([]reply, 0, min(rep.num, 1<<16))
		for range rep.num {
			item, err := readReply(r, depth+1)
			if err != nil {
				return reply{}, err
			}
			rep.items = append(rep.items, item)
		}
	}
	return rep, err
}

// fields reads the lines name:value of INFO.
func fields(text []byte) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok {
			m[k] = v
		}
	}
	return m
}

// appendReply is the reply as it came.
func appendReply(dst []byte, r reply) []byte {
	switch {
	case r.null:
		return append(dst, "$-1\r\n"...)
	case r.kind == '*':
		dst = resp.AppendArray(dst, len(r.items))
		for _, it := range r.items {
			dst = appendReply(dst, it)
		}
		return dst
	case r.kind == ':':
		return resp.AppendInt(dst, r.num)
	case r.kind == '$':
		return resp.AppendBulk(dst, r.body)
	}
	dst = append(append(dst, r.kind), r.body...)
	return append(dst, '\r', '\n')
}
