// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"redoubt/internal/config"
	"redoubt/internal/topo"
)

// planSentinel reads a live Sentinel set-up, writes the members' files and shows what will be done. It changes nothing at servers or
// Sentinels.
func (e *env) planSentinel(ctx context.Context, f adoptFlags) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conf, err := f.sentinelConf()
	if err != nil {
		return err
	}
	servers, gate, err := f.secrets(conf)
	if err != nil {
		return err
	}
	d, err := discover(ctx, f.sentinels, gate, f.name)
	if err != nil {
		return fail(ExitFailed, "read the Sentinels' set-up: %w", err)
	}
	if d.quiet {
		return fail(ExitFailed, "an attempt to take %s over was cut short: undo it with redoubt hand-back and --out of its plan, or go on with --take-over", d.name)
	}
	m := conf.Masters[d.name]
	if servers == "" {
		servers = m.AuthPass
	}
	a := config.SentinelAdoption{
		Name: d.name, Shard: config.AdoptedShard{Primary: d.primary, Others: d.others}, Password: servers, Gate: gate,
		Durability: topo.Durability(f.durability), Listen: f.listen, API: f.api, Face: f.face, Store: f.store,
		Notification: m.Notification, Reconfig: m.Reconfig,
	}
	for _, s := range d.sentinels {
		a.Sentinels = append(a.Sentinels, s.Addr)
	}
	if a.Members, err = f.named(); err != nil {
		return err
	}
	files, err := a.Files()
	if err != nil {
		return fail(ExitFailed, "%w", err)
	}
	r := adoptRecord{Format: 1, Name: d.name, Members: a.Members, Sentinels: d.sentinels, AuthUser: m.AuthUser, Scripts: m.Scripts()}
	for _, member := range a.Members {
		r.APIs, r.Faces = append(r.APIs, a.APIOf(member)), append(r.Faces, a.FaceOf(member))
	}
	for _, addr := range append([]string{d.primary}, d.others...) {
		n, err := examine(ctx, addr, servers, d.primary)
		if err != nil {
			return fail(ExitFailed, "%w", err)
		}
		n.ID = topo.NodeID(a.Node(addr))
		r.Nodes = append(r.Nodes, n)
	}
	if err := writeMembers(f.out, a.Members, files); err != nil {
		return err
	}
	if err := r.write(f.out); err != nil {
		return err
	}
	e.printSentinelPlan(f, a, r)
	return nil
}

func (r adoptRecord) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the adoption's record: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, recordFile), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the adoption's record: %w", err)
	}
	return nil
}

// writeMembers writes each member's file into a directory of its own, and overwrites nothing.
func writeMembers(out string, members []config.AdoptedMember, files map[string]string) error {
	for _, m := range members {
		dir := filepath.Join(out, m.ID)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("write the member's configuration: %w", err)
		}
		file, err := os.OpenFile(filepath.Join(dir, "redoubt.yaml"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("write the member's configuration: %w (--out names another directory)", err)
		}
		_, err = file.WriteString(files[m.ID])
		if closed := file.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return fmt.Errorf("write the member's configuration: %w", err)
		}
	}
	return nil
}

