// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
)

// HeaderPolicy says whether clients come through a load balancer that tells in front of all else who they are (PROXY
// protocol, version 1 or 2).
type HeaderPolicy string

// The policies. With HeaderOptional every client can claim any address, so it is for the time of a change only.
const (
	HeaderOff      HeaderPolicy = "off"
	HeaderOptional HeaderPolicy = "optional"
	HeaderRequired HeaderPolicy = "required"
)

// A header that is not complete after these is a reason to disconnect.
const (
	headerMax  = 4 << 10
	headerTime = 5 * time.Second
)

const (
	headerV1     = "PROXY "
	headerV1Max  = 107
	headerV2     = "\r\n\r\n\x00\r\nQUIT\n"
	headerV2Head = 16
)

var errNoHeader = errors.New("no PROXY header")

// measure returns the length of the header that b begins with; 0: more has to come. errNoHeader: it begins otherwise.
func measure(b []byte) (int, error) {
	switch {
	case bytes.HasPrefix(b, []byte(headerV2)):
		if len(b) < headerV2Head {
			return 0, nil
		}
		n := headerV2Head + int(binary.BigEndian.Uint16(b[headerV2Head-2:]))
		if n > headerMax {
			return 0, fmt.Errorf("a PROXY header of %d bytes", n)
		}
		if n > len(b) {
			return 0, nil
		}
		return n, nil
	case bytes.HasPrefix(b, []byte(headerV1)):
		if i := bytes.IndexByte(b[:min(len(b), headerV1Max)], '\n'); i >= 0 {
			return i + 1, nil
		}
		if len(b) >= headerV1Max {
			return 0, errors.New("a PROXY header without an end")
		}
		return 0, nil
	case bytes.HasPrefix([]byte(headerV2), b), bytes.HasPrefix([]byte(headerV1), b):
		return 0, nil
	}
	return 0, errNoHeader
}

// greeting is what the session still expects in front of the first command.
func (p *Proxy) greeting() HeaderPolicy {
	if p.o.ProxyProtocol == "" {
		return HeaderOff
	}
	return p.o.ProxyProtocol
}

// introduce sets by when the client must have said who it is.
func (s *session) introduce() {
	due := uint32(0)
	switch d := s.p.o.Limits.Handshake; {
	case s.preface == HeaderRequired, s.preface == HeaderOptional && s.begun:
		due = s.p.tick.Load() + seconds(headerTime)
	case d > 0 && !s.authed:
		due = s.p.tick.Load() + seconds(d)
	}
	s.vis.due.Store(due)
}

// introduced takes the header off the input and reports whether commands may follow. A bad one ends the session. On the
// loop only.
func (s *session) introduced() bool {
	b := s.buf[s.r:s.w]
	n, err := measure(b)
	switch {
	case err == errNoHeader && s.preface == HeaderOptional:
	case err == nil && n == 0:
		if !s.begun && len(b) > 0 {
			s.begun = true
			s.introduce()
		}
		return false
	case err == nil:
		err = s.believe(b[:n])
		s.r += n
		fallthrough
	default:
		if err != nil {
			s.p.log.Info("client disconnected: its PROXY header cannot be used", "client", s.id, "addr", s.farText(), "err", err)
			s.kill()
			return false
		}
	}
	s.preface = HeaderOff
	s.introduce()
	return true
}

// believe takes the client's address from a complete header.
func (s *session) believe(header []byte) error {
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(header), headerV1Max+1))
	if err != nil {
		return err
	}
	if h.Command.IsLocal() {
		return nil // the load balancer itself, which looks whether somebody is here
	}
	far, near, ok := h.TCPAddrs()
	if !ok {
		return nil // of a kind that has no address
	}
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	s.vis.far, s.vis.near = plain(far), plain(near)
	return nil
}

func plain(a *net.TCPAddr) netip.AddrPort {
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
