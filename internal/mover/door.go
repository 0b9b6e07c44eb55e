// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// door is a server that is made to refuse writes: the primary, or a replica that may take its place.
type door struct {
	Addr string    `json:"addr"`
	Was  []setting `json:"was"` // what is set back to open it again
	shut bool
}

// setting is one of a server's.
type setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// findDoors looks what will have to be changed to close the source, and whether that is allowed. A replica that cannot be asked is left out.
func (g *leg) findDoors(ctx context.Context) error {
	g.doors = nil
	for i, addr := range append([]string{g.from.addr}, g.from.replicas...) {
		d, err := g.findDoor(ctx, addr)
		if err != nil && i == 0 {
			return fmt.Errorf("the source cannot be made to refuse writes (leave it to whoever runs it, with `--source-after leave`): %w", err)
		}
		if err != nil {
			g.o.Note(fmt.Sprintf("the source's replica %s will not refuse writes if it is promoted: %v", addr, err))
			continue
		}
		g.doors = append(g.doors, d)
	}
	return nil
}

// findDoor asks one server. One that has never heard of min-replicas-to-write calls it by its earlier name.
func (g *leg) findDoor(ctx context.Context, addr string) (*door, error) {
	l, err := g.o.Source.At.dial(ctx, addr, "")
	if err != nil {
		return nil, err
	}
	defer l.close()
	prefix := "min-replicas"
	rep, err := l.ask(ctx, "CONFIG", "GET", prefix+"-*")
	if err == nil && len(rep.items) == 0 {
		prefix = "min-slaves"
		rep, err = l.ask(ctx, "CONFIG", "GET", prefix+"-*")
	}
	if err != nil {
		return nil, err
	}
	now := flat(rep)
	lag, write := prefix+"-max-lag", prefix+"-to-write"
	if len(now[lag].body) == 0 || len(now[write].body) == 0 {
		return nil, errors.New("it does not tell its setting min-replicas-to-write")
	}
	for _, d := range g.state.Was { // an earlier process has closed it
		if d.Addr == addr && string(now[write].body) == refusing {
			return &d, nil
		}
	}
	d := &door{Addr: addr, Was: []setting{{write, string(now[write].body)}}}
	if string(now[lag].body) == "0" { // then the other setting means nothing
		d.Was = append(d.Was, setting{lag, "0"})
	}
	for _, s := range d.Was { // is that allowed?
		if _, err := l.ask(ctx, "CONFIG", "SET", s.Name, s.Value); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// remember puts a door among those that are stored.
func (d *door) remember(all []door) []door {
	all = slices.DeleteFunc(all, func(o door) bool { return o.Addr == d.Addr })
	return append(all, *d)
}

// shut has the primary, and whoever may take its place, refuse writes.
func (g *leg) shut(ctx context.Context) error {
	for i, d := range g.doors {
		if d.shut {
			continue
		}
		d.shut = true // also when the answer is lost
		err := g.lock(ctx, d)
		if err != nil && i == 0 {
			return err
		}
		if err != nil {
			g.o.Note(fmt.Sprintf("the source's replica %s does not refuse writes if it is promoted: %v", d.Addr, err))
		}
	}
	return nil
}

func (g *leg) lock(ctx context.Context, d *door) error {
	l := g.src
	if d.Addr != g.from.addr {
		var err error
		if l, err = g.o.Source.At.dial(ctx, d.Addr, ""); err != nil {
			return err
		}
		defer l.close()
	}
	if len(d.Was) > 1 {
		l.add("CONFIG", "SET", d.Was[1].Name, "10")
	}
	l.add("CONFIG", "SET", d.Was[0].Name, refusing)
	_, err := l.must(ctx)
	return err
}
