// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// tailName is the name of the connection that reads a tail, in CLIENT LIST.
const tailName = "redoubt-salvage"

// tailUndo bounds the return to the frozen state, whatever became of the caller's time.
const tailUndo = time.Second

// Tail reads the end of a frozen server's stream: see redis.Node. A frozen server has it in its backlog, but serves no
// replica, because its own link is down (NOMASTERLINK: syncCommand, Redis 6.2 to 7.4, Valkey 7.2 to 8). So for a moment it
// gets a primary that is in this process, which continues exactly where the server stands and sends nothing (see silent):
// the server stays a read-only replica, with its replication id, its offset and its data. Only who knows a password that is
// made for this moment can replicate from it meanwhile, and it presents that password itself: should this process die, what
// may come to listen at that address refuses it.
func (n *Node) Tail(ctx context.Context, from, limit int64, w io.Writer) (redis.Tail, error) {
	c, m, err := n.standing(ctx)
	if err != nil {
		return redis.Tail{}, fmt.Errorf("read the tail of %s: %w", n.addr, err)
	}
	p := m.position()
	t := redis.Tail{RunID: m["run_id"], ReplID: p.ReplID, End: p.Offset}
	if err := tailThere(m, from, limit); err != nil {
		return t, fmt.Errorf("read the tail of %s: %w", n.addr, err)
	}
	t.To = from + min(p.Offset-from, limit)
	if n.cluster != nil {
		err = n.readTailInCluster(ctx, m, from, t.To, w)
	} else {
		err = n.readTail(ctx, c, p, from, t.To, w)
	}
	if err != nil {
		return t, fmt.Errorf("read the tail of %s from offset %d: %w", n.addr, from, err)
	}
	return t, nil
}

// tailThere tells whether the server's memory holds what is asked for.
func tailThere(m info, from, limit int64) error {
	p := m.position()
	first := m.num("repl_backlog_first_byte_offset")
	switch {
	case !m.frozen() || !m.whole():
		return fmt.Errorf("%w: it is not a frozen replica with whole data", redis.ErrRefused)
	case from < 0 || p.Offset <= from || limit <= 0:
		return fmt.Errorf("%w: it stands at offset %d", redis.ErrRefused, p.Offset)
	case m["repl_backlog_active"] != "1":
		return fmt.Errorf("%w: it has no replication backlog", redis.ErrNoTail)
	case first > from+1:
		return fmt.Errorf("%w: its replication backlog begins at offset %d, and repl-backlog-size is %s", redis.ErrNoTail, first, m["repl_backlog_size"])
	}
	return nil
}

// readTail lends the server a silent primary, reads, and freezes it again in every case.
func (n *Node) readTail(ctx context.Context, c *conn, p topo.Position, from, to int64, w io.Writer) (err error) {
	secret := newSecret()
	cred := redis.Credentials{Secret: topo.Secret(secret)}
	questions, err := n.ask(ctx, loginQuestions()...)
	if err != nil {
		return err
	}
	had, err := mergeConfig(questions)
	if err != nil {
		return err
	}
	if n.cannotAdmit() {
		cred = redis.Credentials{}
	} else if _, err := n.ask(ctx, n.admission(cred)...); err != nil {
		return fmt.Errorf("admit a reader: %w", err)
	}
	host, _, err := net.SplitHostPort(c.nc.LocalAddr().String()) // the address of this process as the server knows it
	if err != nil {
		return err
	}
	s, err := listenSilently(host, secret, p)
	if err != nil {
		return fmt.Errorf("listen for the server: %w", err)
	}
	defer s.close() // after the server was told to leave it
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), tailUndo)
		defer cancel()
		if back := n.replicaOf(undo, loginAs(had["masteruser"], had["masterauth"]), deadHost, deadPort); back != nil {
			err = errors.Join(err, fmt.Errorf("freeze it again: %w", back))
		}
	}()
	if err := n.replicaOf(ctx, loginAs(redis.ReplicationUser, secret), s.host, s.port); err != nil {
		return err
	}
	if err := n.linked(ctx, c, s); err != nil {
		return err
	}
	return n.copyStream(ctx, cred, p.ReplID, from, to, w)
}

// linked waits until the server counts itself as connected. The round trips of INFO are the pace; ctx is the bound.
func (n *Node) linked(ctx context.Context, c *conn, s *silent) error {
	select {
	case <-s.continued:
	case <-s.failed:
		return fmt.Errorf("%w: it does not ask to go on where it stands: %w", redis.ErrNoTail, s.why)
	case <-ctx.Done():
		return fmt.Errorf("%w: it did not connect to %s:%s: %w", redis.ErrUnanswered, s.host, s.port, ctx.Err())
	}
	for {
		reps, err := c.do(ctx, []string{"INFO", "replication"})
		if err == nil {
			err = firstError(reps)
		}
		if err != nil {
			return err
		}
		if parseInfo(reps[0].text)["master_link_status"] == "up" {
			return nil
		}
	}
}

// copyStream asks for the stream as a replica of the server would, and copies it.
func (n *Node) copyStream(ctx context.Context, cred redis.Credentials, replid string, from, to int64, w io.Writer) error {
	nc, err := connect(ctx, n.own)
	if err != nil {
		return fmt.Errorf("%w: %w", redis.ErrUnanswered, err)
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { _ = nc.Close() })()
	cmds := append(authCommand(n.adminLogin()), []string{"CLIENT", "SETNAME", tailName})
	if !cred.Open() {
		cmds = append(cmds, authCommand(n.login(cred))...)
	}
	cmds = append(cmds, []string{"REPLCONF", "capa", "psync2"})
	var b []byte
	for _, cmd := range cmds {
		b = appendCommand(b, cmd)
	}
	if _, err := nc.Write(b); err != nil {
		return fmt.Errorf("%w: %w", redis.ErrUnanswered, err)
	}
	r := bufio.NewReaderSize(nc, 64<<10)
	for range cmds {
		if err := expect(r, "+OK"); err != nil {
			return err
		}
	}
	// Only now: PSYNC is refused while an answer is still on its way.
	if _, err := nc.Write(appendCommand(nil, []string{"PSYNC", replid, fmt.Sprint(from + 1)})); err != nil {
		return fmt.Errorf("%w: %w", redis.ErrUnanswered, err)
	}
	if err := expect(r, "+CONTINUE"); err != nil {
		return err
	}
	if _, err := io.CopyN(w, r, to-from); err != nil {
		return errors.Join(fmt.Errorf("copy the stream: %w", err), ctx.Err())
	}
	return nil
}

// expect reads one line. What is not expected is an answer for good: nothing changes on a frozen server.
func expect(r *bufio.Reader, word string) error {
	line, err := r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("%w: %w", redis.ErrUnanswered, err)
	}
	if got, _, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " "); got != word {
		return fmt.Errorf("%w: it answered %.100q instead of %s", redis.ErrNoTail, line, word)
	}
	return nil
}
