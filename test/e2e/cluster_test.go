// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// upCluster starts 3 × (1+1) servers on three members.
func upCluster(t *testing.T) *deployment {
	t.Helper()
	d := up(t, "--mode", "cluster", "--shards", "3", "--replicas", "1")
	d.waitHealthy(60 * time.Second)
	return d
}

// keyOn returns a key of a shard.
func (d *deployment) keyOn(shard, prefix string) string {
	d.t.Helper()
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0)})
	defer c.Close()
	for i := range 1000 {
		key := fmt.Sprintf("%s:%d", prefix, i)
		at, err := c.Do(context.Background(), "PROXY", "SHARDOF", key).Text()
		if err != nil {
			d.t.Fatal(err)
		}
		if at == shard {
			return key
		}
	}
	d.t.Fatal("no key of " + shard)
	return ""
}

// shard returns one by its id.
func (s status) shard(id string) shard {
	shards := s.Deployments[0].Shards
	return shards[slices.IndexFunc(shards, func(sh shard) bool { return sh.ID == id })]
}

func (sh shard) node(id string) node {
	return sh.Nodes[slices.IndexFunc(sh.Nodes, func(n node) bool { return n.ID == id })]
}

// TestClusterForPlainClients: a client that knows nothing of clusters sees one Redis.
func TestClusterForPlainClients(t *testing.T) {
	d := upCluster(t)
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(1), MaxRetries: -1})
	defer c.Close()
	names := fillCluster(t, c)
	if n, err := c.DBSize(t.Context()).Result(); err != nil || n != int64(len(names)) {
		t.Errorf("%d keys, %v", n, err)
	}
	got, err := c.MGet(t.Context(), names...).Result()
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		if v != fmt.Sprint(i) {
			t.Fatalf("key %d is %v", i, v)
		}
	}
	if n, err := c.Del(t.Context(), names...).Result(); err != nil || n != int64(len(names)) {
		t.Errorf("%d keys were deleted, %v", n, err)
	}
	seen := map[string]bool{}
	for range 100 {
		at, err := c.Do(t.Context(), "PROXY", "SHARDOF", names[len(seen)%len(names)]).Text()
		if err != nil {
			t.Fatal(err)
		}
		seen[at] = true
	}
	s, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.run("status")
	if err != nil || s.Deployments[0].Mode != "cluster" || !strings.Contains(out, "slots 0-5460") || !strings.Contains(out, "slots 10922-16383") {
		t.Errorf("%v\n%s", err, out)
	}
}

// fillCluster writes 300 keys in one command.
func fillCluster(t *testing.T, c redis.Cmdable) []string {
	t.Helper()
	var names []string
	var pairs []any
	for i := range 300 {
		names = append(names, fmt.Sprint("key:", i))
		pairs = append(pairs, names[i], fmt.Sprint(i))
	}
	if err := c.MSet(t.Context(), pairs...).Err(); err != nil {
		t.Fatal(err)
	}
	return names
}

// fillReplicas fills, and returns when the replicas have it: with async what has no replica yet is lost with its primary.
func fillReplicas(t *testing.T, c *redis.Client) []string {
	t.Helper()
	conn := c.Conn()
	defer conn.Close()
	names := fillCluster(t, conn)
	if n, err := conn.Wait(t.Context(), 1, 10*time.Second).Result(); err != nil || n < 1 {
		t.Fatalf("%d replicas have the keys (%v)", n, err)
	}
	return names
}

// TestClusterForClusterClients: clients that want a cluster find one, on the same port, in each way to show it.
func TestClusterForClusterClients(t *testing.T) {
	d := upCluster(t)
	for _, face := range []string{"proxy", "nodes"} {
		if face != "proxy" {
			d.set("proxy", "cluster-face: "+face)
			d.waitHealthy(60 * time.Second)
		}
		t.Run(face, func(t *testing.T) {
			c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{d.proxyAddr(1)}})
			defer c.Close()
			checkGoRedisCluster(t, c)
			addrs := map[string]bool{}
			if err := c.ForEachMaster(t.Context(), func(_ context.Context, m *redis.Client) error {
				addrs[m.Options().Addr] = true
				return nil
			}); err != nil || len(addrs) != 3 || addrs[d.proxyAddr(0)] != (face == "proxy") {
				t.Errorf("the client knows %v (%v)", addrs, err)
			}
			host, port, _ := strings.Cut(d.proxyAddr(2), ":")
			for name, argv := range map[string][]string{
				"redis-py": {"/usr/bin/python3", "../clients/cluster_redispy.py", host, port},
				"ioredis":  {"node", "../clients/cluster_ioredis.js", host, port},
			} {
				out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
				if err != nil || !bytes.Contains(out, []byte("all well")) {
					t.Errorf("%s: %v\n%s", name, err, out)
				}
			}
			script := "SET a 1\nSET b 2\nGET a\nGET b\nINCR d\nDEL a b d\n"
			cmd := exec.Command("redis-cli", "-c", "-h", host, "-p", port)
			cmd.Stdin = strings.NewReader(script)
			out, err := cmd.CombinedOutput()
			if face == "proxy" && string(out) != "OK\nOK\n1\n2\n1\n3\n" || err != nil {
				t.Errorf("redis-cli -c: %v\n%s", err, out)
			}
		})
	}
	d.replace("cluster-face: nodes", "cluster-face: off")
	d.waitHealthy(60 * time.Second)
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), MaxRetries: -1})
	defer c.Close()
	if err := c.ClusterInfo(t.Context()).Err(); err == nil || !strings.Contains(err.Error(), "cluster support disabled") {
		t.Errorf("CLUSTER INFO without a face: %v", err)
	}
	fillCluster(t, c)
}

