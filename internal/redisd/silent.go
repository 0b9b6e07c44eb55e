// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"bufio"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"redoubt/internal/topo"
)

// silent is a primary that has nothing to say: it accepts one frozen server, which proves by a password who it is, lets it
// continue exactly where it stands, and sends nothing. Its one goroutine ends with close.
type silent struct {
	host, port string
	secret     string
	at         topo.Position
	ln         net.Listener
	done       sync.WaitGroup

	continued chan struct{} // closed when the server was told to go on
	failed    chan struct{} // closed when it will not be; why is set then
	why       error

	mu     sync.Mutex // guards the fields below
	nc     net.Conn
	closed bool
}

// The bounds of the conversation.
const (
	silentTime  = 5 * time.Second
	silentInput = 64 << 10
)

func listenSilently(host, secret string, at topo.Position) (*silent, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	s := &silent{host: host, secret: secret, at: at, ln: ln, continued: make(chan struct{}), failed: make(chan struct{})}
	s.port = strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	s.done.Go(s.accept)
	return s, nil
}

// accept serves one connection after the other, until one that knew the password has ended or the listener is closed.
// Somebody who does not know it costs a moment only.
func (s *silent) accept() {
	for {
		nc, err := s.ln.Accept()
		if err != nil || !s.take(nc) {
			return
		}
		_ = nc.SetDeadline(time.Now().Add(silentTime))
		over := s.serve(nc)
		_ = nc.Close()
		if over {
			return
		}
	}
}

// take notes the present connection for close; false: it is over.
func (s *silent) take(nc net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = nc.Close()
		return false
	}
	s.nc = nc
	return true
}

// serve is the primary's side of the handshake: PING, AUTH, REPLCONF and PSYNC (replication.c, Redis 6.2 to 7.4; Valkey
// names its version besides). After that it listens to acknowledgements until the connection ends.
func (s *silent) serve(nc net.Conn) (over bool) {
	r := bufio.NewReader(io.LimitReader(nc, silentInput))
	known := false
	for {
		cmd, err := readReply(r, 0)
		if err != nil || len(cmd.items) == 0 {
			return known
		}
		args := cmd.words()
		answer := "+OK"
		switch name := strings.ToUpper(args[0]); {
		case name == "PING":
			answer = "+PONG"
		case name == "AUTH":
			known = subtle.ConstantTimeCompare([]byte(args[len(args)-1]), []byte(s.secret)) == 1
			if !known {
				answer = "-WRONGPASS this is not for you"
			}
		case !known:
			answer = "-NOAUTH this is not for you"
		case name == "REPLCONF" && len(args) > 1 && strings.EqualFold(args[1], "ack"):
			continue
		case name == "PSYNC":
			if answer, err = s.sync(args); err != nil {
				s.why = err
				close(s.failed)
				return true
			}
		}
		if _, err := nc.Write([]byte(answer + "\r\n")); err != nil {
			return known
		}
		if strings.HasPrefix(answer, "+CONTINUE") {
			close(s.continued)
		}
	}
}

var errElsewhere = errors.New("it asks for another position")

// sync lets the server go on if it asks for the very next byte of its own history; anything else would change its data.
func (s *silent) sync(args []string) (string, error) {
	select {
	case <-s.continued:
		return "", errors.New("it asks twice")
	default:
	}
	if len(args) < 3 || args[1] != s.at.ReplID || args[2] != strconv.FormatInt(s.at.Offset+1, 10) {
		return "", fmt.Errorf("%w: %.100q, not (%s, %d)", errElsewhere, args, s.at.ReplID, s.at.Offset+1)
	}
	return "+CONTINUE " + s.at.ReplID, nil
}

// close ends the conversation and waits for it.
func (s *silent) close() {
	_ = s.ln.Close()
	s.mu.Lock()
	s.closed = true
	if s.nc != nil {
		_ = s.nc.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
}
