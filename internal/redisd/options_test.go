// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"bufio"
	"errors"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
)

func TestOptionsThatWouldBreakSafetyAreRefusedAllAtOnce(t *testing.T) {
	t.Parallel()
	o := Options{Addr: "nowhere", Persistence: "tape", Directives: map[string]string{
		"ReplicaOf": "10.0.0.1 6379", "cluster-enabled": "yes", "repl-backlog-size": "1mb", "rename-command": "CONFIG x", "a b": "c",
		"repl-diskless-load": "on-empty-db", "maxmemory": "1gb",
	}}
	errs := o.Validate()
	if o.Directives["user"] = "alice on\nredoubt-admin on nopass"; len(o.Validate()) != 10 {
		t.Fatalf("our own user may be defined: %v", errors.Join(o.Validate()...))
	}
	if len(errs) != 9 {
		t.Fatalf("%d errors: %v", len(errs), errors.Join(errs...))
	}
	good := Options{Addr: "127.0.0.1:7000", Dir: "x", Directives: map[string]string{"repl-backlog-size": "1gb", "rename-command": `FLUSHALL ""`}}
	if errs := good.Validate(); len(errs) > 0 {
		t.Fatal(errors.Join(errs...))
	}
}

func TestUserDirectivesReachTheServerAndReplaceOurDefaults(t *testing.T) {
	t.Parallel()
	n := primary(t, func(o *Options) {
		o.Persistence = PersistRDB
		o.Directives = map[string]string{"save": "77 1\n66 2", "maxmemory": "100mb", "client-output-buffer-limit": "replica 1gb 1gb 60", "repl-timeout": "44"}
	})
	c := client(t, n.addr, "")
	for name, want := range map[string]string{"save": "77 1 66 2", "maxmemory": "104857600", "repl-timeout": "44", "repl-backlog-ttl": "0"} {
		if got := must(t, c, "CONFIG", "GET", name).items[1].text; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := must(t, c, "CONFIG", "GET", "client-output-buffer-limit").items[1].text; !strings.Contains(got, "1073741824 1073741824 60") {
		t.Errorf("client-output-buffer-limit is %q", got)
	}
}

func TestAServerThatRefusesItsDirectivesExitsWithTheReason(t *testing.T) {
	t.Parallel()
	n := open(t, func(o *Options) { o.Directives = map[string]string{"no-such-directive": "1"} })
	o := see(t, n, "the exit", func(o redis.Observation) bool { return o.Health == "exited" })
	if !strings.Contains(o.Detail, "Bad directive") {
		t.Fatalf("the reason is not told: %q", o.Detail)
	}
}

func TestMalformedRepliesEndTheConnectionAndNothingElse(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", "\n", "x\r\n", ":1", ":a\r\n", "$-2\r\n", "$99999999999\r\nx", "*2\r\n:1\r\n", "$3\r\nab", "*99999999\r\n", strings.Repeat("*1\r\n", 20) + ":1\r\n"} {
		if _, err := readReply(bufio.NewReader(strings.NewReader(in)), 0); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
	r, err := readReply(bufio.NewReader(strings.NewReader("*3\r\n$2\r\nab\r\n$-1\r\n-ERR x\r\n")), 0)
	if err != nil || r.items[0].text != "ab" || !r.items[1].null || !isCode(r.items[2].err(), "ERR") {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestAFenceThatOvertakesAPromotionWins(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	o := see(t, n, "an answering server", isUp)
	for range 50 {
		done := make(chan error, 1)
		ctx := within(t, 2*time.Second)
		go func() { done <- n.Fence(ctx) }()
		_, perr := n.Promote(ctx, electedOf(o), tenure())
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		// A promotion that began after the fence may stand; one that says it was not done must not have been.
		if now := n.Observe(ctx); perr != nil && !now.Frozen {
			t.Fatalf("promotion said %v, yet the server is %s", perr, now.Role)
		}
		if err := n.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
		o = n.Observe(ctx)
	}
}
