// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
	"redoubt/test/ports"
)

// memberEnv makes the test binary run one member as a process of its own: JSON of processOptions.
const memberEnv = "RAFTSTORE_TEST_MEMBER"

type processOptions struct {
	ID, Addr, Dir string
	Bootstrap     []coord.Member
	Read          string // read this document for ever instead of writing
}

// runMember writes documents "<id>-<n>" for ever and prints "ack <key> <rev>" after each acknowledged swap, or reads one
// and prints "get <start in ns> <rev>", until it is killed or its standard input ends.
func runMember() {
	var o processOptions
	if err := json.Unmarshal([]byte(os.Getenv(memberEnv)), &o); err != nil {
		panic(err)
	}
	s, err := Open(context.Background(), Options{ID: o.ID, ListenAddr: o.Addr, Dir: o.Dir, Bootstrap: o.Bootstrap})
	if err != nil {
		panic(err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for o.Read != "" {
		begun := time.Now().UnixNano()
		if doc, err := s.Get(context.Background(), o.Read); err == nil {
			fmt.Println("get", begun, doc.Rev)
		}
	}
	for n := 0; ; n++ {
		key := fmt.Sprintf("%s-%d-%d", o.ID, os.Getpid(), n)
		rev, err := s.Swap(context.Background(), key, []byte(strings.Repeat(key, 50)), 0)
		if err == nil {
			fmt.Println("ack", key, rev)
		}
	}
}

type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	acks  chan string
	gets  chan [2]int64 // start, revision; read them all
}

func startProcess(t *testing.T, o processOptions) *process {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(exe), acks: make(chan string, 1<<16), gets: make(chan [2]int64, 1<<16)}
	p.cmd.Env = append(os.Environ(), memberEnv+"="+string(data))
	p.cmd.Stderr = os.Stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = stdin
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.acks)
		in := bufio.NewScanner(stdout)
		defer close(p.gets)
		for in.Scan() {
			words := strings.Fields(in.Text())
			switch {
			case len(words) != 3:
			case words[0] == "ack":
				p.acks <- words[1]
			case words[0] == "get":
				begun, _ := strconv.ParseInt(words[1], 10, 64)
				rev, _ := strconv.ParseInt(words[2], 10, 64)
				p.gets <- [2]int64{begun, rev}
			}
		}
	}()
	return p
}

func TestEveryAcknowledgedSwapSurvivesKillingAllProcessesAtOnce(t *testing.T) {
	dir := t.TempDir()
	var members []coord.Member
	for i := range 3 {
		members = append(members, coord.Member{ID: fmt.Sprint("m", i+1), Addr: ports.Addr(t)})
	}
	acked := map[string]bool{}
	for range 3 {
		var ps []*process
		for _, m := range members {
			ps = append(ps, startProcess(t, processOptions{m.ID, m.Addr, filepath.Join(dir, m.ID), members, ""}))
		}
		for _, p := range ps { // every member got some swaps through
			for range 30 {
				select {
				case key, ok := <-p.acks:
					if !ok {
						t.Fatal("a member died")
					}
					acked[key] = true
				case <-time.After(20 * time.Second):
					t.Fatal("no swaps")
				}
			}
		}
		for _, p := range ps {
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range ps {
			for key := range p.acks {
				acked[key] = true
			}
			_ = p.cmd.Wait()
			_ = p.stdin.Close()
		}
		reopenAndCheck(t, dir, members, acked)
	}
	t.Logf("%d acknowledged swaps, all present", len(acked))
}

func reopenAndCheck(t *testing.T, dir string, members []coord.Member, acked map[string]bool) {
	t.Helper()
	p := &party{t: t, members: members, stores: make([]*Store, len(members))}
	defer p.close()
	for i, m := range members {
		p.opts = append(p.opts, Options{ID: m.ID, ListenAddr: m.Addr, Dir: filepath.Join(dir, m.ID), Bootstrap: members, Log: testLog(t)})
		p.open(i)
	}
	g := p.stores[p.controller()]
	for key := range acked {
		doc, err := g.Get(context.Background(), key)
		if err != nil || string(doc.Value) != strings.Repeat(key, 50) {
			t.Fatalf("acknowledged swap of %s: %d bytes, %v", key, len(doc.Value), err)
		}
	}
}

func TestAllMembersRestartWithTheirDocumentsAndTerms(t *testing.T) {
	p := newParty(t, 3)
	rev := coordtest.Put(t, p.stores[1], "k", "v")
	term := p.stores[p.controller()].reign.Load().term
	name := p.stores[p.controller()].Deployment()
	p.close()
	for i := range p.stores {
		p.open(i)
	}
	g := p.stores[p.controller()].reign.Load()
	if g == nil || g.term <= term {
		t.Fatalf("the term did not grow from %d", term)
	}
	for _, s := range p.stores {
		doc, err := s.Get(context.Background(), "k")
		if err != nil || doc.Rev != rev || string(doc.Value) != "v" {
			t.Fatalf("read %+v, %v", doc, err)
		}
		if s.Deployment() != name || name == "" {
			t.Fatalf("deployment %q became %q", name, s.Deployment())
		}
	}
}

func TestDirectoriesOfOthersAreRefused(t *testing.T) {
	p := newParty(t, 1)
	coordtest.Put(t, p.stores[0], "k", "v")
	o := p.opts[0]
	o.ListenAddr = "127.0.0.1:0"
	if _, err := Open(context.Background(), o); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("second process: %v", err)
	}
	p.close()
	o.ID, o.Bootstrap = "somebody", nil
	if _, err := Open(context.Background(), o); err == nil || !strings.Contains(err.Error(), `belongs to member "m1"`) {
		t.Fatalf("wrong member: %v", err)
	}
	name := filepath.Join(o.Dir, "identity.json")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(data), "m1", "m2", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), p.opts[0]); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatalf("changed identity: %v", err)
	}
}

