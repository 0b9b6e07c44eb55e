// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"redoubt/internal/agent"
	"redoubt/internal/config"
	"redoubt/internal/coord"
	"redoubt/internal/muster"
	"redoubt/internal/redisd"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

// surveyTime is for one server of a cluster that is to be adopted, or handed back.
const surveyTime = 2 * time.Second

// SurveyCluster asks the servers at these addresses, and all others that the first one to answer knows, what they are. A server that
// does not answer is named in the error, beside what the others say.
func SurveyCluster(ctx context.Context, l redisd.Login, addrs ...string) ([]redisd.Survey, error) {
	var out []redisd.Survey
	var errs []error
	asked := map[string]bool{}
	for i := 0; i < len(addrs); i++ {
		if asked[addrs[i]] {
			continue
		}
		asked[addrs[i]] = true
		one, cancel := context.WithTimeout(ctx, surveyTime)
		s, err := redisd.SurveyServer(one, addrs[i], l)
		cancel()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if self, ok := s.View.Self(); ok && !slices.ContainsFunc(out, func(o redisd.Survey) bool { id, _ := o.View.Self(); return id.ID == self.ID }) {
			out = append(out, s)
			asked[self.Addr()] = true
		}
		for _, n := range s.View {
			if !n.Handshake && !n.NoAddr && !n.Myself {
				addrs = append(addrs, n.Addr())
			}
		}
	}
	return out, errors.Join(errs...)
}

// Findings turns surveys into what decides whether a cluster can be adopted.
func Findings(surveys []redisd.Survey) []muster.Server {
	var out []muster.Server
	for _, s := range surveys {
		self, _ := s.View.Self()
		out = append(out, muster.Server{
			NoIP: net.ParseIP(self.Host) == nil,
			Addr: s.Addr, Version: s.Version, Number: s.Number, LinkUp: s.LinkUp, Loading: s.Loading, Down: s.Down, NoSync: s.NoSync,
			Auth: s.Settings["masterauth"], AuthUser: s.Settings["masteruser"], View: s.View,
		})
	}
	return out
}

// adopts reports whether the deployment is a cluster that was there before.
func adopts(d config.Deployment) bool {
	return slices.ContainsFunc(d.Shards, func(s config.Shard) bool {
		return slices.ContainsFunc(s.Nodes, func(n config.Node) bool { return n.ServerID != "" })
	})
}

// login is how the servers of an adopted cluster are spoken to from any member.
func (m *member) login() redisd.Login {
	l := redisd.Login{Password: m.deploy.Password}
	if n := m.deploy.Node; n != nil {
		l.Username = n.Username
	}
	return l
}

// inherit takes over a shard of a cluster that serves: what is there becomes what is agreed. Nothing is fenced, nobody is promoted.
// Its order: the servers' own elections are off everywhere before anything is agreed, and what was there before is noted first. It
// is an error, and is tried again, as long as a member or a server is missing, or the cluster is not well.
func (u *unit) inherit(ctx context.Context) (topo.Assigned, error) {
	if u.member.store.Controller() != u.member.o.Config.Member.ID {
		return topo.Assigned{}, errElsewhere
	}
	t, err := u.member.takeOver(ctx)
	if err != nil {
		return topo.Assigned{}, err
	}
	a, err := u.asFound(t.servers)
	if err == nil && !t.open {
		var secret [16]byte
		_, _ = rand.Read(secret[:]) // never fails, by its contract
		a.Secret = topo.Secret(hex.EncodeToString(secret[:]))
	}
	return a, err
}

// errElsewhere: one member, the controller, takes all shards over.
var errElsewhere = errors.New("the controller does it")

// taking is a cluster whose own elections are off.
type taking struct {
	servers []redisd.Survey
	open    bool          // a server does not let its access rules be changed
	at      time.Duration // uptime
}

// takenFor is how long the shards of one cluster may go by one survey.
const takenFor = time.Second

// takeOver switches the elections of a cluster off that is well, and returns what its servers say afterwards. The shards share it.
func (m *member) takeOver(ctx context.Context) (*taking, error) {
	m.takes.Lock()
	defer m.takes.Unlock()
	if t := m.taken; t != nil && m.clock.Uptime()-t.at < takenFor {
		return t, nil
	}
	if err := m.allThere(ctx); err != nil {
		return nil, err
	}
	before, err := m.wellSurvey(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.noteFound(ctx, before); err != nil {
		return nil, err
	}
	t, err := m.disarm(ctx, before)
	if err != nil {
		m.rearm(ctx, before)
		return nil, err
	}
	m.taken = t
	return t, nil
}

// disarm switches the servers' elections off, and looks once more: an election that was under way is seen now, and none can come
// any more.
func (m *member) disarm(ctx context.Context, before []redisd.Survey) (*taking, error) {
	t := &taking{}
	for _, s := range before {
		if err := redisd.StopElections(ctx, s.Addr, m.login()); err != nil {
			return nil, fmt.Errorf("stop the servers' own elections: %w", err)
		}
		may, err := redisd.MayAdmit(ctx, s.Addr, m.login())
		if err != nil {
			return nil, err
		}
		t.open = t.open || !may // then replication stays open, which the status says
	}
	t.at = m.clock.Uptime()
	var err error
	t.servers, err = m.wellSurvey(ctx)
	return t, err
}

// rearm lets the servers elect again, as they were found, if no shard was taken over: nobody else would.
func (m *member) rearm(ctx context.Context, before []redisd.Survey) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rearmTime)
	defer cancel()
	for _, u := range m.units {
		if _, err := m.store.Get(ctx, topo.KeyShard+u.deploy.ID()); !errors.Is(err, coord.ErrNotFound) {
			return
		}
	}
	found, _, err := m.adopted(ctx)
	if err != nil {
		m.log.Warn("let the servers elect again", "err", err)
		return
	}
	for _, s := range before {
		self, _ := s.View.Self()
		if err := redisd.LetElect(ctx, s.Addr, m.login(), found.Servers[self.ID].Settings); err != nil {
			m.log.Warn("let a server elect again", "addr", s.Addr, "err", err)
		}
	}
}

