// SPDX-License-Identifier: Apache-2.0

package redistest

import (
	"context"
	"strings"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

const markPrefix = topo.MarkKey + " "

// Mark writes the marker as a value, if another one was written since, or another tenure wrote the last.
func (f *Fake) Mark(ctx context.Context, m topo.Mark) error {
	if err := f.enter(ctx, "Mark"); err != nil {
		return err
	}
	last, _ := f.mark()
	fresh := len(f.data) > 0 && strings.HasPrefix(f.data[len(f.data)-1].value, markPrefix)
	f.net.mu.Unlock()
	if fresh && last.Epoch == m.Epoch {
		return nil
	}
	_, _ = f.Write(markPrefix + m.String()) // what is refused is no marker
	return nil
}

// mark is the latest marker in the data, and how many values are markers.
func (f *Fake) mark() (latest topo.Mark, count int64) {
	for _, e := range f.data {
		if text, is := strings.CutPrefix(e.value, markPrefix); is {
			count++
			latest, _ = topo.ParseMark(text)
		}
	}
	return latest, count
}

// fillMark adds to an observation what a frozen server's data say.
func (f *Fake) fillMark(o *redis.Observation) {
	latest, count := f.mark()
	o.Keys -= count
	if o.Frozen {
		o.Mark = &latest
	}
}
