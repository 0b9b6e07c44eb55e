// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"context"
	"net"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

var _ coord.Peers = (*Store)(nil)

// Answer implements coord.Peers.
func (s *Store) Answer(with func(from string, question []byte) []byte) { s.lines.Answer(with) }

// Ask implements coord.Peers.
func (s *Store) Ask(ctx context.Context, member string, question []byte) ([]byte, error) {
	return s.lines.Ask(ctx, s.addressOf(member), member, question)
}

func (s *Store) addressOf(member string) string {
	for _, m := range s.raft.Load().GetConfiguration().Configuration().Servers {
		if string(m.ID) == member {
			return string(m.Address)
		}
	}
	return ""
}

func (s *Store) dialPeer(addr, member string, timeout time.Duration) (net.Conn, error) {
	return s.port.dial(kit.DialPeer, addr, member, timeout)
}

// serveAsks answers one member's questions until its connection ends.
func (s *Store) serveAsks(c *kit.Conn) {
	defer func() { _ = c.Close() }()
	in := bufio.NewReaderSize(c, 4<<10)
	hello, err := kit.ReadFrame(in, kit.HelloMax)
	if err == nil {
		err = s.checkRaft(hello)
	}
	if err != nil {
		s.log.Warn("refused a member's questions", "peer", hello.Key, "from", c.RemoteAddr().String(), "err", err)
		_, _ = c.Write(kit.Frame{Kind: kit.KindReply, Code: kit.CodeRefused, Text: err.Error()}.Encode())
		return
	}
	s.lines.Serve(c, in, hello.Key)
}
