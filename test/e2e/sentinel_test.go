// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"

	redigo "github.com/gomodule/redigo/redis"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// sentinelWriters starts the clients that find the primary through Sentinels, with default settings.
func sentinelWriters(t *testing.T, sentinels []string) []*writer {
	t.Helper()
	where := []string{}
	for _, s := range sentinels {
		host, port, _ := net.SplitHostPort(s)
		where = append(where, host, port)
	}
	argv := func(words ...string) []string { return append(words, where...) }
	ws := []*writer{
		goRedisWriter("go-redis", "s:go", redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "mymaster", SentinelAddrs: sentinels})),
		processWriter(t, "redis-py", "s:py", argv("/usr/bin/python3", "../clients/redispy_writer.py", "s:py", "sentinel", "mymaster")...),
	}
	if _, err := exec.LookPath("node"); err == nil {
		ws = append(ws, processWriter(t, "ioredis", "s:io", argv("node", "../clients/ioredis_writer.js", "s:io", "sentinel", "mymaster")...))
	}
	if *everyone {
		ws = append(ws,
			rueidisWriter(t, "s:ru", sentinels),
			redigoWriter("s:rg", sentinels),
			processWriter(t, "node-redis", "s:nr", argv("node", "../clients/noderedis_writer.js", "s:nr", "mymaster")...),
			processWriter(t, "php-redis", "s:php", argv("php", "../clients/phpredis_writer.php", "s:php", "mymaster")...),
			processWriter(t, "ruby-redis", "s:rb", argv("ruby", "../clients/ruby_writer.rb", "s:rb", "mymaster")...))
	}
	t.Cleanup(func() {
		for _, w := range ws {
			w.finish()
		}
	})
	for _, w := range ws {
		waitAcked(t, w, 20)
	}
	return ws
}

// loopWriter is a writer whose push is one attempt.
func loopWriter(name, key string, push func(seq int64) error, end func()) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{name: name, key: key, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer end()
		for seq := int64(1); ctx.Err() == nil; seq++ {
			start := time.Now()
			err := push(seq)
			w.add(attempt{seq, start, time.Now(), err == nil, errText(err)})
			wait(time.Millisecond)
		}
	}()
	return w
}

func rueidisWriter(t *testing.T, key string, sentinels []string) *writer {
	t.Helper()
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: sentinels, Sentinel: rueidis.SentinelOption{MasterSet: "mymaster"}})
	if err != nil {
		t.Fatalf("rueidis: %v", err)
	}
	return loopWriter("rueidis", key, func(seq int64) error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		return c.Do(ctx, c.B().Rpush().Key(key).Element(fmt.Sprint(seq)).Build()).Error()
	}, c.Close)
}

// redigoWriter uses redigo as its users do: it knows no Sentinels, so its pool asks them for each new connection and sees to the role.
func redigoWriter(key string, sentinels []string) *writer {
	pool := &redigo.Pool{MaxIdle: 2, Dial: func() (redigo.Conn, error) {
		var failures []error
		for _, s := range sentinels {
			c, err := redigoPrimary(s)
			if err == nil {
				return c, nil
			}
			failures = append(failures, err)
		}
		return nil, errors.Join(failures...)
	}, TestOnBorrow: func(c redigo.Conn, _ time.Time) error {
		role, err := redigo.Values(c.Do("ROLE"))
		if err == nil && string(role[0].([]byte)) != "master" {
			err = errors.New("not a primary any more")
		}
		return err
	}}
	return loopWriter("redigo", key, func(seq int64) error {
		c := pool.Get()
		defer c.Close()
		_, err := c.Do("RPUSH", key, seq)
		return err
	}, func() { pool.Close() })
}

func redigoPrimary(sentinel string) (redigo.Conn, error) {
	limit := []redigo.DialOption{redigo.DialConnectTimeout(time.Second), redigo.DialReadTimeout(2 * time.Second)}
	s, err := redigo.Dial("tcp", sentinel, limit...)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	at, err := redigo.Strings(s.Do("SENTINEL", "get-master-addr-by-name", "mymaster"))
	if err != nil || len(at) != 2 {
		return nil, fmt.Errorf("%s names no primary: %v %w", sentinel, at, err)
	}
	return redigo.Dial("tcp", net.JoinHostPort(at[0], at[1]), limit...)
}

// TestSentinelClientsFollowAFailover: Sentinel-aware clients with default settings, in both address modes, through a kill and a switchover.
func TestSentinelClientsFollowAFailover(t *testing.T) {
	for _, mode := range []string{"proxy", "direct"} {
		t.Run(mode, func(t *testing.T) {
			d := up(t, "--sentinel-addresses", mode)
			s := d.waitHealthy(30 * time.Second)
			var addrs []string // that of a member without the primary first: the others may end with it
			for i, p := range s.Deployments[0].Proxies {
				if p.PID != s.node(s.primary()).AgentPID {
					addrs = append(addrs, s.Sentinels[i].Addr)
				}
			}
			ws := sentinelWriters(t, addrs)
			at := time.Now()
			signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
			d.followed(ws, mode+" addresses, kill", at)
			d.waitHealthy(20 * time.Second)
			at = time.Now()
			if out, err := d.run("switchover", "--yes"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			d.followed(ws, mode+" addresses, switchover", at)
			for _, w := range ws {
				w.finish()
				v := judge(t, d.proxyAddr(1), []*writer{w})
				t.Logf("%s addresses, %s: %d errors, %d acknowledged, %d lost", mode, w.name, v.errors, v.acked, v.lost)
				if mode == "proxy" && v.lost > 0 { // in direct mode nobody withholds the reply: asynchronous by nature
					t.Errorf("%s lost %d acknowledged writes", w.name, v.lost)
				}
			}
		})
	}
}

// followed waits until every writer has written something that began after an event.
func (d *deployment) followed(ws []*writer, what string, at time.Time) {
	d.t.Helper()
	for _, w := range ws {
		d.until(20*time.Second, what+": "+w.name+" follows", func() (bool, string) {
			all := w.all()
			last := all[len(all)-1]
			return last.ok && last.start.After(at.Add(50*time.Millisecond)), last.err
		})
	}
	wait(300 * time.Millisecond)
	for _, w := range ws {
		d.t.Logf("%s: %s: write outage %.1f ms", what, w.name, ms(outage([]*writer{w}, at).outage))
	}
}
