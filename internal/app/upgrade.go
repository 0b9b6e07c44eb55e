// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"redoubt/internal/api"
	"redoubt/internal/config"
	"redoubt/internal/front"
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
	heirMoment  = 3 * time.Second        // for the leases of all primaries to have most of their time left
	heirPause   = 200 * time.Millisecond // the same, while their agents are away already
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
	Front   int    `json:"front,omitempty"` // several shards: format of the records of the front's clients
}

// formatFor is the format of what is handed over of a member with this configuration.
func formatFor(c config.Config) int {
	if c.Deployments[0].Sharded() {
		return hatchShards
	}
	return hatchFormat
}

// frontRecords is the format of the records of the front's clients; 0: there is no front.
func frontRecords(c config.Config) int {
	if c.Deployments[0].Sharded() {
		return front.RecordFormat
	}
	return 0
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
	m.resign(ctx)
	if err := m.awaitMoment(ctx, heirMoment); err != nil {
		m.log.Error("not handed over; this process goes on", "err", err)
		h.end()
		o.tell(0, err)
		return false
	}
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
	m.endServing()
	return true
}

// mayUpgrade returns why a hand-over would not be hitless now.
func (m *member) mayUpgrade() error {
	switch {
	case m.waits():
		return errors.New("the servers are not Redoubt's at the moment: stop this member, and start it again")
	case len(m.o.Command) == 0:
		return errors.New("this process does not know how it was started")
	case m.hall != nil && m.succeeds.Load(): // see ringBook.beStill
		return errors.New("an earlier process of this member still hands its clients over: wait until it has ended")
	}
	for _, u := range m.all() {
		switch s := u.view.Load(); {
		case !s.Fresh(m.clock.Uptime()):
			return errors.New("the agreed state could not be confirmed lately: the store has no majority that this member can reach")
		case s.Shard.Assigned.Phase != topo.PhaseServing && s.Shard.Assigned.Phase != topo.PhaseNew:
			return fmt.Errorf("shard %s is in phase %s: wait until it serves", u.deploy.ID(), s.Shard.Assigned.Phase)
		}
	}
	if m.keysMove() {
		return errors.New("keys are being moved between shards: wait until that is done, or end it (redoubt reshard pause or cancel)")
	}
	return nil
}

// keysMove reports whether slots are being moved, or a ring is being changed.
func (m *member) keysMove() bool {
	if m.slots != nil {
		j, _, _ := m.jobs.get()
		moves, err := movesOf(m.slots.Map())
		return j != nil && j.State == api.ReshardRunning || len(moves) > 0 || err != nil
	}
	if m.ring == nil {
		return false
	}
	d, _, _, _ := m.ring.get()
	return d.Change != nil
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
	err = m.mayUpgrade() // that took a while
	if err == nil {
		err = m.copyPorts(h)
	}
	if err != nil {
		h.end()
		return nil, err
	}
	return h, nil
}

// introduce tells the new process who this one is, and waits for what it says to that and to its configuration.
func (m *member) introduce(ctx context.Context, h *heir) error {
	c := m.o.Config
	if err := h.send(whatOffer, offer{formatFor(c), proxy.RecordFormat, c.Member.ID, c.Member.Dir, os.Getpid(), m.o.Version, frontRecords(c)}); err != nil {
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

func (s StopMode) signal() os.Signal {
	if s == StopHandover {
		return syscall.SIGTERM
	}
	return syscall.SIGINT
}
