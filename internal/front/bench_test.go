// SPDX-License-Identifier: Apache-2.0

package front

import (
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkThroughput measures with the server's own tool: 50 clients, keys at random, one server directly and four behind a
// front. Run it with -benchtime 300000x.
func BenchmarkThroughput(b *testing.B) {
	tool, err := exec.LookPath("redis-benchmark")
	if err != nil {
		b.Skip("redis-benchmark is not installed")
	}
	one := startServer(b)
	single := runFront(b, []Shard{{Name: "a", Dial: dialer(one)}})
	four, _ := servers(b, 4)
	var shards []Shard
	for i := range 4 {
		path := filepath.Join(b.TempDir(), "s")
		startServer(b, "--unixsocket", path)
		shards = append(shards, Shard{Name: "u" + strconv.Itoa(i), Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}})
	}
	local := runFront(b, shards)
	rate := regexp.MustCompile(`([0-9.]+) requests per second`)
	p50 := regexp.MustCompile(`p50=([0-9.]+)`)
	for _, c := range []struct{ name, pipeline, command string }{
		{"SET-p1", "1", "SET key:__rand_int__ xxx"}, {"SET-p16", "16", "SET key:__rand_int__ xxx"},
		{"GET-p1", "1", "GET key:__rand_int__"}, {"GET-p16", "16", "GET key:__rand_int__"},
		{"MGET10-p1", "1", "MGET" + strings.Repeat(" key:__rand_int__", 10)},
	} {
		for _, target := range []struct{ name, addr string }{{"direct", one}, {"1shard", single.Addr().String()}, {"4shards", four.Addr().String()}, {"4shards-unix", local.Addr().String()}} {
			b.Run(c.name+"/"+target.name, func(b *testing.B) {
				_, port, _ := net.SplitHostPort(target.addr)
				args := append([]string{"-q", "-p", port, "-c", "50", "-P", c.pipeline, "-r", "100000", "-n", strconv.Itoa(max(b.N, 100))}, strings.Fields(c.command)...)
				out, err := exec.Command(tool, args...).CombinedOutput()
				if err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				all := rate.FindAllSubmatch(out, -1)
				if len(all) == 0 {
					b.Fatalf("%s", out)
				}
				v, _ := strconv.ParseFloat(string(all[len(all)-1][1]), 64)
				b.ReportMetric(v, "ops/s")
				if m := p50.FindAllSubmatch(out, -1); len(m) > 0 {
					v, _ := strconv.ParseFloat(string(m[len(m)-1][1]), 64)
					b.ReportMetric(v, "p50-ms")
				}
			})
		}
	}
}
