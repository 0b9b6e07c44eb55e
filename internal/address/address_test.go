// SPDX-License-Identifier: Apache-2.0

package address

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const second = time.Second

func TestDecisions(t *testing.T) {
	held := Doc{Format: docFormat, Term: 2, Epoch: 5, Phase: PhaseHeld, Holder: "n1"}
	moving := Doc{Format: docFormat, Term: 2, Epoch: 6, Phase: PhaseMoving, Holder: "n1"}
	ok := func(id string, epoch uint64, holding bool) seen {
		return seen{Report: Report{Member: id, Epoch: epoch, Holding: holding, Healthy: true}, age: 50 * time.Millisecond}
	}
	with := func(s seen, change func(*seen)) seen { change(&s); return s }
	ill := func(s *seen) { s.Healthy, s.Why = false, "the store does not answer it" }
	old := func(s *seen) { s.age = second }
	for _, c := range []struct {
		name    string
		doc     Doc
		change  func(*facts)
		reports []seen
		want    string // phase, holder, epoch; empty: nothing changes
	}{
		{"a new controller claims the document", held, func(f *facts) { f.term = 3 }, nil, "held n1 5"},
		{"nobody is there", Doc{Term: 2}, nil, nil, ""},
		{"the first healthy one", Doc{Term: 2}, nil, []seen{with(ok("n1", 0, false), ill), ok("n3", 0, false), ok("n2", 0, false)}, "held n2 1"},
		{"all is well", held, nil, []seen{ok("n1", 5, true), ok("n2", 5, false)}, ""},
		{"the holder is silent", held, nil, []seen{with(ok("n1", 5, true), old), ok("n2", 5, false)}, "moving n1 6"},
		{"the holder is ill", held, nil, []seen{with(ok("n1", 5, true), ill), ok("n2", 5, false)}, "moving n1 6"},
		{"but nobody else is healthy", held, nil, []seen{with(ok("n1", 5, true), ill), with(ok("n2", 5, false), ill), with(ok("n3", 5, false), old)}, ""},
		{"a new controller waits for the holder's word", held, func(f *facts) { f.ledFor = second / 2 }, []seen{ok("n2", 5, false)}, ""},
		{"but not for the time of the one before", held, func(f *facts) { f.ledFor, f.vacantFor = 460*time.Millisecond, 2*second }, []seen{ok("n2", 5, false)}, "moving n1 6"},
		{"not without a word, or the lease", moving, nil, []seen{ok("n2", 6, false)}, ""},
		{"a word about an earlier epoch is none", moving, nil, []seen{ok("n1", 5, false), ok("n2", 6, false)}, ""},
		{"it still holds it", moving, nil, []seen{ok("n1", 6, true), ok("n2", 6, false)}, ""},
		{"it let go", moving, nil, []seen{with(ok("n1", 6, false), ill), ok("n2", 6, false)}, "held n2 7"},
		{"an old word does not count", moving, nil, []seen{with(ok("n1", 6, false), old), ok("n2", 6, false)}, ""},
		{"the lease is over", moving, func(f *facts) { f.phaseFor = second }, []seen{ok("n2", 6, false)}, "held n2 7"},
		{"its reads are long past", moving, func(f *facts) { f.readAge, f.readKnown = second, true }, []seen{ok("n2", 6, false)}, "held n2 7"},
		{"its reads are not", moving, func(f *facts) { f.readAge, f.readKnown = second/2, true }, []seen{ok("n2", 6, false)}, ""},
		{"nobody can take it", moving, func(f *facts) { f.phaseFor = second }, nil, ""},
		{"it is the only one that can", moving, func(f *facts) { f.phaseFor = second }, []seen{ok("n1", 6, false)}, "held n1 7"},
		{"a process that stops hands it over at once", held, nil, []seen{with(ok("n1", 5, false), func(s *seen) { ill(s); s.Gone = true }), ok("n2", 5, false)}, "held n2 6"},
		{"its word about an earlier epoch does not", held, nil, []seen{with(ok("n1", 4, false), func(s *seen) { ill(s); s.Gone = true }), ok("n2", 5, false)}, "moving n1 6"},
		{"a process that found itself named begins a new epoch", held, nil, []seen{with(ok("n1", 5, false), func(s *seen) { s.Anew = true }), ok("n2", 5, false)}, "held n1 6"},
	} {
		f := facts{doc: c.doc, term: 2, reports: map[string]seen{}, silence: 900 * time.Millisecond, lease: 800 * time.Millisecond, margin: 100 * time.Millisecond, ledFor: time.Hour}
		for _, s := range c.reports {
			f.reports[s.Member] = s
		}
		if c.name == "a new controller waits for the holder's word" || c.change != nil && strings.Contains(c.name, "the one before") {
			f.ledFor = 0
		}
		if c.change != nil {
			c.change(&f)
		}
		next, changed := decide(f)
		got := ""
		if changed {
			got = fmt.Sprintf("%s %s %d", next.Phase, next.Holder, next.Epoch)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if changed && next.Phase == PhaseHeld && c.doc.Phase == PhaseHeld && next.Holder != c.doc.Holder && !f.reports[c.doc.Holder].Gone {
			t.Errorf("%s: from one holder to another without a word", c.name)
		}
	}
}

// fakeDevice notes what was done to it.
type fakeDevice struct {
	mu        sync.Mutex
	there     bool
	announced int
	fail      error
}

func (d *fakeDevice) Add() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.there = d.there || d.fail == nil
	return d.fail
}

