// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"redoubt/internal/proxy"
	"redoubt/internal/topo"
)

// Handing a member over to a new process of the program on disk (ADR 0016): the old process's part.

// The bounds of a hand-over.
const (
	heirReady   = 10 * time.Second       // for the new process to read its configuration
	heirUp      = 10 * time.Second       // for it to take over, where no primary depends on it
	heirMargin  = 150 * time.Millisecond // before the end of the primary's lease, for the old agent to be back
	heirLeast   = 300 * time.Millisecond // for the new process, of the primary's lease
	resignTime  = 2 * time.Second
	reclaimTime = 10 * time.Second // to open the store again
	idsApart    = 1 << 20          // clients that the old process may still accept while the new one comes up
)

// upgradeOrder asks for a hand-over. answer may be nil.
type upgradeOrder struct {
	answer chan upgradeAnswer // capacity one
}

type upgradeAnswer struct {
	pid int
	err error
}

func (o upgradeOrder) tell(pid int, err error) {
	if o.answer != nil {
		o.answer <- upgradeAnswer{pid, err}
	}
}

// orderUpgrade is the API's way to a hand-over: it returns when the new process is ready to take over.
func (m *member) orderUpgrade(ctx context.Context) (int, error) {
	o := upgradeOrder{make(chan upgradeAnswer, 1)}
	select {
	case m.upgrades <- o:
	default:
		return 0, errors.New("a hand-over is under way")
	}
	select {
	case a := <-o.answer:
		return a.pid, a.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// offer is who the old process is.
type offer struct {
	Format  int    `json:"format"`
	Record  int    `json:"record"` // format of the clients' records
	Member  string `json:"member"`
	Dir     string `json:"dir"`
	PID     int    `json:"pid"`
	Version string `json:"version"`
}

// ready is the new process's answer.
type ready struct {
	Version string `json:"version"`
	Why     string `json:"why,omitempty"` // refused
}

// takeover comes with the lock of the member's directory and the ports, in this order.
type takeover struct {
	Ports   []string `json:"ports"`    // name and address, with a space between them
	FirstID uint64   `json:"first_id"` // of clients that the new process accepts
}

// heir is the new process, as the old one sees it.
type heir struct {
	*hatch
	cmd    *exec.Cmd
	gone   chan struct{} // closed when it has ended and was reaped
	frames chan frame    // closed when it has hung up
	relay  *relay
	files  []*os.File // copies of the ports
	ports  []string
}

// upgrade hands this member over, and reports whether that was done: then this process has nothing left to do.
func (m *member) upgrade(ctx context.Context, o upgradeOrder) bool {
	h, err := m.prepareHeir(ctx)
	if err != nil {
		m.log.Error("not handed over; this process goes on", "err", err)
		o.tell(0, err)
		return false
	}
	defer h.hangUp()
	defer func() { inheritance{h.ports, h.files}.close() }()
	o.tell(h.cmd.Process.Pid, nil)
	began := m.clock.Uptime()
	if err := m.yield(ctx, h); err != nil {
		m.log.Error("the new process did not take over; this one takes everything back", "pid", h.cmd.Process.Pid, "err", err)
		m.takeBack(ctx, h)
		return false
	}
	m.log.Info("the new process has taken over; handing over the clients", "pid", h.cmd.Process.Pid, "took", m.clock.Uptime()-began)
	if err := m.giveClients(ctx, h); err != nil {
		m.log.Error("the new process ended while clients were handed over; this one takes everything back", "pid", h.cmd.Process.Pid, "err", err)
		m.takeBack(ctx, h)
		return false
	}
	return true
}

// mayUpgrade returns why a hand-over would not be hitless now.
func (m *member) mayUpgrade() error {
	s := m.units[0].view.Load()
	switch {
	case m.waits():
		return errors.New("the servers are not Redoubt's at the moment: stop this member, and start it again")
	case m.hall != nil:
		return errors.New("a member with several shards is not handed over in this version: stop it, which moves its primaries to other members, and start it again")
	case len(m.o.Command) == 0:
		return errors.New("this process does not know how it was started")
	case !s.Fresh(m.clock.Uptime()):
		return errors.New("the agreed state could not be confirmed lately: the store has no majority that this member can reach")
	case s.Shard.Assigned.Phase != topo.PhaseServing && s.Shard.Assigned.Phase != topo.PhaseNew:
		return fmt.Errorf("the shard is in phase %s: wait until it serves", s.Shard.Assigned.Phase)
	}
	return nil
}

// prepareHeir starts the new process and waits until it has found nothing wrong. Nothing is changed before.
func (m *member) prepareHeir(ctx context.Context) (*heir, error) {
	if err := m.mayUpgrade(); err != nil {
		return nil, err
	}
	line, theirs, err := newHatch()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	h := &heir{hatch: line, gone: make(chan struct{}), frames: make(chan frame, 1), relay: newRelay(line)}
	h.cmd = exec.Command(m.o.Command[0], m.o.Command[1:]...)
	h.cmd.Stdout, h.cmd.Stderr = os.Stdout, os.Stderr
	h.cmd.ExtraFiles = []*os.File{theirs}
	h.cmd.Env = append(os.Environ(), HatchEnv+"=3")
	if err := h.cmd.Start(); err != nil {
		line.close()
		return nil, fmt.Errorf("start the new process: %w", err)
	}
	go func() { _ = h.cmd.Wait(); close(h.gone) }() // ends with the heir, or with this process
	go h.listen()
	if err := m.introduce(ctx, h); err != nil {
		h.end()
		return nil, err
	}
	if err := m.copyPorts(h); err != nil {
		h.end()
		return nil, err
	}
	return h, nil
}

// introduce tells the new process who this one is, and waits for what it says to that and to its configuration.
func (m *member) introduce(ctx context.Context, h *heir) error {
	c := m.o.Config
	if err := h.send(whatOffer, offer{hatchFormat, proxy.RecordFormat, c.Member.ID, c.Member.Dir, os.Getpid(), m.o.Version}); err != nil {
		return fmt.Errorf("the new process gave no answer: %w", err)
	}
	f, err := m.hear(ctx, h, time.Now().Add(heirReady))
	if err != nil {
		return fmt.Errorf("the new process gave no answer: %w", err)
	}
	var r ready
	if err := f.decode(&r); err != nil {
		return err
	}
	if f.what != whatReady {
		return fmt.Errorf("the new process refused: %s", r.Why)
	}
	m.log.Info("handing this member over to a new process", "pid", h.cmd.Process.Pid, "version", r.Version)
	return nil
}

// listen receives what the new process says, until it hangs up.
func (h *heir) listen() {
	defer close(h.frames)
	for {
		f, err := h.receive()
		if err != nil {
			return
		}
		if f.what == whatAnswer {
			h.relay.answered(f)
			continue
		}
		h.frames <- f // somebody hears, or hangs up
	}
}

// hear waits for the new process's next word.
func (m *member) hear(ctx context.Context, h *heir, until time.Time) (frame, error) {
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case f, ok := <-h.frames:
		if !ok {
			return frame{}, errors.New("it has ended: see the log for its reason")
		}
		return f, nil
	case <-t.C:
		return frame{}, errors.New("it was too slow")
	case mode := <-m.o.Stop:
		m.stopAsked = &mode
		return frame{}, errors.New("this member was asked to stop")
	case <-ctx.Done():
		return frame{}, ctx.Err()
	}
}

// hangUp ends the connection and waits for its listener.
func (h *heir) hangUp() {
	h.close()
	for f := range h.frames {
		f.close()
	}
}

// end makes sure that the new process is gone.
func (h *heir) end() {
	h.hangUp()
	_ = h.cmd.Process.Kill()
	<-h.gone
}

// copyPorts copies every listening socket, so that nobody is refused while neither process listens.
func (m *member) copyPorts(h *heir) error {
	add := func(name, addr string, f *os.File) {
		h.ports = append(h.ports, name+" "+addr)
		h.files = append(h.files, f)
	}
	if p := m.units[0].proxy; p != nil {
		ports, err := p.Ports()
		if err != nil {
			return err
		}
		for _, p := range ports {
			add("proxy", p.Addr, p.File)
		}
	}
	if late := m.lateSentinel.Load(); late != nil {
		m.sentinel = late
	}
	for _, face := range []struct {
		name, addr string
		file       func() (*os.File, error)
		on         bool
	}{
		{"sentinel", m.o.Config.Sentinel.Listen, m.sentinel.File, m.sentinel != nil}, {"api", m.o.Config.API.Listen, m.api.File, m.api != nil},
		{"checks", m.o.Config.API.ChecksListen, m.api.ChecksFile, m.api != nil && m.o.Config.API.ChecksListen != ""},
	} {
		if !face.on {
			continue
		}
		f, err := face.file()
		if err != nil {
			return err
		}
		add(face.name, face.addr, f)
	}
	return nil
}

// yield gives up everything but the proxy, and returns when the new process has taken over. The primary's lease goes on
// meanwhile: if it is about to end, it is an error, so that this agent comes back and carries out what it must.
func (m *member) yield(ctx context.Context, h *heir) error {
	u := m.units[0] // there is one: see mayUpgrade
	m.resign(ctx)
	m.parts.stopAll(m.log, "view", "proxy")
	deadline := time.Now().Add(heirUp)
	if s := u.view.Load(); u.node != nil && string(s.Shard.Assigned.Primary) == u.deploy.Node.ID {
		left := s.ReadStart + s.Shard.Spec.Timing.Lease.D() - m.clock.Uptime() - heirMargin
		if left < heirLeast {
			return fmt.Errorf("the primary's lease ends in %s", left+heirMargin)
		}
		deadline = time.Now().Add(left)
	}
	if u.node != nil {
		if err := u.node.Close(); err != nil {
			return fmt.Errorf("let go of the server: %w", err)
		}
		u.node = nil
	}
	u.source.set(nil)
	err := m.store.Close()
	m.store = nil
	if err != nil {
		return fmt.Errorf("close the store: %w", err)
	}
	var files []int
	for _, f := range append([]*os.File{m.claim.f}, h.files...) {
		fd, err := fdOf(f)
		if err != nil {
			return err
		}
		files = append(files, fd)
	}
	to := takeover{Ports: h.ports}
	if u.proxy != nil {
		to.FirstID = u.proxy.LastID() + idsApart
	}
	if err := h.send(whatGo, to, files...); err != nil {
		return err
	}
	u.source.set(h.relay)
	f, err := m.hear(ctx, h, deadline)
	if err == nil && f.what != whatUp {
		err = fmt.Errorf("it said %c", f.what)
	}
	return err
}

// resign hands control over to another member, so that nobody has to elect one because this one is away.
func (m *member) resign(ctx context.Context) {
	if m.store.Controller() != m.o.Config.Member.ID || m.voters.Load() < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, resignTime)
	defer cancel()
	lease, err := m.store.Campaign(ctx)
	if err == nil {
		err = lease.Release(ctx)
	}
	if err != nil {
		m.log.Warn("handing over control before the hand-over", "err", err)
	}
}

