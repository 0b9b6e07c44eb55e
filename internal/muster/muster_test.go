// SPDX-License-Identifier: Apache-2.0

package muster

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	slotmap "redoubt/internal/slots"
)

// id is one of a server: a digit, forty times.
func id(n int) string { return strings.Repeat(fmt.Sprint(n), 40) }

func member(n int) Member {
	return Member{ID: id(n), Name: fmt.Sprintf("s%d/n%d", n, n), ShardID: id(n), Addr: fmt.Sprintf("10.0.0.%d:7000", n), BusPort: 17000, Primary: true, Up: true}
}

func line(n int, flags, rest string) string {
	return fmt.Sprintf("%s 10.0.0.%d:7000@17000 %s - 0 0 %d connected %s\n", id(n), n, flags, n, rest)
}

// scene is what server 1 of a cluster of three sees: text is its CLUSTER NODES.
func scene(t *testing.T, text string) Scene {
	t.Helper()
	view, _, err := slotmap.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return Scene{
		Now: time.Minute, Roster: []Member{member(1), member(2), member(3)}, Whole: true, View: view, Moving: &slotmap.Set{},
		Slots: map[string]slotmap.Set{id(1): slotmap.SetOf([2]int{0, 5460}), id(2): slotmap.SetOf([2]int{5461, 10922}), id(3): slotmap.SetOf([2]int{10923, 16383})},
	}
}

var (
	one   = line(1, "myself,master", "0-5460")
	two   = line(2, "master", "5461-10922")
	three = line(3, "master", "10923-16383")
)

