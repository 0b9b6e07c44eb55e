// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"fmt"
	"testing"
	"time"
)

// TestAServerThatForgetsToStopIsAskedAgain: while it writes its first append-only file, SIGTERM has no effect.
func TestAServerThatForgetsToStopIsAskedAgain(t *testing.T) {
	t.Parallel()
	n := primary(t, func(o *Options) { o.Persistence = PersistNone })
	c := client(t, n.addr, "")
	for i := range 100 {
		must(t, c, "SET", fmt.Sprint("k", i), "v")
	}
	must(t, c, "CONFIG", "SET", "rdb-key-save-delay", "10000") // of each key, in µs: the file takes a second
	must(t, c, "CONFIG", "SET", "appendonly", "yes")
	begun := time.Now()
	if err := n.Stop(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}