// rearmTime is for giving a cluster its elections back that could not be taken over.
const rearmTime = 10 * time.Second

// allThere: every member with a server is up. Its agents wait for what is agreed, and a primary without an agent would be failed over.
func (m *member) allThere(ctx context.Context) error {
	beats, err := m.store.All(ctx)
	if err != nil {
		return fmt.Errorf("ask which members are up: %w", err)
	}
	for _, s := range m.deploy.Shards {
		for _, n := range s.Nodes {
			if b, ok := beats[topo.BeatMember+n.ID]; !ok || b.Age > memberQuiet {
				return fmt.Errorf("member %s, which has a server of shard %s, is not up yet", n.ID, s.Name)
			}
		}
	}
	return nil
}

// wellSurvey asks all servers of the cluster, and requires that they are those of the configuration, and well.
func (m *member) wellSurvey(ctx context.Context) ([]redisd.Survey, error) {
	var addrs []string
	for _, s := range m.deploy.Shards {
		for _, n := range s.Nodes {
			addrs = append(addrs, n.Addr)
		}
	}
	surveys, err := SurveyCluster(ctx, m.login(), addrs...)
	if err != nil {
		return nil, err
	}
	if why := muster.Adoptable(Findings(surveys), m.deploy.Password); len(why) > 0 {
		return nil, fmt.Errorf("the cluster is not well: %s", strings.Join(why, "; "))
	}
	if len(surveys) != len(addrs) {
		return nil, fmt.Errorf("the cluster has %d servers, the configuration %d: write it anew (redoubt adopt --cluster)", len(surveys), len(addrs))
	}
	return surveys, nil
}

// asFound is the agreed order that leaves the shard as it is: its primary serves, and its replicas are enrolled once they are seen to
// have what it had.
func (u *unit) asFound(surveys []redisd.Survey) (topo.Assigned, error) {
	book := u.slots.Map()
	var want slots.Set
	if i := book.Index(u.deploy.ID()); i >= 0 {
		for _, r := range book.Ranges(i) {
			want = want.Or(slots.SetOf([2]int{r.From, r.To}))
		}
	}
	nodes := map[string]topo.Node{}
	for _, n := range u.deploy.Spec().Nodes {
		nodes[n.ServerID] = n
	}
	for _, s := range surveys {
		self, _ := s.View.Self()
		n, ours := nodes[self.ID]
		if !ours || self.Replica {
			continue
		}
		if self.Slots != want {
			return topo.Assigned{}, fmt.Errorf("%s has slots %s, and the configuration gives %s to shard %s: write it anew (redoubt adopt --cluster)", s.Addr, self.Slots, want, u.deploy.Shard)
		}
		if s.Addr != n.Addr {
			return topo.Assigned{}, fmt.Errorf("node %s is at %s, and the configuration says %s", n.ID, s.Addr, n.Addr)
		}
		if !s.Backlog {
			return topo.Assigned{}, fmt.Errorf("%s has no replication backlog, so that its position says nothing: it needs a replica first", s.Addr)
		}
		return topo.Assigned{
			Epoch: 1, Phase: topo.PhaseServing, Primary: n.ID, RunID: s.RunID, Reason: "adopted", Why: fmt.Sprintf("%s was the primary of the shard when the cluster was adopted", n.ID),
			History: []topo.HistoryEntry{{Epoch: 1, ReplID: s.Pos.ReplID, Node: n.ID}}, Enrolled: map[topo.NodeID]string{n.ID: s.RunID},
		}, nil
	}
	return topo.Assigned{}, fmt.Errorf("no server of shard %s is a primary", u.deploy.Shard)
}

