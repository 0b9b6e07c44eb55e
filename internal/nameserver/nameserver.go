// SPDX-License-Identifier: Apache-2.0

// Package nameserver answers DNS for one zone: where the primary, the replicas and the proxies of a deployment are. It is
// authoritative for that zone and knows no other; it asks nobody else and keeps nothing.
//
// Its invariant: each answer is what the board may announce at that moment, so that a primary is named under a good lease only, and
// names that exist without an address now are empty, not unknown. Goroutines, all inside Run: one for each transport, one for
// each TCP connection and one for each datagram under way, all bounded, and one that looks up the names of hosts.
package nameserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"redoubt/internal/clock"
	"redoubt/internal/view"
)

// The bounds of the face.
const (
	answersMax  = 256             // datagrams that are answered at once; further ones are dropped, and the client asks again
	tcpMax      = 64              // connections; further ones wait in the kernel's queue
	tcpQueries  = 128             // on one connection
	tcpIdle     = 8 * time.Second // without a question
	datagramMax = 1232            // bytes of an answer over UDP, whatever the client offers: no fragments
	shutdown    = time.Second
)

// Options are what the face needs.
type Options struct {
	Listen string        // host:port, UDP and TCP
	Zone   string        // like redis.example.com
	TTL    time.Duration // of all answers, in whole seconds
	Host   string        // the name or address at which others reach this member
	Member string
	Board  *view.Board // that runs
	Clock  clock.Clock
	Log    *slog.Logger
}

// Server is the face.
type Server struct {
	o        Options
	zone     string // in lower case, with the final dot
	udp      net.PacketConn
	tcp      net.Listener
	hosts    *hosts
	free     chan struct{} // places for datagrams
	serial   atomic.Uint32
	turn     atomic.Uint32 // which of several addresses comes first
	answered [3]atomic.Uint64
}

// What became of questions.
const (
	gaveAnswer = iota
	gaveNothing
	gaveError
)

// New listens and returns the face; nothing is answered before Run.
func New(o Options) (*Server, error) {
	if o.Board == nil || o.Clock == nil || o.Log == nil || o.Zone == "" {
		return nil, errors.New("nameserver: Board, Clock, Log and Zone are required")
	}
	s := &Server{o: o, zone: dns.CanonicalName(o.Zone), hosts: newHosts(), free: make(chan struct{}, answersMax)}
	var err error
	if s.tcp, err = net.Listen("tcp", o.Listen); err != nil {
		return nil, fmt.Errorf("listen for DNS on %s: %w", o.Listen, err)
	}
	at := s.tcp.Addr().String() // the same port, also where it was left to the kernel
	if s.udp, err = net.ListenPacket("udp", at); err != nil {
		s.tcp.Close()
		return nil, fmt.Errorf("listen for DNS on %s: %w", at, err)
	}
	s.serial.Store(uint32(o.Clock.Now().Unix()))
	return s, nil
}

// Addr returns where the face listens.
func (s *Server) Addr() string { return s.udp.LocalAddr().String() }

// Stats counts questions by what they were answered with: addresses or the like, nothing, an error.
func (s *Server) Stats() (answers, empty, refused uint64) {
	return s.answered[gaveAnswer].Load(), s.answered[gaveNothing].Load(), s.answered[gaveError].Load()
}

// Run answers until ctx ends, and returns when all questions have been answered.
func (s *Server) Run(ctx context.Context) error {
	follow, cancel := context.WithCancel(ctx)
	looked := make(chan struct{})
	go func() { defer close(looked); s.follow(follow) }()
	defer func() { cancel(); <-looked }()

	servers := []*dns.Server{
		{PacketConn: s.udp, Handler: dns.HandlerFunc(s.datagram), UDPSize: datagramMax},
		{Listener: netutil.LimitListener(s.tcp, tcpMax), Handler: dns.HandlerFunc(s.stream), MaxTCPQueries: tcpQueries, ReadTimeout: tcpIdle, IdleTimeout: func() time.Duration { return tcpIdle }},
	}
	ended, started := make(chan error, len(servers)), make(chan struct{}, len(servers))
	for _, d := range servers {
		d.NotifyStartedFunc = func() { started <- struct{}{} }
		go func() { ended <- d.ActivateAndServe() }()
	}
	var err error
	left := len(servers)
	for up := 0; up < len(servers) && err == nil; { // one that has not begun cannot be ended
		select {
		case <-started:
			up++
		case err = <-ended:
			left--
		}
	}
	if err == nil {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case err = <-ended:
			left--
		}
	}
	grace, end := context.WithTimeout(context.WithoutCancel(ctx), shutdown)
	defer end()
	for _, d := range servers {
		_ = d.ShutdownContext(grace) // it has ended already, or does so now
	}
	s.udp.Close()
	s.tcp.Close()
	for ; left > 0; left-- {
		<-ended
	}
	if ctx.Err() == nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	return ctx.Err()
}