// said are the steps in short.
func said(steps []Step) string {
	var out []string
	for _, s := range steps {
		switch s.Do {
		case Meet:
			out = append(out, fmt.Sprintf("meet %s %d %d", s.Host, s.Port, s.BusPort))
		case Forget:
			out = append(out, "forget "+s.ID[:1])
		case Stable:
			out = append(out, fmt.Sprint("stable ", s.Slot))
		default:
			out = append(out, string(s.Do))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// old are memories of oddities that have been there for a minute.
func old(s Scene) Memory {
	was := s
	was.Now = time.Second
	return Remember(Memory{Belonged: true}, was)
}

func TestWhatAServerIsTold(t *testing.T) {
	stranger := line(9, "slave", "")
	for name, c := range map[string]struct {
		text   string
		change func(*Scene)
		want   string
	}{
		"everybody is known":              {one + two + three, nil, ""},
		"one is not known":                {one + two, nil, "meet 10.0.0.3 7000 17000"},
		"one that is not there":           {one + two, func(s *Scene) { s.Roster[2].Up = false }, ""},
		"already meeting":                 {one + two + strings.Replace(line(3, "handshake", ""), id(3), id(8), 1), nil, ""},
		"without an address":              {one + two + line(3, "master,noaddr", "10923-16383"), nil, "meet 10.0.0.3 7000 17000"},
		"moved, and not reached":          {one + two + strings.Replace(three, "connected", "disconnected", 1), func(s *Scene) { s.Roster[2].Addr = "10.0.0.7:7000" }, "meet 10.0.0.7 7000 17000"},
		"moved, by gossip, and reached":   {one + two + three, func(s *Scene) { s.Roster[2].Addr = "10.0.0.7:7000" }, ""},
		"a stranger":                      {one + two + three + stranger, nil, "forget 9"},
		"a stranger that has just come":   {one + two + three + stranger, func(s *Scene) { s.Memory = Remember(Memory{}, *s) }, ""},
		"a stranger, perhaps":             {one + two + three + stranger, func(s *Scene) { s.Whole = false; s.Memory = Memory{} }, ""},
		"a stranger with slots":           {line(1, "myself,master", "0-5459") + two + three + line(9, "master", "5460"), nil, ""},
		"whom it follows":                 {strings.Replace(line(1, "myself,slave", ""), " - ", " "+id(9)+" ", 1) + two + three + line(9, "master", ""), nil, ""},
		"it has left":                     {one + two + three, func(s *Scene) { s.Roster = s.Roster[1:] }, "forget 2, forget 3"},
		"it has left, and would be heard": {one + two + three, func(s *Scene) { s.Roster, s.Spreads = s.Roster[1:], true }, ""},
		"it never was there":              {one + two + three, func(s *Scene) { s.Roster = s.Roster[1:]; s.Memory.Belonged = false }, ""},
		"an empty import":                 {line(1, "myself,master", "0-5460 [7000-<-"+id(2)+"]") + two + three, func(s *Scene) { s.Copies = map[int]Copies{7000: {Known: true}} }, "stable 7000"},
		"an import with keys":             {line(1, "myself,master", "0-5460 [7000-<-"+id(2)+"]") + two + three, func(s *Scene) { s.Copies = map[int]Copies{7000: {Known: true, Here: 1}} }, ""},
		"an import that was agreed":       {line(1, "myself,master", "0-5460 [7000-<-"+id(2)+"]") + two + three, func(s *Scene) { s.Copies = map[int]Copies{7000: {Known: true}}; s.Moving.Add(7000) }, ""},
		"an import, moves are not known":  {line(1, "myself,master", "0-5460 [7000-<-"+id(2)+"]") + two + three, func(s *Scene) { s.Copies = map[int]Copies{7000: {Known: true}}; s.Moving = nil }, ""},
		"an export with all keys":         {line(1, "myself,master", "0-5460 [7->-"+id(2)+"]") + two + three, func(s *Scene) { s.Copies = map[int]Copies{7: {Known: true, Here: 3}} }, "stable 7"},
		"an export with keys elsewhere":   {line(1, "myself,master", "0-5460 [7->-"+id(2)+"]") + two + three, func(s *Scene) { s.Copies = map[int]Copies{7: {Known: true, Here: 3, Other: 1}} }, ""},
		"an export nobody was asked of":   {line(1, "myself,master", "0-5460 [7->-"+id(2)+"]") + two + three, nil, ""},
		"down, and all primaries there":   {one + two + three, func(s *Scene) { s.Down = true; s.Memory.Down = time.Second }, "hurry"},
		"down, and a primary away":        {one + two + three, func(s *Scene) { s.Down = true; s.Memory.Down = time.Second; s.Roster[1].Up = false }, ""},
		"down for a moment":               {one + two + three, func(s *Scene) { s.Down = true; s.Memory.Down = s.Now - time.Second }, ""},
		"hurried, and well":               {one + two + three, func(s *Scene) { s.Hasty = true }, "calm"},
		"hurried in vain":                 {one + two + three, func(s *Scene) { s.Hasty, s.Down = true, true; s.Memory.Hasty = s.Now - 11*time.Second }, "calm"},
		"hurried in vain a moment ago":    {one + two + three, func(s *Scene) { s.Down = true; s.Memory.Down = time.Second; s.Memory.Calmed = s.Now - time.Second }, ""},
		"hurried, and a primary was lost": {one + two + three, func(s *Scene) { s.Hasty, s.Down = true, true; s.Roster[1].Up = false }, "calm"},
	} {
		s := scene(t, c.text)
		s.Memory = old(s)
		if c.change != nil {
			c.change(&s)
		}
		if got := said(Next(s)); got != c.want {
			t.Errorf("%s: told %q, want %q", name, got, c.want)
		}
	}
}

func TestWhatIsFoundHasANameAndSaysWhoActs(t *testing.T) {
	for want, c := range map[string]struct {
		text   string
		change func(*Scene)
		person bool
	}{
		"":               {one + two + three, nil, false},
		"ghost":          {one + two + three + line(9, "master,fail,noaddr", ""), nil, false},
		"unknown-server": {line(1, "myself,master", "0-5459") + two + three + line(9, "master", "5460"), func(s *Scene) { s.Slots[id(1)] = slotmap.SetOf([2]int{0, 5459}) }, true},
		"unmet":          {one + two + three, func(s *Scene) { s.Roster = append(s.Roster, member(4)) }, false},
		"other-address":  {one + two + three, func(s *Scene) { s.Roster[2].BusPort = 17001 }, true},
		"moved":          {one + two + strings.Replace(three, "connected", "disconnected", 1), func(s *Scene) { s.Roster[2].Addr = "10.0.0.7:7000" }, false},
		"unlinked":       {one + two + strings.Replace(three, "connected", "disconnected", 1), nil, true},
		"slots-differ":   {one + line(2, "master", "5461-10923") + line(3, "master", "10924-16383"), nil, false},
		"slots-unowned":  {one + two + line(3, "master", "10924-16383"), nil, false},
		"epoch-tie":      {one + two + strings.Replace(three, " 3 connected", " 2 connected", 1), nil, false},
		"open-slot":      {line(1, "myself,master", "0-5460 [7->-"+id(2)+"]") + two + three, func(s *Scene) { s.Copies = map[int]Copies{7: {Known: true, Other: 2}} }, true},
		"no-replica": {one + two + three, func(s *Scene) {
			m := member(1)
			m.ID, m.Primary, m.Up = id(4), false, false
			s.Roster = append(s.Roster, m)
			s.View = append(s.View, slotmap.Node{ID: id(4), Host: "10.0.0.1", Port: 7000, BusPort: 17000, Replica: true, Of: id(1)})
		}, true},
		"follows-other": {one + two + three + strings.Replace(line(4, "slave", ""), " - ", " "+id(2)+" ", 1), func(s *Scene) {
			m := member(4)
			m.ShardID, m.Primary = id(1), false
			s.Roster = append(s.Roster, m)
		}, false},
		"cluster-down": {one + two + three, func(s *Scene) { s.Down = true; s.Roster[1].Up = false }, true},
	} {
		s := scene(t, c.text)
		s.Memory = old(s)
		if c.change != nil {
			c.change(&s)
		}
		var names []string
		for _, f := range Findings(s) {
			names = append(names, f.Name)
			if (f.Person != "") != c.person || f.Person == "" && f.Does == "" {
				t.Errorf("%s: %+v", want, f)
			}
		}
		if got := strings.Join(names, ", "); got != want {
			t.Errorf("found %q, want %q", got, want)
		}
	}
}

func server(t *testing.T, text string) Server {
	t.Helper()
	view, _, err := slotmap.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	self, _ := view.Self()
	return Server{Addr: self.Addr(), Version: "redis 7.0.15", Number: 700, LinkUp: true, Auth: "pw", View: view}
}

// whole are the three servers of a cluster that is well.
func whole(t *testing.T) []Server {
	t.Helper()
	var out []Server
	for _, self := range []int{1, 2, 3} {
		text := strings.Replace(one+two+three, "myself,", "", 1)
		out = append(out, server(t, strings.Replace(text, fmt.Sprintf("10.0.0.%d:7000@17000 ", self), fmt.Sprintf("10.0.0.%d:7000@17000 myself,", self), 1)))
	}
	return out
}

func TestWhatCannotBeAdopted(t *testing.T) {
	if why := Adoptable(whole(t), "pw"); why != nil {
		t.Fatalf("a cluster that is well: %q", why)
	}
	for want, change := range map[string]func(s []Server) []Server{
		"does not answer":       func(s []Server) []Server { return s[:2] },
		"too old":               func(s []Server) []Server { s[1].Number = 602; return s },
		"CLUSTERDOWN":           func(s []Server) []Server { s[1].Down = true; return s },
		"loading":               func(s []Server) []Server { s[1].Loading = true; return s },
		"psync":                 func(s []Server) []Server { s[1].NoSync = true; return s },
		"masterauth":            func(s []Server) []Server { s[1].Auth = ""; return s },
		"masteruser":            func(s []Server) []Server { s[1].AuthUser = "x"; return s },
		"do not agree":          func(s []Server) []Server { s[2].View[1].Slots = slotmap.SetOf([2]int{5461, 10921}); return s },
		"marked as moving":      func(s []Server) []Server { s[0].View[0].Migrating = map[int]string{5: id(2)}; return s },
		"does not reach":        func(s []Server) []Server { s[0].View[1].Linked = false; return s },
		"nobody has slots 5000": func(s []Server) []Server { return without(s, 5000) },
	} {
		why := strings.Join(Adoptable(change(whole(t)), "pw"), "\n")
		if !strings.Contains(why, want) {
			t.Errorf("%s: said %q", want, why)
		}
	}
	if got := Shards(whole(t)[2].View); len(got) != 3 || got[0].Primary.ID != id(1) || got[2].Primary.ID != id(3) {
		t.Errorf("shards: %+v", got)
	}
}

// without takes a slot from everybody.
func without(servers []Server, slot int) []Server {
	for _, s := range servers {
		for i := range s.View {
			s.View[i].Slots = s.View[i].Slots.Minus(slotmap.SetOf([2]int{slot, slot}))
		}
	}
	return servers
}

// TestALoweredTimeoutIsGivenUp: what was seen of one server over time.
func TestALoweredTimeoutIsGivenUp(t *testing.T) {
	s, m := scene(t, one+two+three), Memory{}
	var said []Kind
	for at := time.Second; at <= 90*time.Second; at += time.Second {
		s.Now, s.Down = at, true
		m = Remember(m, s)
		s.Memory = m
		for _, step := range Next(s) {
			said = append(said, step.Do)
			s.Hasty = step.Do == Hurry
		}
	}
	if want := []Kind{Hurry, Calm, Hurry, Calm}; !slices.Equal(said, want) {
		t.Errorf("told %v, want %v", said, want)
	}
	s.Down = false
	if m = Remember(m, s); m.Calmed != 0 || m.Down != 0 {
		t.Errorf("it serves, and %+v is remembered", m)
	}
}
