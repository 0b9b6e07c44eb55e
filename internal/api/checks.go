// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/topo"
)

// Checks answer load balancers about this member's own node: 200 for yes, 503 for no, and what they went by as JSON. The words are
// Patroni's. They go by the agreed document under this member's lease and by its agent's latest look, never by the controller's
// word, so that they end with the lease, whoever can be reached.

// The ages beyond which a look is no knowledge.
const (
	lookFresh = time.Second
	lookAlive = 10 * time.Second
)

// Standing is what a check went by.
type Standing struct {
	Member string      `json:"member"`
	Shard  string      `json:"shard"`
	Node   topo.NodeID `json:"node,omitempty"` // on this member; empty: none of this shard
	Role   string      `json:"role"`           // "primary" under a good lease, "replica" in sync, or "none"
	State  string      `json:"state"`          // of the server: "up", or a word of the status; "unknown" when nobody looked lately
	Epoch  topo.Epoch  `json:"epoch"`
	Phase  topo.Phase  `json:"phase"`
	Lag    *int64      `json:"lag,omitempty"` // bytes behind the primary, when it was asked for
	Why    string      `json:"why"`           // one sentence

	serving bool // this member may name a primary of the shard
	fresh   bool // the store answers this member
	seenAgo time.Duration
}

// The roles of a standing.
const (
	rolePrimary = "primary"
	roleReplica = "replica"
	roleNone    = "none"
)

// stand is how this member's node of the shard stands now.
func (s *Server) stand(p *part) Standing {
	now := s.o.Clock.Uptime()
	st := Standing{Member: s.o.Member, Shard: p.ID, Node: p.Node, Role: roleNone, State: "unknown"}
	snap := p.View.Load()
	if snap == nil {
		st.Why = "nothing has been agreed about the shard yet"
		return st
	}
	a := snap.Shard.Assigned
	st.Epoch, st.Phase, st.fresh = a.Epoch, a.Phase, snap.Fresh(now)
	st.serving = snap.MayName(a.Primary, now)
	if p.Node == "" || p.Seen == nil {
		st.Why = "there is no data node of this shard on this member"
		return st
	}
	seen, at, ok := p.Seen()
	if st.seenAgo = now - at; !ok || st.seenAgo > lookFresh {
		st.Why = "the agent has not looked at its server lately"
		return st
	}
	st.State = string(seen.Health)
	switch {
	case seen.Health != topo.HealthUp:
		st.Why = fmt.Sprintf("the server is %s", seen.Health)
	case a.Primary == p.Node && a.Phase == topo.PhaseServing && !snap.Leased(now):
		st.Why = "its lease as the primary has ended: the agreed state could not be confirmed in time"
	case snap.MayName(p.Node, now) && seen.Role == topo.RolePrimary && seen.RunID == a.RunID:
		st.Role, st.Why = rolePrimary, fmt.Sprintf("it is the agreed primary of epoch %d", a.Epoch)
	case snap.MayRead(seen):
		st.Role, st.Why = roleReplica, "it is a replica in sync"
	case a.Phase != topo.PhaseServing:
		st.Why = fmt.Sprintf("the shard is %s, not serving", a.Phase)
	default:
		st.Why = "it is neither the agreed primary nor a replica in sync"
	}
	return st
}

// check is one question about a standing; all says that it may be asked about all shards of this member at once.
type check struct {
	names []string
	all   bool
	yes   func(s *Server, st Standing) bool
}

func checks() []check {
	is := func(roles ...string) func(*Server, Standing) bool {
		return func(_ *Server, st Standing) bool { return slices.Contains(roles, st.Role) }
	}
	up := func(_ *Server, st Standing) bool { return st.State == string(topo.HealthUp) }
	return []check{
		{[]string{"primary", "master", "leader", "read-write"}, false, is(rolePrimary)},
		{[]string{"replica"}, false, is(roleReplica)},
		{[]string{"read-only"}, false, is(rolePrimary, roleReplica)},
		{[]string{"healthy", "health"}, true, up},
		{[]string{"liveness"}, true, func(_ *Server, st Standing) bool { return st.Node == "" || st.seenAgo < lookAlive }},
		{[]string{"readiness"}, true, func(_ *Server, st Standing) bool {
			return st.Role != roleNone || st.Node == "" && st.fresh
		}},
		{[]string{"proxy"}, true, func(s *Server, st Standing) bool { return s.o.Proxy && st.serving }},
	}
}