func (d *fakeDevice) Remove() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.there = d.there && d.fail != nil
	return d.fail
}

func (d *fakeDevice) Announce() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.announced++
	return nil
}

func (d *fakeDevice) state() (bool, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.there, d.announced
}

// ticking is a clock that goes with a bubble's.
type ticking struct{ began time.Time }

func (c ticking) Now() time.Time        { return time.Now() }
func (c ticking) Uptime() time.Duration { return time.Since(c.began) + time.Hour }
func (c ticking) Nap(d time.Duration)   { <-time.After(d) }

func TestTheHolderLetsGoByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dev := ticking{time.Now()}, &fakeDevice{there: true} // left behind by an earlier process
		in, words := io.Pipe()
		var out bytes.Buffer
		h := &holder{dev: dev, clock: c, out: &out}
		done := make(chan error, 1)
		go func() { done <- h.run(t.Context(), in) }()
		say := func(format string, args ...any) {
			if _, err := fmt.Fprintf(words, format+"\n", args...); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		synctest.Wait()
		if there, _ := dev.state(); there || out.String() != "released\n" {
			t.Fatalf("at the start: there %v, said %q", there, out.String())
		}
		for range 20 {
			say("hold %d", c.Uptime()+300*time.Millisecond)
			<-time.After(100 * time.Millisecond)
		}
		there, announced := dev.state()
		if !there || announced != 5 {
			t.Errorf("held: there %v, announced %d times within 2 s", there, announced)
		}
		<-time.After(199 * time.Millisecond) // nobody says anything: the member is stopped
		if there, _ := dev.state(); !there {
			t.Error("let go before the time was over")
		}
		<-time.After(2 * time.Millisecond)
		synctest.Wait()
		if there, _ := dev.state(); there || out.String() != "released\nheld\nreleased\n" {
			t.Errorf("after the time: there %v, said %q", there, out.String())
		}
		say("hold %d", c.Uptime()-1) // late
		if there, _ := dev.state(); there {
			t.Error("held on a word that was late")
		}
		say("hold %d", c.Uptime()+time.Second)
		say("release")
		if there, _ := dev.state(); there {
			t.Error("not released")
		}
		say("nonsense")
		if !strings.Contains(out.String(), "error ") {
			t.Errorf("said %q", out.String())
		}
		say("hold %d", c.Uptime()+time.Second)
		words.Close() // the member is dead
		if err := <-done; err != nil {
			t.Error(err)
		}
		if there, _ := dev.state(); there {
			t.Error("held after the member's death")
		}
	})
}

func TestWhatCannotBeRemovedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dev := ticking{time.Now()}, &fakeDevice{}
		in, words := io.Pipe()
		h := &holder{dev: dev, clock: c, out: io.Discard}
		done := make(chan error, 1)
		go func() { done <- h.run(t.Context(), in) }()
		fmt.Fprintf(words, "hold %d\n", c.Uptime()+100*time.Millisecond)
		synctest.Wait()
		dev.mu.Lock()
		dev.fail = errors.New("no")
		dev.mu.Unlock()
		<-time.After(200 * time.Millisecond)
		dev.mu.Lock()
		dev.fail = nil
		dev.mu.Unlock()
		<-time.After(100 * time.Millisecond)
		if there, _ := dev.state(); there {
			t.Error("not tried again")
		}
		words.Close()
		<-done
	})
}

func TestFrames(t *testing.T) {
	mac, _ := net.ParseMAC("02:00:00:00:00:01")
	request := hex.EncodeToString(arpFrame(mac, netip.MustParseAddr("10.0.0.100"), 1))
	if want := "ffffffffffff" + "020000000001" + "0806" + "0001080006040001" + "020000000001" + "0a000064" + "000000000000" + "0a000064"; request != want {
		t.Errorf("ARP %s, want %s", request, want)
	}
	f := neighbourFrame(mac, netip.MustParseAddr("fd00::64"))
	if len(f) != 14+40+32 || hex.EncodeToString(f[:14]) != "333300000001"+"020000000001"+"86dd" || f[14+6] != 58 || f[14+7] != 255 {
		t.Fatalf("frame %x", f)
	}
	var sum uint32 // over the pseudo header and the body, with its checksum, it is all ones
	pseudo := append(append([]byte{}, f[14+8:14+40]...), 0, 0, 0, 32, 0, 0, 0, 58)
	for _, part := range [][]byte{pseudo, f[54:]} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(part[i])<<8 | uint32(part[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum != 0xffff {
		t.Errorf("checksum: %x", sum)
	}
}

func TestRunHolderRefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"--address", "x", "--interface", "lo"}, {"--address", "10.255.255.1/32", "--interface", "no-such-if"}, {"--what"}} {
		if err := RunHolder(context.Background(), args); err == nil {
			t.Errorf("%v was taken", args)
		}
	}
}