// giveClients hands over client by client. Those that cannot be given away in time are disconnected when this process ends.
func (m *member) giveClients(ctx context.Context, h *heir) error {
	p := m.units[0].proxy
	if p == nil {
		notify(m.log, fmt.Sprintf("MAINPID=%d", h.cmd.Process.Pid))
		return h.send(whatDone, struct{}{})
	}
	for _, s := range p.Scripts() {
		if err := h.send(whatScript, s); err != nil {
			return err
		}
	}
	began, given := m.clock.Uptime(), 0
	ctx, cancel := context.WithTimeout(ctx, m.o.Config.Proxy.UpgradeDrain.D())
	defer cancel()
	hurried := make(chan struct{})
	defer func() { <-hurried }()
	go func() { // ends with ctx
		defer close(hurried)
		select {
		case <-ctx.Done():
		case mode := <-m.o.Stop: // whoever asks this process means the member
			_ = h.cmd.Process.Signal(mode.signal())
			cancel()
		case _, more := <-h.frames:
			if !more {
				cancel()
			}
		}
	}()
	left, err := p.Leave(ctx, func(g proxy.Given) error {
		body, err := g.Record.Encode()
		if err != nil {
			return err
		}
		if len(body) > hatchFrameMax {
			return proxy.ErrTooLarge
		}
		given++
		if g.Upstream >= 0 {
			return h.send(whatClient, jsonText(body), g.Client, g.Upstream)
		}
		return h.send(whatClient, jsonText(body), g.Client)
	})
	cancel()
	if err == nil {
		err = h.send(whatDone, struct{}{})
	}
	if err != nil {
		return err
	}
	p.GaveAway()
	notify(m.log, fmt.Sprintf("MAINPID=%d", h.cmd.Process.Pid))
	m.log.Info("clients were handed over", "given", given, "left", left, "took", m.clock.Uptime()-began)
	return nil
}