// checkRoutes adds the checks, each for the shard that ?shard= names and under /shards/{shard}/.
func (s *Server) checkRoutes(m *routes) {
	for _, c := range checks() {
		for _, name := range c.names {
			for _, path := range []string{"/" + name, "/shards/{shard}/" + name} {
				m.HandleFunc("GET "+path, s.answerCheck(c)) // and HEAD
				m.HandleFunc("OPTIONS "+path, s.answerCheck(c))
			}
		}
	}
}

func (s *Server) answerCheck(c check) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		about := s.known()
		if name := r.PathValue("shard"); name != "" || !c.all || r.URL.Query().Get("shard") != "" {
			if name != "" {
				q := r.URL.Query()
				q.Set("shard", name)
				r.URL.RawQuery = q.Encode()
			}
			p, err := s.one(r)
			if err != nil {
				reply(w, nil, err)
				return
			}
			about = []*part{p}
		}
		yes, asked, bad := s.judge(c, about)
		if most := r.URL.Query().Get("lag"); most != "" && bad == nil && yes && asked.Role == roleReplica {
			asked, yes, bad = s.judgeLag(r, about[0], asked, most)
		}
		if bad != nil {
			reply(w, nil, bad)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Cache-Control", "no-store")
		if !yes {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		if r.Method == http.MethodGet {
			_ = json.NewEncoder(w).Encode(asked)
		}
	}
}

// judge asks about shards, and returns the standing that decided. Of several, those without a node here count only if there are
// no others.
func (s *Server) judge(c check, about []*part) (bool, Standing, error) {
	var all []Standing
	for _, p := range about {
		all = append(all, s.stand(p))
	}
	if slices.ContainsFunc(all, func(st Standing) bool { return st.Node != "" }) && !slices.Contains(c.names, "proxy") {
		all = slices.DeleteFunc(all, func(st Standing) bool { return st.Node == "" })
	}
	for _, st := range all {
		if !c.yes(s, st) {
			if slices.Contains(c.names, "proxy") {
				st.Why = s.whyNoProxy(st)
			}
			return false, st, nil
		}
	}
	return true, all[0], nil
}

func (s *Server) whyNoProxy(st Standing) string {
	if !s.o.Proxy {
		return "there is no proxy on this member"
	}
	return fmt.Sprintf("shard %s has no primary that this member knows of: commands wait", st.Shard)
}

// judgeLag compares how far behind the primary the replica is with what the request allows.
func (s *Server) judgeLag(r *http.Request, p *part, st Standing, most string) (Standing, bool, error) {
	limit, err := bytesOf(most)
	if err != nil {
		return st, false, &Error{http.StatusBadRequest, "bad-request", err.Error()}
	}
	status, err := p.gather.status(r.Context())
	if err != nil {
		return st, false, err
	}
	for _, d := range status.Deployments {
		for _, sh := range d.Shards {
			for _, n := range sh.Nodes {
				if n.ID == st.Node {
					st.Lag = n.Lag
				}
			}
		}
	}
	switch {
	case st.Lag == nil:
		st.Why = "how far it is behind the primary is not known"
		return st, false, nil
	case *st.Lag > limit:
		st.Why = fmt.Sprintf("it is %d bytes behind the primary, more than %d", *st.Lag, limit)
		return st, false, nil
	}
	return st, true, nil
}

// bytesOf reads a size: 1048576, 512kb, 16MB, 1gb.
func bytesOf(text string) (int64, error) {
	number, unit := strings.ToLower(strings.TrimSpace(text)), int64(1)
	for _, u := range []struct {
		suffix string
		size   int64
	}{{"kb", 1 << 10}, {"mb", 1 << 20}, {"gb", 1 << 30}, {"b", 1}} {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = rest, u.size
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, fmt.Errorf("lag=%q is not a size: write for example 1048576, 512kb or 16mb", text)
	}
	return n * unit, nil
}
