// SPDX-License-Identifier: Apache-2.0

// Package storytest reads the arguments of commands in told scenarios (testdata of failover and converge). It is for tests
// alone, and knows nothing of what a command means. Its invariant: an argument that cannot be read fails the test, one that
// is absent has its default. No goroutines.
package storytest

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"redoubt/internal/topo"
)

// Args are the arguments of one command.
type Args struct {
	T *testing.T
	D *datadriven.TestData
}

// Has reports whether there is such an argument, with or without a value.
func (a Args) Has(key string) bool { return a.D.HasArg(key) }

// List returns the values of an argument: key=(one,two).
func (a Args) List(key string) []string {
	arg, _ := a.D.Arg(key)
	return arg.Vals
}

// Str returns the value of an argument as it was written.
func (a Args) Str(key, def string) string {
	if v := a.List(key); len(v) > 0 {
		return strings.Join(v, ",")
	}
	return def
}

// Num returns the number of an argument.
func (a Args) Num(key string, def int64) int64 {
	if v := a.Str(key, ""); v != "" {
		return Num(a.T, v)
	}
	return def
}

// Dur returns the duration of an argument.
func (a Args) Dur(key string, def topo.Duration) topo.Duration {
	if v := a.Str(key, ""); v != "" {
		return Dur(a.T, v)
	}
	return def
}

// Num reads a number that stands inside a value.
func Num(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Dur reads a duration that stands inside a value.
func Dur(t *testing.T, s string) topo.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return topo.Duration(d)
}
