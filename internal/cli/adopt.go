// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"redoubt/internal/config"
)

type adoptFlags struct {
	twemproxy string
	pool      string
	sentinels []string
	password  string
	members   []string
	listen    string
	out       string
	api       string
	store     int

	cluster      []string // of a cluster: the servers to ask first
	username     string
	passwordEnv  string
	name         string
	conf         string
	passwordFile string
	gateFile     string
	durability   string
	face         string
	takeOver     bool
	keep         bool
}

func (e *env) adopt() *cobra.Command {
	var f adoptFlags
	c := &cobra.Command{
		Use: "adopt (--sentinel HOST:PORT | --twemproxy FILE | --cluster HOST:PORT | --take-over)", Short: "Turn a set-up that exists into a deployment",
		Long: "From Sentinels: with --sentinel, the live set-up is read, the members' configuration files are written and the plan is\n" +
			"shown; nothing is changed. With --take-over the members begin and the Sentinels end, without a failover; it says\n" +
			"each step, and can be repeated. redoubt hand-back is the other way round.\n\n" +
			"From twemproxy: with --twemproxy, write the files for a pool whose servers become the shards of a ring: the same servers,\n" +
			"and every key where twemproxy has put it. Nothing is started, stopped or changed; what to do then is printed.\n" +
			"With --sentinel beside it, the replicas that a Sentinel knows of the pool's servers become theirs here, too.\n\n" +
			"From a Redis Cluster: with --cluster, write the members' files for a cluster that serves. It is taken over without a failover\n" +
			"when all members are started; redoubt hand-back leaves it to itself again.\n\n" +
			"Each host gets one member, m1, m2, …; --member ID=HOST names them, and adds those without a server (arbiters).\n\n" + exitCodes,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case f.takeOver:
				return e.takeOver(c.Context(), f)
			case len(f.cluster) > 0:
				return e.runAdoptCluster(c.Context(), f)
			case f.twemproxy != "":
				return e.runAdopt(c.Context(), f)
			}
			return e.planSentinel(c.Context(), f)
		},
	}
	c.Flags().StringVar(&f.twemproxy, "twemproxy", "", "the nutcracker.yml")
	c.Flags().StringVar(&f.pool, "pool", "", "which pool of it (needed when there are several)")
	c.Flags().StringArrayVar(&f.sentinels, "sentinel", nil, "host:port of a Sentinel that watches the servers (repeatable: the first that answers)")
	c.Flags().StringVar(&f.password, "sentinel-password", "", "password of the Sentinels")
	c.Flags().StringArrayVar(&f.members, "member", nil, "ID=HOST (repeatable)")
	c.Flags().StringVar(&f.listen, "listen", "", "where each member's proxy listens; HOST stands for the member's host (default: where the pool listens)")
	c.Flags().StringVar(&f.out, "out", "redoubt-adopted", "directory that the files go to")
	c.Flags().StringVar(&f.api, "api-listen", "127.0.0.1:7379", "where each member's API listens, likewise; whoever reaches it may give orders")
	c.Flags().IntVar(&f.store, "store-port", 7380, "where the members agree")
	c.Flags().StringVar(&f.name, "name", "", "which master of the Sentinels (needed when there are several); --cluster: of the deployment that it becomes (mymaster)")
	c.Flags().StringArrayVar(&f.cluster, "cluster", nil, "host:port of a server of the cluster (repeatable: the others are found)")
	c.Flags().StringVar(&f.username, "username", "", "--cluster: ACL user of the servers for Redoubt (default: the default user)")
	c.Flags().StringVar(&f.passwordEnv, "password-env", "", "--cluster: environment variable with the password of the servers")
	c.Flags().StringVar(&f.conf, "sentinel-conf", "", "a sentinel.conf, for what a Sentinel does not tell: passwords and scripts")
	c.Flags().StringVar(&f.passwordFile, "password-file", "", "file with the servers' password")
	c.Flags().StringVar(&f.gateFile, "sentinel-password-file", "", "file with the Sentinels' password")
	c.Flags().StringVar(&f.durability, "durability", "async", "what an acknowledged write means to clients of the proxies: async, quorum or quorum+disk")
	c.Flags().StringVar(&f.face, "sentinel-listen", "", "where each member answers Sentinel clients, likewise (default: where the Sentinel on its host did)")
	c.Flags().BoolVar(&f.takeOver, "take-over", false, "carry the plan in --out out")
	c.Flags().BoolVar(&f.keep, "keep-sentinels", false, "--take-over: have the Sentinels forget the master, and do not shut them down")
	c.Flags().StringVar(&e.api, "api", "", "--take-over: API addresses of members (default: those of the plan)")
	c.Flags().BoolVarP(&e.yes, "yes", "y", false, "do not ask")
	c.MarkFlagsOneRequired("twemproxy", "sentinel", "cluster", "take-over")
	c.MarkFlagsMutuallyExclusive("take-over", "twemproxy", "cluster")
	return c
}

