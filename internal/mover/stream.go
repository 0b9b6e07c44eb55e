// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"redoubt/internal/reshard"
)

const (
	keptOfArgument = 16 << 10 // a longer argument is passed over; if it is a key, everything counts as written
	keptOfCommand  = 16 << 20
	dirtyKeysMax   = 1 << 20 // beyond it everything counts as written
	argumentsMax   = 1 << 26
)

// errStream: what was written from here on is not known.
var errStream = errors.New("the source's stream can be followed no longer")

// listener follows the stream that a primary sends to its replicas, and notes which keys of the watched slots were written.
// It asks for the very next byte of the stream, which the backlog answers without a fork and without a copy of the data. It never
// acknowledges anything, so that WAIT does not count it; the server would end such a connection after repl-timeout, so it is
// renewed before. One goroutine reads; close waits for it.
type listener struct {
	dial   func(context.Context) (*link, error)
	keys   func(args [][]byte, dst []int) ([]int, bool)
	slot   func(key []byte) int
	replid string
	renew  time.Duration
	stop   context.CancelFunc
	gone   chan struct{}
	wake   chan struct{} // one place: something was read

	mu    sync.Mutex   // guards what follows
	at    int64        // offset up to which everything was read
	watch map[int]bool // slots
	whole bool         // every key counts, whatever its slot and its database
	db    int          // whole: the stream's present database; -1 until it names one
	libs  bool         // whole: libraries of functions were changed
	dirty map[name]struct{}
	all   bool // every key may have been written
	err   error
}

// listen opens the stream of the server that src is a connection to, at what it does next, or behind l.at if l.replid is set.
func listen(ctx context.Context, src *link, l *listener) error {
	src.add("INFO", "replication")
	src.add("CONFIG", "GET", "repl-timeout")
	reps, err := src.round(ctx)
	if err != nil {
		return err
	}
	if err := reps[0].err(); err != nil {
		return err
	}
	info := fields(reps[0].body)
	if info["repl_backlog_active"] != "1" {
		return fmt.Errorf("%s has no replication backlog, so that its writes cannot be followed: it gets one with its first replica", src.addr)
	}
	if l.replid == "" {
		if l.at, err = strconv.ParseInt(info["master_repl_offset"], 10, 64); err != nil {
			return fmt.Errorf("read the offset of %s: %w", src.addr, err)
		}
		l.replid = info["master_replid"]
	}
	l.renew = 30 * time.Second
	if c := reps[1]; c.kind == '*' && len(c.items) == 2 {
		if s, err := strconv.Atoi(string(c.items[1].body)); err == nil && s > 0 {
			l.renew = time.Duration(s) * time.Second / 2
		}
	}
	c, err := l.open(ctx)
	if err != nil {
		return err
	}
	l.gone, l.wake = make(chan struct{}), make(chan struct{}, 1)
	l.watch, l.dirty = map[int]bool{}, map[name]struct{}{}
	var run context.Context
	run, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	go l.follow(run, c)
	return nil
}

// open asks for the stream from where it was read to.
func (l *listener) open(ctx context.Context) (*link, error) {
	c, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := c.ask(ctx, "REPLCONF", "capa", "psync2"); err != nil {
		c.close()
		return nil, err
	}
	rep, err := c.ask(ctx, "PSYNC", l.replid, strconv.FormatInt(l.offset()+1, 10))
	if err == nil && !strings.HasPrefix(string(rep.body), "CONTINUE") {
		err = fmt.Errorf("%s does not go on with its stream at offset %d: %.60q", c.addr, l.at, rep.body)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	if _, id, told := strings.Cut(string(rep.body), " "); told { // it has another name for the same history since it was promoted
		l.replid = id
	}
	return c, nil
}

func (l *listener) offset() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at
}

// follow reads until it is stopped or the stream ends for good.
func (l *listener) follow(ctx context.Context, c *link) {
	defer close(l.gone)
	for {
		err := l.read(ctx, c)
		c.close()
		if err == nil && ctx.Err() == nil {
			if c, err = l.open(ctx); err == nil {
				continue
			}
		}
		l.mu.Lock()
		l.err = errors.Join(errStream, err, ctx.Err())
		l.mu.Unlock()
		l.poke()
		return
	}
}

// read takes commands until the connection is old enough to be renewed; then it returns nil.
func (l *listener) read(ctx context.Context, c *link) error {
	defer context.AfterFunc(ctx, func() { _ = c.nc.SetDeadline(time.Unix(1, 0)) })()
	until := time.Now().Add(l.renew)
	if err := c.nc.SetDeadline(until); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var cmd command
	for {
		err := cmd.read(c.r)
		if err != nil {
			if time.Now().After(until) && ctx.Err() == nil {
				return nil // also in the middle of a command: it is asked for again
			}
			return err
		}
		l.note(&cmd)
		if c.r.Buffered() == 0 {
			l.poke()
		}
	}
}

func (l *listener) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// note takes one command of the stream. Transactions and scripts arrive as what they did, expiry and eviction as deletions.
func (l *listener) note(cmd *command) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at += cmd.size
	if len(cmd.args) == 0 || len(l.watch) == 0 && !l.whole {
		return
	}
	db := 0
	if l.whole {
		db = l.db
	}
	switch strings.ToUpper(string(cmd.args[0])) {
	case "SELECT":
		l.selects(cmd.args)
		return
	case "FUNCTION":
		l.libs = true
		return
	case "PING", "MULTI", "EXEC", "REPLCONF", "PUBLISH", "SPUBLISH", "SCRIPT":
		return
	case "FLUSHALL", "FLUSHDB", "SWAPDB":
		l.all = true
		return
	case "MOVE", "COPY": // they name another database
		db = -1
		if !l.whole {
			db = 0
		}
	}
	at, known := l.keys(cmd.args, cmd.at[:0])
	if !known || cmd.cut && len(at) == 0 {
		l.all = true
	}
	for _, i := range at {
		key := cmd.args[i]
		if key == nil {
			l.all = true // too long to have been kept
			continue
		}
		if !l.whole && !l.watch[l.slot(key)] {
			continue
		}
		if l.dirty[name{db, string(key)}] = struct{}{}; len(l.dirty) > dirtyKeysMax {
			l.all = true
			clear(l.dirty)
		}
	}
	cmd.at = at
}