// noteFound writes down the settings that the servers had, once: whoever comes second finds it done. Passwords are left out: that
// of the deployment is the servers' own (Adoptable).
func (m *member) noteFound(ctx context.Context, surveys []redisd.Survey) error {
	doc := topo.Adopted{Format: topo.Format, Servers: map[string]topo.FoundServer{}}
	for _, s := range surveys {
		self, _ := s.View.Self()
		f := topo.FoundServer{Addr: s.Addr, Auth: s.Settings["masterauth"] != "", Settings: map[string]string{}}
		for name, value := range s.Settings {
			if name != "masterauth" {
				f.Settings[name] = value
			}
		}
		doc.Servers[self.ID] = f
	}
	body, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("note the settings that were found: %w", err)
	}
	_, err = m.store.Swap(ctx, topo.KeyAdopted+m.deploy.Name, body, 0)
	if err != nil && !errors.Is(err, coord.ErrConflict) {
		return fmt.Errorf("note the settings that were found: %w", err)
	}
	return nil
}

// The files that later starts of a member find.
const (
	armedFile    = "adopted-armed"    // in an agent's directory: it has obeyed the agreed state once, and does not wait for it any more
	releasedFile = "adopted-released" // in the member's: its servers are not ours any more
)

// duty is the agent's time: of a server that was adopted it begins when the shard was taken over, and ends when it is handed back. An
// agent that knows no order would fence a primary.
func (u *unit) duty(a *agent.Agent) func(context.Context) error {
	if u.slots == nil || u.deploy.Node.Kind != "attached" {
		return a.Run
	}
	return func(ctx context.Context) error {
		if u.member.handedBack() {
			u.log.Info("the cluster was handed back: its servers are left alone")
			return nil
		}
		if !marked(u.dir("agent"), armedFile) {
			if err := u.firstOrder(ctx); err != nil {
				return err
			}
		}
		serving, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			select {
			case <-u.member.released:
				cancel()
			case <-serving.Done():
			}
		}()
		err := a.Run(serving)
		cancel()
		<-ended
		if ctx.Err() == nil && u.member.handedBack() {
			u.log.Info("the cluster is handed back: its servers are left alone from here on")
			return nil
		}
		return err
	}
}

// firstOrder waits until the shard was taken over, by a read that was confirmed.
func (u *unit) firstOrder(ctx context.Context) error {
	for {
		next := u.view.Next()
		if u.view.Load().Fresh(u.clock.Uptime()) {
			return mark(u.dir("agent"), armedFile)
		}
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// handedBack reports whether the servers are not ours any more.
func (m *member) handedBack() bool {
	select {
	case <-m.released:
		return true
	default:
		return marked(m.o.Config.Member.Dir, releasedFile)
	}
}

func marked(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

// mark leaves a file that later starts of this member find.
func mark(dir, name string) error {
	if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
		return fmt.Errorf("note %s: %w", name, err)
	}
	return nil
}

// keepAdopted watches for the end: once the document says that the cluster was handed back, the agents here stop, and say so.
func (m *member) keepAdopted(ctx context.Context) error {
	tick := time.NewTicker(slotsEvery / 2)
	defer tick.Stop()
	for !m.handedBack() {
		asking, cancel := context.WithTimeout(ctx, surveyTime)
		a, _, err := m.adopted(asking)
		cancel()
		if err == nil && a.Released != nil {
			if err := mark(m.o.Config.Member.Dir, releasedFile); err != nil {
				return err
			}
			close(m.released)
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// adopted reads what the cluster was like.
func (m *member) adopted(ctx context.Context) (topo.Adopted, coord.Rev, error) {
	var a topo.Adopted
	doc, err := m.shared.Get(ctx, topo.KeyAdopted+m.deploy.Name)
	if err != nil {
		return a, 0, err
	}
	if err := json.Unmarshal(doc.Value, &a); err != nil {
		return a, 0, fmt.Errorf("the notes about the adopted cluster cannot be used: %w", err)
	}
	return a, doc.Rev, nil
}

// noOpenSlots refuses to move slots of a cluster that was adopted while one of them is marked as moving without our doing: somebody else's tool
// may be at it, or may have died in it. Keys that it left at the slot's next owner are there alone, and a move would begin by deleting what is there.
func (m *member) noOpenSlots(ctx context.Context) error {
	if !adopts(m.deploy) {
		return nil // on servers of our own nobody else may begin a move
	}
	ours := m.moving()
	if ours == nil {
		return refused("busy", "it is not known yet which slots are on their way")
	}
	for _, u := range m.all() {
		for _, n := range u.roster() {
			if string(n.ID) != u.agreedPrimary() {
				continue
			}
			one, cancel := context.WithTimeout(ctx, surveyTime)
			s, err := redisd.SurveyServer(one, n.Addr, m.login())
			cancel()
			if err != nil {
				return refused("busy", "shard %s cannot be asked whether its slots are being moved: %v", u.deploy.ID(), err)
			}
			self, _ := s.View.Self()
			for _, marks := range []map[int]string{self.Importing, self.Migrating} {
				for slot := range marks {
					if !ours.Has(slot) {
						return refused("open-slot", "slot %d is marked as moving at %s, by somebody else's tool: let that end, or see what `redoubt cluster check` says after ten seconds", slot, n.Addr)
					}
				}
			}
		}
	}
	return nil
}