func (e *env) runAdopt(ctx context.Context, f adoptFlags) error {
	data, err := os.ReadFile(f.twemproxy)
	if err != nil {
		return fail(ExitUsage, "read the pool: %w", err)
	}
	pools, err := config.ParseTwemproxy(data, f.twemproxy)
	if err != nil {
		return err
	}
	a := config.Adoption{Listen: f.listen, API: f.api, Store: f.store}
	if a.Pool, err = choosePool(pools, f.pool); err != nil {
		return err
	}
	for i, name := range a.Pool.ShardNames() {
		a.Shards = append(a.Shards, config.AdoptedShard{Name: name, Primary: a.Pool.Servers[i].Addr()})
	}
	if len(f.sentinels) > 0 {
		if err := e.askSentinels(ctx, f, a.Shards); err != nil {
			return err
		}
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
	e.printAdoption(f, a)
	return nil
}

func choosePool(pools []config.TwemproxyPool, name string) (config.TwemproxyPool, error) {
	var names []string
	for _, p := range pools {
		if p.Name == name || name == "" && len(pools) == 1 {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return config.TwemproxyPool{}, fail(ExitUsage, "--pool %q: use one of %s; a pool becomes one deployment", name, strings.Join(names, ", "))
}

func (e *env) printAdoption(f adoptFlags, a config.Adoption) {
	p := a.Pool
	fmt.Fprintf(e.out, "pool %s: %d servers, %s, %s; durability %s\n\n", p.Name, len(p.Servers), p.Distribution, p.Hash, a.Durability())
	rows := [][]cell{{{text: "SHARD"}, {text: "PLACED AS"}, {text: "WEIGHT"}, {text: "PRIMARY"}, {text: "REPLICAS"}}}
	for i, s := range a.Shards {
		rows = append(rows, []cell{{text: s.Name}, {text: p.Servers[i].Name}, {text: strconv.Itoa(int(p.Servers[i].Weight))}, {text: s.Primary}, {text: orDash(strings.Join(s.Others, " "))}})
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
 1. Copy each file to its host.
 2. Have each server boot frozen: append --replicaof 127.0.0.1 0 to the command line that starts it, for its next start.
 3. Stop twemproxy%s, then start "redoubt run -c redoubt.yaml" on every host. Servers take no writes
    until all of them are there, which is when the last member has started.
 4. "redoubt status --api %s" on the first of them shows when every shard serves.
`, map[bool]string{true: " and the Sentinels"}[len(f.sentinels) > 0], strings.ReplaceAll(f.api, "HOST", a.Members[0].Host))
	for _, w := range warnings(a) {
		fmt.Fprintf(e.err, "note: %s\n", w)
	}
}

// warnings says what does not become what it was.
func warnings(a config.Adoption) (w []string) {
	p := a.Pool
	if alone := slices.ContainsFunc(a.Shards, func(s config.AdoptedShard) bool { return len(s.Others) == 0 }); alone {
		w = append(w, "shards without a replica cannot fail over: their commands wait until the server is back, 10s at most")
	}
	if n := len(a.Members); n < 3 {
		w = append(w, fmt.Sprintf("%d members: with fewer than three, the loss of the first one stops decisions; add some with --member ID=HOST", n))
	}
	if p.Timeout >= 0 {
		w = append(w, "timeout has no counterpart: clients wait as they would on a server")
	}
	if p.AutoEjectHosts {
		w = append(w, "auto_eject_hosts became ring.eject-after: a shard is left out when it cannot be used for that long, not after a number of failures")
	}
	return w
}