// selects takes the stream's next database; one that cannot be read is not known.
func (l *listener) selects(args [][]byte) {
	l.db = -1
	if len(args) == 2 {
		if db, err := strconv.Atoi(string(args[1])); err == nil {
			l.db = db
		}
	}
}

// watchOnly notes the keys of these slots from now on, and forgets what it has noted.
func (l *listener) watchOnly(slots []int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.watch)
	clear(l.dirty)
	l.all = false
	for _, s := range slots {
		l.watch[s] = true
	}
	return l.err
}

// take returns what was written since the last time; all: everything may have been.
func (l *listener) take() (keys []name, all bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.dirty {
		keys = append(keys, k)
	}
	all, l.all = l.all, false
	clear(l.dirty)
	return keys, all, l.err
}

// takeTo is take for a whole server: with the offset up to which everything is in what was taken, and whether libraries were changed.
func (l *listener) takeTo() (keys []name, all, libs bool, at int64, err error) {
	l.mu.Lock()
	at, libs, l.libs = l.at, l.libs, false
	l.mu.Unlock()
	keys, all, err = l.take()
	return keys, all, libs, at, err
}

// noted is how many keys are to be copied again.
func (l *listener) noted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all {
		return dirtyKeysMax
	}
	return len(l.dirty)
}

// written reports whether the key was written since the last take.
func (l *listener) written(n name) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, is := l.dirty[n]
	if l.whole && !is {
		_, is = l.dirty[name{-1, n.key}]
	}
	return is || l.all || l.err != nil
}

// debt is how many keys were written, and what they are estimated to be.
func (l *listener) debt(big map[name]int64, each int64) (keys, bytes int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.dirty {
		if b, ok := big[k]; ok {
			bytes += b
		} else {
			bytes += each
		}
	}
	keys = int64(len(l.dirty))
	if l.all {
		keys += reshard.SlotCount // many: certainly another round
	}
	return keys, bytes, l.err
}

// readTo waits until the stream was read up to an offset.
func (l *listener) readTo(ctx context.Context, offset int64) error {
	for {
		l.mu.Lock()
		at, err := l.at, l.err
		l.mu.Unlock()
		if err != nil || at >= offset {
			return err
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return fmt.Errorf("read the source's stream to offset %d (it is read to %d): %w", offset, at, ctx.Err())
		}
	}
}

func (l *listener) close() {
	if l != nil {
		l.stop()
		<-l.gone
	}
}

// command is one command of a stream, without what is too long to be a key.
type command struct {
	args [][]byte // nil: passed over
	cut  bool     // something was passed over
	size int64    // bytes in the stream
	at   []int
	buf  []byte
	ends []int
}

// read reads the next command. Between commands a server may send empty lines.
func (c *command) read(r *bufio.Reader) error {
	c.args, c.cut, c.size, c.buf, c.ends = c.args[:0], false, 0, c.buf[:0], c.ends[:0]
	if cap(c.buf) > 4*keptOfArgument {
		c.buf = nil
	}
	n, err := c.head(r, '*')
	for err == nil && n < 0 {
		n, err = c.head(r, '*')
	}
	if err != nil {
		return err
	}
	if n > argumentsMax {
		return fmt.Errorf("a command of %d arguments in the stream", n)
	}
	for range n {
		size, err := c.head(r, '$')
		if err != nil {
			return err
		}
		if size < 0 {
			return errors.New("an empty line inside a command of the stream")
		}
		c.size += size + 2
		if size > keptOfArgument || len(c.buf)+int(size) > keptOfCommand {
			c.cut = true
			c.ends = append(c.ends, -1)
			if err := discard(r, size+2); err != nil {
				return err
			}
			continue
		}
		from := len(c.buf)
		c.buf = append(c.buf, make([]byte, size)...)
		if _, err := io.ReadFull(r, c.buf[from:]); err != nil {
			return err
		}
		if _, err := r.Discard(2); err != nil {
			return err
		}
		c.ends = append(c.ends, len(c.buf))
	}
	c.split()
	return nil
}

// split makes arguments of what was kept, once it no longer moves.
func (c *command) split() {
	from := 0
	for _, end := range c.ends {
		if end < 0 {
			c.args = append(c.args, nil)
			continue
		}
		c.args = append(c.args, c.buf[from:end:end])
		from = end
	}
}

// head reads "*3" or "$5"; -1 for an empty line.
func (c *command) head(r *bufio.Reader, kind byte) (int64, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	c.size += int64(len(line))
	if len(line) == 1 {
		return -1, nil
	}
	if len(line) < 4 || line[0] != kind {
		return 0, fmt.Errorf("the stream has %.20q where a command should be", line)
	}
	n, err := strconv.ParseInt(string(line[1:len(line)-2]), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("the stream has %.20q where a command should be", line)
	}
	return n, nil
}

func discard(r *bufio.Reader, n int64) error {
	_, err := io.CopyN(io.Discard, r, n)
	return err
}