// follow keeps the serial number and the addresses of hosts current.
func (s *Server) follow(ctx context.Context) {
	again := time.NewTicker(hostsEvery)
	defer again.Stop()
	for {
		next := s.o.Board.Next()
		s.hosts.look(ctx, append(hostsOf(s.o.Board.Look()), s.o.Host))
		select {
		case <-ctx.Done():
			return
		case <-next:
			s.serial.Store(max(s.serial.Load()+1, uint32(s.o.Clock.Now().Unix())))
		case <-again.C:
		}
	}
}

func (s *Server) datagram(w dns.ResponseWriter, q *dns.Msg) {
	select {
	case s.free <- struct{}{}:
		defer func() { <-s.free }()
	default:
		return
	}
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = min(max(size, int(opt.UDPSize())), datagramMax)
	}
	m := s.answer(q)
	m.Truncate(size)
	s.write(w, m)
}

func (s *Server) stream(w dns.ResponseWriter, q *dns.Msg) {
	m := s.answer(q)
	m.Truncate(dns.MaxMsgSize)
	s.write(w, m)
}

func (s *Server) write(w dns.ResponseWriter, m *dns.Msg) {
	if err := w.WriteMsg(m); err != nil {
		s.o.Log.Debug("answer a DNS question", "err", err)
	}
}

// answer is the whole answer to a question.
func (s *Server) answer(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Compress = true
	opt := q.IsEdns0()
	if opt != nil {
		m.SetEdns0(datagramMax, false)
	}
	switch {
	case opt != nil && opt.Version() != 0:
		m.Rcode = dns.RcodeBadVers
	case q.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
	case len(q.Question) != 1:
		m.Rcode = dns.RcodeFormatError
	default:
		s.resolve(m, q.Question[0])
	}
	switch {
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		s.answered[gaveError].Add(1)
	case len(m.Answer) == 0:
		s.answered[gaveNothing].Add(1)
	default:
		s.answered[gaveAnswer].Add(1)
	}
	return m
}

// resolve fills in what the zone says.
func (s *Server) resolve(m *dns.Msg, q dns.Question) {
	name := strings.ToLower(q.Name)
	if q.Qclass != dns.ClassINET || !dns.IsSubDomain(s.zone, name) || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR {
		m.Rcode = dns.RcodeRefused // not ours, or not to be had here
		return
	}
	m.Authoritative = true
	if q.Qtype == dns.TypeANY { // RFC 8482: a small answer, which resolvers keep
		m.Answer = append(m.Answer, &dns.HINFO{Hdr: s.header(q.Name, dns.TypeHINFO), Cpu: "RFC8482"})
		return
	}
	picture := s.o.Board.Look()
	found, exists := s.find(picture, dns.SplitDomainName(strings.TrimSuffix(name, s.zone)))
	switch {
	case exists && found.unknown:
		m.Authoritative, m.Rcode = false, dns.RcodeServerFailure
		return
	case !exists:
		m.Rcode = dns.RcodeNameError
	default:
		s.fill(m, q, found)
	}
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, s.soa(s.zone))
	}
}

func (s *Server) header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: uint32(s.o.TTL / time.Second)}
}

func (s *Server) soa(name string) dns.RR {
	return &dns.SOA{
		Hdr: s.header(name, dns.TypeSOA), Ns: "ns." + s.zone, Mbox: "hostmaster." + s.zone,
		Serial: s.serial.Load(), Refresh: 60, Retry: 10, Expire: 3600, Minttl: uint32(s.o.TTL / time.Second),
	}
}