// checkGoRedisCluster does what applications do.
func checkGoRedisCluster(t *testing.T, c *redis.ClusterClient) {
	t.Helper()
	ctx := t.Context()
	p := c.Pipeline()
	for i := range 200 {
		p.Set(ctx, fmt.Sprint("gr:", i), i, 0)
	}
	if _, err := p.Exec(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if v, err := c.Get(ctx, fmt.Sprint("gr:", i)).Int(); err != nil || v != i {
			t.Fatalf("%d, %v", v, err)
		}
	}
	if _, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Incr(ctx, "{tx}a")
		p.Incr(ctx, "{tx}b")
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := c.Watch(ctx, func(tx *redis.Tx) error {
		_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "{tx}a"); return nil })
		return err
	}, "{tx}a"); err != nil {
		t.Error(err)
	}
	if v, err := c.Get(ctx, "{tx}a").Int(); err != nil || v%2 != 0 {
		t.Errorf("{tx}a is %d, %v", v, err)
	}
	if err := c.Eval(ctx, "return redis.call('set', KEYS[1], ARGV[1])", []string{"script"}, "x").Err(); err != nil {
		t.Error(err)
	}
	for _, sub := range []*redis.PubSub{c.Subscribe(ctx, "news"), c.SSubscribe(ctx, "news")} {
		if _, err := sub.Receive(ctx); err != nil {
			t.Fatal(err)
		}
		defer sub.Close()
		if err := c.Publish(ctx, "news", "x").Err(); err != nil {
			t.Error(err)
		}
		if err := c.SPublish(ctx, "news", "x").Err(); err != nil {
			t.Error(err)
		}
		waiting, cancel := context.WithTimeout(ctx, 5*time.Second)
		if m, err := sub.ReceiveMessage(waiting); err != nil || m.Payload != "x" {
			t.Errorf("%v, %v", m, err)
		}
		cancel()
	}
	if n, err := c.Del(ctx, "{tx}a", "{tx}b").Result(); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
}

// replace changes every member's file, and starts them again.
func (d *deployment) replace(old, new string) {
	d.t.Helper()
	if out, err := exec.Command(d.bin, "down", "--dir", d.dir).CombinedOutput(); err != nil {
		d.t.Fatalf("down: %v\n%s", err, out)
	}
	files, _ := filepath.Glob(filepath.Join(d.dir, "member-*", "redoubt.yaml"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), old) {
			d.t.Fatalf("%s does not say %q (%v)", f, old, err)
		}
		if err := os.WriteFile(f, []byte(strings.Replace(string(b), old, new, 1)), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	d.start()
}

// TestClusterDeposedPrimaryFollows: a primary that was hung while another one was elected comes back as its replica, with its data.
func TestClusterDeposedPrimaryFollows(t *testing.T) {
	d := upCluster(t)
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), ReadTimeout: 20 * time.Second})
	defer c.Close()
	names := fillReplicas(t, c)
	const id = "mymaster-s2"
	s := d.waitHealthy(30 * time.Second)
	was := s.shard(id).Primary
	signal(t, s.shard(id).node(was).PID, syscall.SIGSTOP)
	d.until(20*time.Second, "another primary, and the old one follows it", func() (bool, string) {
		s, err := d.status()
		if err != nil {
			return false, err.Error()
		}
		sh := s.shard(id)
		return sh.Primary != was && sh.Phase == "serving" && sh.node(was).State == "following", fmt.Sprintf("%+v", sh)
	})
	if n, err := c.Exists(t.Context(), names...).Result(); err != nil || n != int64(len(names)) {
		t.Errorf("%d of %d keys are there (%v)", n, len(names), err)
	}
}

// TestClusterEmptyPrimaryWipesNobody: the primary's server is killed and its directory removed, its nodes.conf with it. By itself it would
// come back as a primary under the same address, and its replica would copy nothing from it, 0.5 s later.
func TestClusterEmptyPrimaryWipesNobody(t *testing.T) {
	d := upCluster(t)
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), ReadTimeout: 20 * time.Second})
	defer c.Close()
	names := fillReplicas(t, c)
	for i, id := range []string{"mymaster-s1", "mymaster-s2", "mymaster-s3"} {
		s := d.waitHealthy(60 * time.Second)
		sh := s.shard(id)
		dirs, _ := filepath.Glob(filepath.Join(d.dir, "member-"+sh.Primary[1:], "data", "redis", fmt.Sprint("s", i+1)))
		if len(dirs) != 1 {
			t.Fatalf("the directory of %s: %v", sh.Primary, dirs)
		}
		signal(t, sh.node(sh.Primary).PID, syscall.SIGKILL)
		if err := os.RemoveAll(dirs[0]); err != nil {
			t.Fatal(err)
		}
		wait(3 * time.Second) // longer than a wipe takes
		d.waitHealthy(60 * time.Second)
		if n, err := c.Exists(t.Context(), names...).Result(); err != nil || n != int64(len(names)) {
			t.Fatalf("%s: %d of %d keys are there (%v)", id, n, len(names), err)
		}
	}
}
