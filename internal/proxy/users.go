// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// Users of the backend. The proxy knows the deployment's password only; every other user is the server's own: it checks
// the password, and what the user may do. Such a session has a connection of its own, on which it is that user.

// errUser: the server does not take the user's password any more.
var errUser = errors.New("the server refused the client's user")

// checkUser asks the primary whether a password is right, and returns the error's text; empty when it is. It waits for a
// primary as commands do.
func (s *session) checkUser(user, password string) string {
	end := time.Now().Add(s.p.order.Load().parkFor())
	for {
		o := s.p.order.Load()
		if o.t != nil && s.p.maySend(o) {
			replies, err := s.p.ask(o.t.addr, []string{"AUTH", user, password})
			if err == nil && replies[0][0] == '-' {
				return string(resp.Text(replies[0]))
			}
			if err == nil {
				return ""
			}
		}
		if s.closed.Load() || time.Now().After(end) || !s.p.pause(10*time.Millisecond) {
			return "TRYAGAIN the command was not executed: the password cannot be checked, because " + o.why
		}
	}
}

// become changes the session's user; both empty: the deployment's.
func (s *session) become(user, password string) {
	if s.user == user && s.pass == password {
		return
	}
	if s.ownLane() != nil {
		s.lane.shut() // its connection is another user's
		s.lane = nil
	}
	s.user, s.pass = user, password
}

// mayUse reports whether the session's user may use a command that the proxy answers itself and that reaches other
// clients; otherwise it returns the error's text.
func (s *session) mayUse(args [][]byte) string {
	if s.user == "" || !reachesOthers(args) {
		return ""
	}
	o := s.p.order.Load()
	if o.t == nil {
		return "TRYAGAIN the command was not executed: " + o.why
	}
	words := []string{"ACL", "DRYRUN", s.user}
	for _, a := range args {
		words = append(words, string(a))
	}
	replies, err := s.p.ask(o.t.addr, words)
	switch {
	case err != nil:
		return "TRYAGAIN the command was not executed: the primary does not answer"
	case replies[0][0] == '+':
		return ""
	case replies[0][0] == '-': // Redis 6.2 has no DRYRUN
		return "NOPERM the server cannot say whether user " + s.user + " may use this command: " + string(resp.Text(replies[0]))
	}
	return "NOPERM " + string(resp.Text(replies[0]))
}

func reachesOthers(args [][]byte) bool {
	if len(args) < 2 || !route.Is(args[0], "CLIENT") {
		return false
	}
	return slices.ContainsFunc([]string{"KILL", "LIST", "UNBLOCK", "PAUSE", "UNPAUSE"}, func(w string) bool { return route.Is(args[1], w) })
}

// logIn makes the connection the user's, once it is known which server it is.
func (k *link) logIn() error {
	user, password := k.l.key.user, k.l.key.password
	if user == "" {
		return nil
	}
	if _, err := k.conn.Write(resp.AppendCommand(nil, "AUTH", user, password)); err != nil {
		return err
	}
	f, err := k.frameNow()
	if err == nil && f[0] == '-' {
		err = fmt.Errorf("%w: %s", errUser, resp.Text(f))
	}
	return err
}

// commitAside waits for the replicas on behalf of a user who need not be allowed to send a marker and WAIT: on a connection of
// the deployment's user to the same process, whose marker comes behind the batch. It is a goroutine of the proxy.
func (k *link) commitAside(b *batch) {
	l, full := k.l, false
	for !k.ended() {
		got, err := k.ackAside(b.need, full)
		l.mu.Lock()
		i := slices.Index(l.unacked, b)
		if i < 0 {
			l.mu.Unlock()
			return // its time is over, or the connection
		}
		b.got = got
		if err == nil && b.need.met(got) || errors.Is(err, errUnmarked) && b.showsNothing(l.p.strict()) {
			l.unacked = slices.Delete(l.unacked, i, i+1)
			l.commit--
			l.mu.Unlock()
			for i := range b.ents {
				if e := &b.ents[i]; e.s != nil && e.flags&moved == 0 {
					e.s.deliver(b.reply(i), e.answers())
					e.s.out.flush()
				}
			}
			l.p.visible.settled(b)
			l.p.landed()
			l.p.release(b)
			l.nudge()
			return
		}
		l.mu.Unlock()
		was := full
		full = errors.Is(err, errFullServer)
		if err != nil && (was || !full) && !l.p.pause(20*time.Millisecond) {
			return
		}
	}
}

func (k *link) ackAside(want need, full bool) (got acked, err error) {
	helper, err := k.l.p.errandTo(k.to)
	if err != nil {
		return got, err
	}
	defer helper.conn.Close()
	if err := helper.conn.SetDeadline(time.Now().Add(handshakeTimeout + time.Second)); err != nil { // of the WAIT
		return got, err
	}
	m := &k.l.p.marker
	if _, err := helper.conn.Write(want.appendWait(slices.Clone(m.of(full)))); err != nil {
		return got, err
	}
	f, err := helper.frameNow()
	switch {
	case err != nil:
		return got, err
	case bytes.HasPrefix(f, []byte("-OOM ")):
		return got, errFullServer
	case refusal(f):
		return got, errUnmarked
	case f[0] != m.took:
		return got, errNotIt
	}
	for range want.waits() - 1 { // all but the last
		if f, err := helper.frameNow(); err != nil || f[0] != ':' {
			return got, errors.Join(err, errNotIt)
		}
	}
	if f, err = helper.frameNow(); err != nil {
		return got, err
	}
	got, ok := want.read(f)
	if !ok {
		return got, errNotIt
	}
	return got, nil
}
