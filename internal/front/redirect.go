// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/slots"
)

// A server of a cluster says that it is not responsible, or not yet. It has not carried out the command then, and the client
// never hears of it: the command is tried again, where the present slot map sends it, until it is answered or the time is over.

const (
	turnMin = time.Millisecond // between two attempts
	turnMax = 50 * time.Millisecond
)

// redirects reports whether an error of a cluster's server means: not carried out, it is the business of another one, or of
// another moment.
func redirects(f []byte) bool {
	for _, code := range [...]string{"-MOVED ", "-ASK ", "-TRYAGAIN ", "-CLUSTERDOWN "} {
		if len(f) > len(code) && string(f[:len(code)]) == code {
			return true
		}
	}
	return false
}

// elsewhere returns what a client hears in place of a redirection.
func elsewhere(f []byte) []byte {
	if bytes.HasPrefix(f, []byte("-TRYAGAIN ")) {
		return f
	}
	return resp.AppendError(nil, "TRYAGAIN the command was not executed: the slot of its keys has no primary at the moment, or is on its way to another shard")
}

// remember keeps a command in case it is refused: only the latest one of a connection, because behind it others may have run.
func (k *conn) remember(e *expect, command []byte) {
	k.last = k.last[:0]
	if e.op == opPass && len(command) <= repeatMax {
		k.last = append(k.last, command...)
	}
}

// reroute has the command at the head of the queue tried again elsewhere, and reports whether it is: only one behind which the client
// has said nothing yet, because what is said later may be about the same key. The caller holds c.mu.
func (c *client) reroute(e *expect, f []byte) bool {
	k := e.from
	if e.op != opPass || len(k.last) == 0 || k.owed != 1 || k.keeps || c.head+1 != len(c.queue) || c.f.ctx.Err() != nil {
		return false
	}
	raw, reply, shard := bytes.Clone(k.last), bytes.Clone(f), k.i
	c.take(k)
	c.land(e)
	e.op, e.from = opTurned, nil
	c.turned, c.full = true, true
	c.f.wg.Go(func() { c.answered(c.goAround(shard, raw, reply)) })
	return true
}

// awaitDetour waits until no command is tried again: what follows may not overtake it. It is for a goroutine that drives the client:
// the loop handles nothing meanwhile, because the client counts as full. The caller holds c.mu.
func (c *client) awaitDetour() {
	for c.turned && !c.over {
		c.sleep()
	}
}

// answered gives the entry at the head of the queue its answer.
func (c *client) answered(reply []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turned, c.detour = false, nil
	if c.over {
		return
	}
	if c.head < len(c.queue) && c.queue[c.head].op == opTurned {
		e := &c.queue[c.head]
		e.op, e.canned = opCanned, reply
		c.drain()
	}
	c.stir()
	c.out.write()
}

// goAround tries a command again until it is carried out, or the time is over. reply is the refusal.
func (c *client) goAround(shard int, raw, reply []byte) []byte {
	end := time.Now().Add(c.f.o.Limits.Redirect)
	var d *detour
	defer func() { d.close() }()
	for pause := turnMin; time.Now().Before(end) && !c.isOver(); pause = min(2*pause, turnMax) {
		select {
		case <-time.After(pause):
		case <-c.f.ctx.Done():
			return elsewhere(reply)
		}
		if slot, ok := movedSlot(reply); ok {
			if to := c.f.shardOfSlot(slot); to >= 0 && to < len(c.f.shards()) {
				shard = to
			}
		}
		if d == nil || d.shard != shard {
			d.close()
			var err error
			if d, err = c.detourTo(shard); err != nil {
				continue
			}
		}
		f, err := d.ask(raw, c.f.o.Limits.Output)
		if err != nil {
			return resp.AppendError(nil, unknownOutcome+"the connection to shard "+c.f.shards()[shard].Name+" ended before it answered; it may or may not have been applied")
		}
		if f[0] != '-' || !redirects(f) {
			return f
		}
		reply = f
	}
	return elsewhere(reply)
}

// movedSlot returns the slot that a redirection names.
func movedSlot(f []byte) (int, bool) {
	words := bytes.Fields(f)
	if len(words) < 2 || string(words[0]) != "-MOVED" {
		return 0, false
	}
	n, err := strconv.Atoi(string(words[1]))
	return n, err == nil && n >= 0 && n < slots.Count
}

// detour is a connection for commands that are tried again. A goroutine has it, and its loop wakes that.
type detour struct {
	shard int
	sock  Stream
	wake  chan struct{} // something may have come, or there may be room
	buf   []byte
	scan  resp.Scanner
}

func (d *detour) close() {
	if d != nil {
		d.sock.Close()
	}
}

// event is called by the loop.
func (d *detour) event() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// detourTo opens a connection to a shard, which knows as much of the client as plain commands need. The client changes none of
// that before everything is answered.
func (c *client) detourTo(shard int) (*detour, error) {
	d := &detour{shard: shard, wake: make(chan struct{}, 1)}
	take, err := c.reachShard(shard)
	if err != nil {
		return nil, err
	}
	if d.sock, err = take(d.event); err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		d.close()
		return nil, errors.New("the client is gone")
	}
	c.detour = d.sock
	c.mu.Unlock()
	var words [][]byte
	if c.password != nil {
		words = [][]byte{[]byte("AUTH")}
		if c.user != nil {
			words = append(words, c.user)
		}
		words = append(words, c.password)
		if f, err := d.ask(resp.AppendCommand(nil, words...), c.f.o.Limits.Output); err != nil || f[0] == '-' {
			d.close()
			return nil, errors.New("the shard refuses the client's credentials")
		}
	}
	if c.proto == 3 {
		if _, err := d.ask(resp.AppendCommand(nil, "HELLO", "3"), c.f.o.Limits.Output); err != nil {
			d.close()
			return nil, err
		}
	}
	return d, nil
}

// ask sends a command and returns its reply.
func (d *detour) ask(raw []byte, most int) ([]byte, error) {
	for len(raw) > 0 {
		n, err := d.sock.Write(raw)
		if err != nil {
			return nil, err
		}
		if raw = raw[n:]; len(raw) > 0 {
			<-d.wake // an end of the client or of the front shuts the connection, and that is an event, too
		}
	}
	chunk := make([]byte, inputMin)
	for {
		f, err := d.next()
		if f != nil || err != nil {
			return f, err
		}
		if len(d.buf) > most {
			return nil, errors.New("the reply is too long")
		}
		n, err := d.sock.Read(chunk)
		if d.buf = append(d.buf, chunk[:n]...); n > 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		<-d.wake
	}
}

// next takes a complete reply out of what has come; nil: there is none.
func (d *detour) next() ([]byte, error) {
	for len(d.buf) > 0 {
		n, err := d.scan.Next(d.buf)
		if n == 0 || err != nil {
			return nil, err
		}
		f := d.buf[:n:n]
		if d.buf = d.buf[n:]; f[0] != '>' {
			return f, nil
		}
	}
	return nil, nil
}