func TestSnapshotsKeepEverythingAndDamageIsRefused(t *testing.T) {
	p := newParty(t, 1)
	s := p.stores[0]
	rev := coordtest.Put(t, s, "k", "v0")
	for i := range 10 {
		var err error
		if rev, err = s.Swap(context.Background(), "k", fmt.Append(nil, "v", i), rev); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.raft.Load().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	p.close()
	p.open(0)
	doc, err := p.stores[0].Get(context.Background(), "k")
	if err != nil || doc.Rev != rev || string(doc.Value) != "v9" {
		t.Fatalf("read %+v, %v", doc, err)
	}
	p.close()
	names, _ := filepath.Glob(filepath.Join(p.opts[0].Dir, "snapshots", "*", "state.bin"))
	if len(names) != 1 {
		t.Fatalf("snapshots: %v", names)
	}
	flip(t, names[0], -10)
	if _, err := Open(context.Background(), p.opts[0]); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Fatalf("damaged snapshot: %v", err)
	}
}

// flip changes one byte of a file, counted from its end if negative.
func flip(t *testing.T, name string, at int) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if at < 0 {
		at += len(data)
	}
	data[at] ^= 0x55
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTornLastWriteLosesNothingAcknowledged(t *testing.T) {
	p := newParty(t, 1)
	rev := coordtest.Put(t, p.stores[0], "k", "kept")
	p.close()
	name := lastLog(t, p.opts[0].Dir)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, torn := range [][]byte{{1}, whole[journalHeader : journalHeader+20], make([]byte, 5000), []byte(strings.Repeat("garbage", 999))} {
		if err := os.WriteFile(name, append(whole[:len(whole):len(whole)], torn...), 0o600); err != nil {
			t.Fatal(err)
		}
		p.open(0)
		doc, err := p.stores[0].Get(context.Background(), "k")
		if err != nil || doc.Rev != rev || string(doc.Value) != "kept" {
			t.Fatalf("read %+v, %v", doc, err)
		}
		p.close()
	}
	flip(t, name, journalHeader+recordHeader+3)
	if _, err := Open(context.Background(), p.opts[0]); !errors.Is(err, errJournalDamaged) {
		t.Fatalf("damage in the middle: %v", err)
	}
}

func lastLog(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, journalPattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no log files: %v", err)
	}
	return names[len(names)-1]
}
