// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"redoubt/internal/mover"
	"redoubt/internal/topo"
)

// The hand-over of a change of the ring: everybody is still, the last keys are copied, and one write of the document makes the next ring the ring.

// errNotStill: the hand-over may succeed the next time.
var errNotStill = errors.New("not everybody could be still")

// handOver changes the ring. If it returns an error the ring is as it was, or a later step finds out.
func (d *ringDriver) handOver(ctx context.Context, p *ringPlan, c *mover.Carrier, tries int) error {
	who, silent, err := d.m.askCrew(ctx, ringQuestion{Who: true}, ringWho)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotStill, err)
	}
	if of := d.primaryOn(p, silent); of != "" {
		return fmt.Errorf("%w: member %s does not answer, and a primary that gives keys away is there", errNotStill, of)
	}
	stamp, err := d.close(ctx, p, who, silent, tries)
	if err != nil {
		return err
	}
	if err := d.exclude(ctx, p, c, silent); err != nil {
		return errors.Join(err, d.open(ctx, stamp))
	}
	if err := d.closed(ctx, p, c, who, silent, stamp); err != nil {
		return errors.Join(err, d.open(ctx, stamp))
	}
	if err := d.flip(ctx, p, stamp); err != nil {
		return err // it may have been written: the next step sees
	}
	d.m.log.Info("the ring has changed for all", "stop", time.Since(d.began), "without", silent)
	_, _, err = d.m.askCrew(ctx, ringQuestion{Look: true}, ringAnswer, silent...)
	return err
}

// close stores that only those who answered may give commands to shards: who reads that and is not among them stops.
func (d *ringDriver) close(ctx context.Context, p *ringPlan, who map[string]ringReply, silent []string, tries int) (stamp uint64, err error) {
	var crew []string
	for _, r := range who {
		crew = append(crew, r.Me)
	}
	slices.Sort(crew)
	done := false
	doc, err := d.b.change(ctx, func(doc *ringDoc) bool {
		if done = doc.Change != nil && doc.Change.Driver == p.me && doc.Change.Stage == ringCopying && !doc.Change.Cancel; done {
			doc.Change.Stage, doc.Change.Crew, doc.Change.Without, doc.Change.Tries = ringClosing, crew, silent, tries
			doc.Stamp++
		}
		return done
	})
	if err == nil && !done {
		err = errNotDriver
	}
	return doc.Stamp, err
}

// exclude waits until members that did not answer can send nothing any more: their leases are of before. What they had sent is ended with their connections,
// on which alone it can be on its way. The others go on meanwhile.
func (d *ringDriver) exclude(ctx context.Context, p *ringPlan, c *mover.Carrier, silent []string) error {
	if len(silent) == 0 {
		return nil
	}
	for until := time.Now().Add(p.lease); time.Now().Before(until); {
		if _, err := c.CatchUp(ctx); err != nil {
			return err
		}
		if err := nap(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return c.Expel(ctx, func(name, user string) bool {
		if name == "" { // a client's user that may not name its connection: whose it is cannot be told
			return user != "default" && !strings.HasPrefix(user, "redoubt-")
		}
		return slices.Contains(silent, whose(name))
	})
}

// closed has everybody be still, and copies what was written last.
func (d *ringDriver) closed(ctx context.Context, p *ringPlan, c *mover.Carrier, who map[string]ringReply, silent []string, stamp uint64) error {
	if _, err := c.CatchUp(ctx); err != nil {
		return err
	}
	if err := c.Acknowledged(ctx); err != nil { // what takes long now does not while everybody waits
		return err
	}
	began := time.Now()
	said, _, err := d.m.askCrew(ctx, ringQuestion{Still: stamp}, ringStillIn, silent...)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotStill, err)
	}
	var not []string
	for id := range who {
		if r := said[id]; !r.Still || r.Me != who[id].Me {
			not = append(not, id+" ("+r.Why+")")
		}
	}
	if len(not) > 0 {
		slices.Sort(not)
		return fmt.Errorf("%w: %s", errNotStill, strings.Join(not, ", "))
	}
	still := time.Since(began)
	if err := c.Drain(ctx); err != nil {
		return err
	}
	drained := time.Since(began)
	err = d.tenures(ctx, p)
	d.m.log.Debug("everybody is still, and everything is copied", "still", still, "drained", drained, "confirmed", time.Since(began))
	d.began = began
	return err
}

// flip makes the next ring the ring, unless somebody has taken the hand-over back.
func (d *ringDriver) flip(ctx context.Context, p *ringPlan, stamp uint64) error {
	done, waited := false, time.Since(d.began)
	_, err := d.b.change(ctx, func(doc *ringDoc) bool {
		if done = doc.Stamp == stamp && doc.Change != nil && doc.Change.Driver == p.me && doc.Change.Stage == ringClosing; done {
			doc.Change.Stage, doc.Change.Crew, doc.Change.Waited = ringSettling, nil, topo.Duration(waited)
			doc.Shards, doc.Change.Other = doc.Change.Other, doc.Shards
			doc.Gen++
			doc.Stamp++
		}
		return done
	})
	if err == nil && !done {
		err = fmt.Errorf("%w: a member has waited for too long", errNotStill)
	}
	return err
}

// primaryOn names one of the members on which a primary is that gives keys away; empty: none is.
func (d *ringDriver) primaryOn(p *ringPlan, members []string) string {
	for _, u := range d.m.all() {
		if id := u.agreedPrimary(); slices.Contains(p.from, u.deploy.ID()) && slices.Contains(members, id) {
			return id
		}
	}
	return ""
}