func (e *env) printSentinelPlan(f adoptFlags, a config.SentinelAdoption, r adoptRecord) {
	fmt.Fprintf(e.out, "master %s: %d servers, watched by %d Sentinels; durability %s\n\n", a.Name, len(r.Nodes), len(r.Sentinels), a.Durability)
	rows := [][]cell{{{text: "SERVER"}, {text: "IS"}, {text: "NODE"}}}
	for i, n := range r.Nodes {
		role := "replica"
		if i == 0 {
			role = "primary"
		}
		rows = append(rows, []cell{{text: n.Addr}, {text: role}, {text: string(n.ID)}})
	}
	table(e.out, coloured(e.out), rows)
	fmt.Fprintln(e.out)
	rows = [][]cell{{{text: "SENTINEL"}, {text: "QUORUM"}, {text: "DOWN AFTER"}, {text: "FAILOVER TIMEOUT"}}}
	for _, s := range r.Sentinels {
		rows = append(rows, []cell{{text: s.Addr}, {text: s.Settings["quorum"]}, {text: s.Settings["down-after-milliseconds"] + " ms"}, {text: s.Settings["failover-timeout"] + " ms"}})
	}
	table(e.out, coloured(e.out), rows)
	fmt.Fprintln(e.out)
	rows = [][]cell{{{text: "MEMBER"}, {text: "HOST"}, {text: "ANSWERS SENTINEL CLIENTS AT"}, {text: "FILE"}}}
	for _, m := range a.Members {
		rows = append(rows, []cell{{text: m.ID}, {text: m.Host}, {text: a.FaceOf(m)}, {text: filepath.Join(f.out, m.ID, "redoubt.yaml")}})
	}
	table(e.out, coloured(e.out), rows)
	fmt.Fprintf(e.out, `
Nothing was changed. Next:
 1. Copy each file to its host, and start "redoubt run -c redoubt.yaml" there. The members leave the servers alone.
 2. "redoubt adopt --take-over --out %[1]s": the Sentinels stop deciding, the members begin, and the Sentinels are shut
    down one after the other, each member answering at its Sentinel's address at once. No failover, no client is cut.
 3. Keep the Sentinels from starting again (systemctl disable --now redis-sentinel), and have each server boot frozen:
    append --replicaof 127.0.0.1 0 to the command line that starts it, for its next start.
 The way back: "redoubt hand-back --out %[1]s".
`, f.out)
	for _, w := range sentinelWarnings(a, r) {
		fmt.Fprintf(e.err, "note: %s\n", w)
	}
}

// sentinelWarnings says what does not become what it was.
func sentinelWarnings(a config.SentinelAdoption, r adoptRecord) (w []string) {
	if n := len(a.Members); n < 3 {
		w = append(w, fmt.Sprintf("%d members: with fewer than three, the loss of the first one stops decisions; add some with --member ID=HOST", n))
	}
	if len(a.Shard.Others) == 0 {
		w = append(w, "there is no replica, so nothing can fail over")
	}
	w = append(w, "down-after-milliseconds has no counterpart: a dead server is noticed at once, a lost host after a second (timing in the members' files)")
	if v := r.Nodes[0].Settings["min-replicas-to-write"]; cmp.Or(v, "0") != "0" {
		w = append(w, "min-replicas-to-write "+v+" becomes what durability says: with async it is 0")
	}
	if a.Durability.Waits() {
		w = append(w, "durability "+string(a.Durability)+" holds for clients of the proxies; clients of the primary itself are acknowledged by it alone")
	}
	return w
}

// secrets are the passwords of the servers and of the Sentinels.
func (f adoptFlags) secrets(conf config.SentinelConf) (servers, gate string, err error) {
	if servers, err = readSecret(f.passwordFile); err != nil {
		return "", "", err
	}
	if gate, err = readSecret(f.gateFile); err != nil {
		return "", "", err
	}
	return servers, cmp.Or(gate, f.password, conf.RequirePass), nil
}

func (f adoptFlags) sentinelConf() (config.SentinelConf, error) {
	if f.conf == "" {
		return config.SentinelConf{}, nil
	}
	b, err := os.ReadFile(f.conf)
	if err != nil {
		return config.SentinelConf{}, fail(ExitUsage, "read the Sentinel's configuration: %w", err)
	}
	return config.ParseSentinelConf(b, f.conf)
}

// named are the members that the command line names.
func (f adoptFlags) named() ([]config.AdoptedMember, error) {
	var all []config.AdoptedMember
	for _, m := range f.members {
		id, host, ok := strings.Cut(m, "=")
		if !ok || id == "" || host == "" {
			return nil, fail(ExitUsage, "--member %s: write ID=HOST, for example m4=10.0.0.4", m)
		}
		all = append(all, config.AdoptedMember{ID: id, Host: host})
	}
	return all, nil
}
