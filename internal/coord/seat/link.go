// SPDX-License-Identifier: Apache-2.0

package seat

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// follow keeps a stream to the controller, whoever it is.
func (s *Store) follow() {
	for s.gone() == nil {
		next := s.news.Next()
		c := s.chair.Load()
		if c == nil || c.Holder == "" || s.mine(c) {
			s.pause(next, time.Second)
			continue
		}
		worked, err := s.attach(c)
		if worked && !errors.Is(err, os.ErrDeadlineExceeded) {
			continue // it broke: call again before anything is made of it
		}
		if now := s.chair.Load(); s.ctx.Err() == nil && now.Run == c.Run && now.Term == c.Term {
			s.stranded.Store(&c.Run)
			s.news.Fire()
			s.log.Debug("stream to the controller", "controller", c.Holder, "err", err)
		}
		s.pause(nil, retry)
	}
}

// dial opens a connection of the given kind and says who we are; target is the member that it is for.
func (s *Store) dial(first byte, addr, target string, timeout time.Duration) (*kit.Conn, error) {
	c, err := s.port.Dial(s.ctx, addr, timeout)
	if err != nil {
		return nil, err
	}
	hello := s.hello(target)
	_ = c.SetDeadline(time.Now().Add(timeout))
	if _, err := c.Write(append([]byte{first}, hello.Encode()...)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

// hello says who calls, of which deployment, and whom the call is for. An empty deployment is not known yet.
func (s *Store) hello(target string) kit.Frame {
	deployment := ""
	if c := s.chair.Load(); c != nil {
		deployment = c.Deployment
	}
	return kit.Frame{Kind: kit.KindHello, Key: s.opts.ID, Text: s.advertise, Value: kit.Append(kit.Append(nil, deployment), target)}
}

// checkHello refuses callers of another deployment and calls that are meant for another member.
func (s *Store) checkHello(f kit.Frame) error {
	d := kit.NewDecoder(f.Value)
	deployment, target := string(d.Bytes()), string(d.Bytes())
	if err := d.Finish("hello"); err != nil || f.Kind != kit.KindHello || f.Key == "" {
		return errors.Join(kit.ErrFrame, err)
	}
	c := s.chair.Load()
	switch {
	case target != s.opts.ID:
		return fmt.Errorf("the call of %s is for member %q, this is %q; check the members' addresses (member.host, store.listen)", f.Key, target, s.opts.ID)
	case c != nil && deployment != "" && c.Deployment != deployment:
		return fmt.Errorf("%s belongs to another deployment; check the members' addresses and the store's prefix", f.Key)
	}
	return nil
}

// knock opens a stream to a member and returns its answer.
func (s *Store) knock(addr, id string, timeout time.Duration) (*kit.Conn, kit.Frame, *bufio.Reader, error) {
	c, err := s.dial(kit.DialMember, addr, id, timeout)
	if err != nil {
		return nil, kit.Frame{}, nil, fmt.Errorf("call member %s: %w", id, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	in := bufio.NewReaderSize(c, kit.StreamBuf)
	welcome, err := kit.ReadFrame(in, kit.HelloMax)
	if err == nil && welcome.Kind != kit.KindWelcome {
		err = kit.ErrFrame
	}
	if err != nil {
		return nil, kit.Frame{}, nil, errors.Join(fmt.Errorf("call member %s: %w", id, err), c.Close())
	}
	return c, welcome, in, nil
}

// attach runs one stream to the controller until it breaks, or another one is seated. worked is false when there was none.
func (s *Store) attach(to *chair) (worked bool, err error) {
	c, welcome, in, err := s.knock(to.Addr, to.Holder, s.opts.Timing.Lease/2)
	if err != nil {
		return false, err
	}
	if welcome.Code != kit.CodeOK {
		_ = c.Close()
		return false, fmt.Errorf("member %s does not serve: code %d %s", to.Holder, welcome.Code, welcome.Text)
	}
	l := &link{kit.NewLink(c), to.Holder, to.Term}
	s.link.Store(l)
	s.stranded.Store(nil)
	s.news.Fire()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer l.Close()
		_ = l.Write()
	})
	wg.Go(func() {
		defer l.Close()
		s.untilOther(l, to)
	})
	for err == nil {
		// A controller says in every pulse that it lives.
		_ = c.SetReadDeadline(time.Now().Add(s.opts.Timing.Lease))
		var f kit.Frame
		if f, err = kit.ReadFrame(in, kit.FrameMax); err == nil {
			l.Took(f)
			if f.Kind == kit.KindDoc {
				s.hub.Learn(coord.Doc{Key: f.Key, Value: f.Value, Rev: coord.Rev(f.Rev)})
			}
		}
	}
	l.Close()
	s.link.Store(nil)
	s.news.Fire()
	wg.Wait()
	return true, err
}

// untilOther returns when the stream should end.
func (s *Store) untilOther(l *link, to *chair) {
	for {
		next := s.news.Next()
		if c := s.chair.Load(); c.Run != to.Run || c.Term != to.Term {
			return
		}
		select {
		case <-next:
		case <-l.Ended():
			return
		case <-s.left.done:
			return
		case <-s.ctx.Done():
			return
		}
	}
}

// accept serves a connection of another member until it ends.
func (s *Store) accept(c *kit.Conn) {
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(kit.HelloTimeout))
	in := bufio.NewReaderSize(c, kit.StreamBuf)
	first, err := in.ReadByte()
	if err != nil {
		return
	}
	hello, err := kit.ReadFrame(in, kit.HelloMax)
	if err == nil {
		err = s.checkHello(hello)
	}
	if err != nil {
		s.log.Warn("refused a member's connection", "peer", hello.Key, "from", c.RemoteAddr().String(), "err", err)
		kind := map[bool]kit.Kind{true: kit.KindReply, false: kit.KindWelcome}[first == kit.DialPeer]
		_, _ = c.Write(kit.Frame{Kind: kind, Code: kit.CodeRefused, Text: err.Error()}.Encode())
		return
	}
	switch first {
	case kit.DialPeer:
		s.lines.Serve(c, in, hello.Key)
	case kit.DialMember:
		s.serve(c, in, hello.Key)
	}
}

// serve is a member's stream, at the controller.
func (s *Store) serve(c *kit.Conn, in *bufio.Reader, id string) {
	g := s.awaitOffice()
	if g == nil {
		_, _ = c.Write(kit.Frame{Kind: kit.KindWelcome, Code: kit.CodeNotLeader, Text: "it is not the controller"}.Encode())
		return
	}
	if _, err := c.Write(kit.Frame{Kind: kit.KindWelcome}.Encode()); err != nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	p := kit.NewPeer(id, c)
	if !g.join(p) {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer g.leave(p)
	defer p.Close()
	wg.Go(func() {
		defer p.Close()
		_ = p.Write()
	})
	for {
		f, err := kit.ReadFrame(in, kit.FrameMax)
		if err != nil {
			return
		}
		switch f.Kind {
		case kit.KindBeat:
			if len(f.Value) <= coord.BeatMax {
				s.inbox.Put(g.beats, f.Key, f.Value, time.Duration(f.Rev))
			}
			continue
		case kit.KindGet:
			g.ages.Note(p.ID, f.Key, s.hub.Rev(f.Key), s.uptime())
		}
		p.Serve(&wg, f, func(f kit.Frame) kit.Frame {
			ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timing.Request)
			defer cancel()
			return s.answer(ctx, g, f)
		})
	}
}

// awaitOffice returns the present term in office. Members may learn of it before the swap that began it has returned.
func (s *Store) awaitOffice() *office {
	t := time.NewTimer(s.opts.Timing.Lease / 3)
	defer t.Stop()
	for {
		next := s.news.Next()
		if g := s.office.Load(); g != nil {
			return g
		}
		select {
		case <-next:
		case <-t.C:
			return nil
		case <-s.ctx.Done():
			return nil
		}
	}
}
