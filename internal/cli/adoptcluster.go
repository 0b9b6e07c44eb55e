// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"redoubt/internal/app"
	"redoubt/internal/config"
	"redoubt/internal/muster"
	"redoubt/internal/redisd"
	"redoubt/internal/slots"
)

// serverPassword reads the password of the servers from where it is kept: it is never on the command line.
func (f adoptFlags) serverPassword() (string, error) {
	switch {
	case f.passwordEnv != "":
		p, ok := os.LookupEnv(f.passwordEnv)
		if !ok {
			return "", fail(ExitUsage, "--password-env %s: there is no such variable", f.passwordEnv)
		}
		return p, nil
	case f.passwordFile != "":
		b, err := os.ReadFile(f.passwordFile)
		if err != nil {
			return "", fail(ExitUsage, "--password-file: %w", err)
		}
		return strings.TrimRight(string(b), "\r\n"), nil
	}
	return "", nil
}

// runAdoptCluster reads a cluster that serves, says whether it can be taken over, and writes the members' files. It changes nothing.
func (e *env) runAdoptCluster(ctx context.Context, f adoptFlags) error {
	password, err := f.serverPassword()
	if err != nil {
		return err
	}
	surveys, err := app.SurveyCluster(ctx, redisd.Login{Username: f.username, Password: password}, f.cluster...)
	if len(surveys) == 0 {
		return fail(ExitNobody, "ask the cluster: %w", err)
	}
	if why := muster.Adoptable(app.Findings(surveys), password); len(why) > 0 || err != nil {
		for _, w := range why {
			fmt.Fprintln(e.err, w)
		}
		if err != nil {
			fmt.Fprintln(e.err, err)
		}
		return fail(ExitFailed, "the cluster cannot be taken over as it is: mend what is named above, and try again; nothing was changed")
	}
	a := config.ClusterAdoption{Name: cmp.Or(f.name, "mymaster"), Shards: muster.Shards(surveys[0].View), Username: f.username, Password: password, Listen: f.listen, API: f.api, Store: f.store}
	if a.Listen == "" {
		a.Listen = "HOST:6379"
	}
	if a.Members, err = f.named(); err != nil {
		return err
	}
	files, err := a.Files()
	if err != nil {
		return fail(ExitFailed, "%w", err)
	}
	if err := writeMembers(f.out, a.Members, files); err != nil {
		return err
	}
	e.printClusterAdoption(f, a, surveys)
	return nil
}

func (e *env) printClusterAdoption(f adoptFlags, a config.ClusterAdoption, surveys []redisd.Survey) {
	fmt.Fprintf(e.out, "a cluster of %d servers, which agree about everything; it can be taken over while it serves\n\n", len(surveys))
	rows := [][]cell{{{text: "SHARD"}, {text: "SLOTS"}, {text: "PRIMARY"}, {text: "REPLICAS"}}}
	alone := false
	for i, s := range a.Shards {
		var others []string
		for _, r := range s.Replicas {
			others = append(others, r.Addr())
		}
		alone = alone || len(others) == 0
		rows = append(rows, []cell{{text: "s" + strconv.Itoa(i+1)}, {text: s.Primary.Slots.String()}, {text: s.Primary.Addr()}, {text: orDash(strings.Join(others, " "))}})
	}
	table(e.out, coloured(e.out), rows)
	fmt.Fprintln(e.out)
	rows = [][]cell{{{text: "MEMBER"}, {text: "HOST"}, {text: "FILE"}}}
	for _, m := range a.Members {
		rows = append(rows, []cell{{text: m.ID}, {text: m.Host}, {text: filepath.Join(f.out, m.ID, "redoubt.yaml")}})
	}
	table(e.out, coloured(e.out), rows)
	fmt.Fprintf(e.out, `
Next:
 1. Copy each file to its host, and start "redoubt run -c redoubt.yaml" on every one. Until the last of them is up nothing is
    touched. Then the servers' own elections are switched off on all of them, and after that each shard is taken over as it
    is: no failover, no restart, no moment without service.
 2. "redoubt status --api %s" shows when every shard serves.
 3. Point clients at the proxies (%s). Those that speak to the servers directly go on as they did.
Back: "redoubt hand-back" puts the servers' settings back as they were found, and lets them elect themselves again.

What changes on the servers, by CONFIG SET (no file is written, but CONFIG REWRITE would):
`, strings.ReplaceAll(f.api, "HOST", a.Members[0].Host), strings.ReplaceAll(a.Listen, "HOST", a.Members[0].Host))
	rows = [][]cell{{{text: "SETTING"}, {text: "FOUND"}, {text: "BECOMES"}}}
	for _, c := range redisd.AdoptionChanges(surveys) {
		rows = append(rows, []cell{{text: c.Name}, {text: orDash(c.Found)}, {text: c.Becomes}})
	}
	table(e.out, coloured(e.out), rows)
	for _, w := range append(userWarnings(surveys), clusterWarnings(a, alone)...) {
		fmt.Fprintf(e.err, "note: %s\n", w)
	}
}

// userWarnings says what the servers' access rules do not have in common: each server has its own, and nobody copies them.
func userWarnings(surveys []redisd.Survey) (w []string) {
	for _, s := range surveys[1:] {
		if !slices.Equal(s.Users, surveys[0].Users) {
			w = append(w, fmt.Sprintf("%s has the users %s, and %s has %s: give all servers the same, or clients of a shard lose theirs with its primary", surveys[0].Addr, listed(surveys[0].Users), s.Addr, listed(s.Users)))
		}
	}
	return w
}

func listed(users []string) string {
	return strings.Join(append([]string{"default"}, users...), ", ")
}

// clusterWarnings says what a person should know beforehand.
func clusterWarnings(a config.ClusterAdoption, alone bool) (w []string) {
	if alone {
		w = append(w, "shards without a replica cannot fail over: their commands wait until the server is back, 10s at most")
	}
	if n := len(a.Members); n < 3 {
		w = append(w, fmt.Sprintf("%d members: with fewer than three, the loss of the first one stops decisions; add some with --member ID=HOST", n))
	}
	primaries := map[string]slots.Set{}
	hosts := map[string]int{}
	for _, s := range a.Shards {
		primaries[s.Primary.ID] = s.Primary.Slots
		hosts[s.Primary.Host]++
	}
	for host, n := range hosts {
		if 2*n >= len(primaries) && len(primaries) > 1 && len(hosts) > 1 {
			w = append(w, fmt.Sprintf("%s has %d of %d primaries: the servers refuse commands when most of them are away for 15 s; spread them (redoubt switchover --shard …)", host, n, len(primaries)))
		}
	}
	return append(w, "a server that its supervisor starts again comes up as what its nodes.conf says, with its port open: it is fenced by its agent within the first moments (docs/guide/cluster.md, Attached servers)")
}
