// SPDX-License-Identifier: Apache-2.0

package app

import (
	"testing"
	"time"
)

func TestAShardIsLeftOutAfterItsTimeAndTheLastOneNever(t *testing.T) {
	e := ejection{since: []time.Duration{never, never}, out: make([]bool, 2), after: 2 * time.Second}
	for _, step := range []struct {
		shard   int
		ok      bool
		at      time.Duration
		changes bool
		gone    int
	}{
		{0, false, 0, false, 0},
		{0, false, 1999 * time.Millisecond, false, 0},
		{0, true, 1999 * time.Millisecond, false, 0}, // it was back for a moment: the time begins anew
		{0, false, 2 * time.Second, false, 0},
		{0, false, 4 * time.Second, true, 1},
		{0, false, 5 * time.Second, false, 1},
		{1, false, 5 * time.Second, false, 1},
		{1, false, 9 * time.Second, false, 1}, // the last one stays
		{0, true, 10 * time.Second, true, 0},
		{1, false, 11 * time.Second, true, 1},
	} {
		if got := e.look(step.shard, step.ok, step.at); got != step.changes || len(e.gone()) != step.gone {
			t.Errorf("shard %d, usable %t at %s: changes %t, %d left out", step.shard, step.ok, step.at, got, len(e.gone()))
		}
	}
}