// jsonText is encoded already.
type jsonText []byte

// MarshalJSON implements json.Marshaler.
func (t jsonText) MarshalJSON() ([]byte, error) { return t, nil }

// takeBack makes this process the member again. The agent comes first: it must be back before the primary's lease ends.
// The new process is stopped until this agent's guard is in place, because its own would fence a primary whose agent dies.
func (m *member) takeBack(ctx context.Context, h *heir) {
	u := m.units[0]
	_ = h.cmd.Process.Signal(syscall.SIGSTOP)
	if m.store == nil {
		u.source.set(nil)
	}
	m.inherited = inheritance{h.ports, h.files}
	defer func() { m.inherited = inheritance{} }()
	var errs []error
	if u.node != nil { // it was not given up yet, but its agent was
		errs = append(errs, u.node.Close())
		u.node = nil
	}
	errs = append(errs, u.startNode(ctx))
	h.end()
	errs = append(errs, m.claim.write(m.o.File), m.reopen(ctx))
	if err := errors.Join(errs...); err != nil {
		select {
		case m.parts.failed <- fmt.Errorf("take the member back: %w", err):
		default:
		}
		return
	}
	if u.proxy != nil {
		u.proxy.Stay()
	}
	m.log.Info("this process is the member again")
}

// reopen starts again what yield has stopped, but for the node.
func (m *member) reopen(ctx context.Context) error {
	until := time.Now().Add(reclaimTime)
	for m.store == nil {
		s, err := openStore(ctx, m.o.Config, m.clock, m.log)
		if err == nil {
			m.store = s
			break
		}
		if time.Now().After(until) || ctx.Err() != nil {
			return err
		}
		t := time.NewTimer(20 * time.Millisecond)
		<-t.C
	}
	u := m.units[0]
	u.store = m.store
	u.source.set(m.store)
	return m.startRest()
}

func (s StopMode) signal() os.Signal {
	if s == StopHandover {
		return syscall.SIGTERM
	}
	return syscall.SIGINT
}

// inheritance are listening sockets that were open before.
type inheritance struct {
	ports []string // name and address, with a space between them
	files []*os.File
}

// of returns what was inherited under a name, with its addresses.
func (i inheritance) of(name string) []proxy.Port {
	var some []proxy.Port
	for n, p := range i.ports {
		if face, addr, _ := strings.Cut(p, " "); face == name && n < len(i.files) {
			some = append(some, proxy.Port{Addr: addr, File: i.files[n]})
		}
	}
	return some
}

// listener returns the inherited port of a face; nil: there is none at this address.
func (i inheritance) listener(name, addr string) (net.Listener, error) {
	for _, port := range i.of(name) {
		if port.Addr == addr {
			l, err := net.FileListener(port.File)
			if err != nil {
				return nil, fmt.Errorf("take over the port of the %s: %w", name, err)
			}
			return l, nil
		}
	}
	return nil, nil
}

func (i inheritance) close() {
	for _, f := range i.files {
		_ = f.Close()
	}
}
