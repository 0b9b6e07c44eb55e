// SPDX-License-Identifier: Apache-2.0

package redistest

import (
	"fmt"
	"testing"

	"redoubt/internal/topo"
)

func TestTheFakeKeepsTheContractOfANode(t *testing.T) {
	Run(t, func(*testing.T) func() Seat {
		w := NewNet(nil)
		count := 0
		return func() Seat {
			count++
			f := w.Add(fmt.Sprintf("fake:%d", count))
			return Seat{
				Node: f, Addr: f.Addr(), Crash: f.Crash,
				Write: func(key string) error { _, err := f.Write(key); return err },
				Stop:  func() { f.SetHealth(topo.HealthStopped) },
				Cont:  func() { f.SetHealth(topo.HealthUp) },
			}
		}
	})
}

func TestTheFakeKeepsTheContractOfAJournal(t *testing.T) {
	RunWithJournal(t, func(*testing.T) func() Seat {
		w := NewNet(nil)
		return func() Seat {
			f := w.Add("fake:1")
			f.SetKeep(true)
			return Seat{Node: f, Addr: f.Addr(), Crash: f.Crash, Write: func(key string) error { _, err := f.Write(key); return err }}
		}
	})
}

func TestASilentCutKeepsTheLinkUpAndTheReplicaBehind(t *testing.T) {
	w := NewNet(nil)
	p, r := w.Add("p:1"), w.Add("r:1")
	seat := func(f *Fake) Seat { return Seat{Node: f, Addr: f.Addr()} }
	promote(t, seat(p))
	link(t, seat(r), seat(p))
	w.Cut("p:1", "r:1", true)
	offset, err := p.Write("a")
	if err != nil || w.Attached(p, offset) != 0 || r.Holds("a") {
		t.Fatal("a write passed a cut")
	}
	if o := see(t, seat(r), "an answer", up); !o.LinkUp {
		t.Fatal("a silent cut was seen")
	}
	w.Cut("p:1", "r:1", false)
	if w.Attached(p, offset) != 1 || !r.Holds("a") || r.FullSyncs != 1 {
		t.Fatal("the replica did not catch up")
	}
}
