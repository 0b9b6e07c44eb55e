// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	pushScript = "redis.call('RPUSH', KEYS[1], ARGV[1]) return ARGV[1]"
	popSeconds = 20 // longer than any event here takes
)

// want is the common check of a reply.
func want(got, expected any, err error) error {
	if err == nil && fmt.Sprint(got) != fmt.Sprint(expected) {
		err = fmt.Errorf("got %v, want %v", got, expected)
	}
	return err
}

func goRedisOps(t *testing.T, addr, prefix string) goOps {
	c, waiting := redis.NewClient(&redis.Options{Addr: addr}), redis.NewClient(&redis.Options{Addr: addr})
	sha := ""
	script := redis.NewScript("-- helper\n" + pushScript)
	type op = func(context.Context, int64) (string, error)
	return goOps{
		setup: func(ctx context.Context) (err error) {
			if sha, err = c.ScriptLoad(ctx, pushScript).Result(); err != nil {
				return err
			}
			return c.XGroupCreateMkStream(ctx, prefix+"stream", "g", "0").Err()
		},
		loop: map[string]op{
			"strings": func(ctx context.Context, seq int64) (string, error) {
				key := fmt.Sprintf("%ss:%d", prefix, seq)
				if err := c.Set(ctx, key, seq, 0).Err(); err != nil {
					return "", err
				}
				v, err := c.Get(ctx, key).Result()
				return v, want(v, seq, err)
			},
			"pipeline":    goRedisPipeline(c, prefix),
			"transaction": goRedisTransaction(c, prefix),
			"stream":      goRedisStream(c, prefix),
			"script": func(ctx context.Context, seq int64) (string, error) {
				v, err := script.Run(ctx, c, []string{prefix + "script"}, seq).Text()
				return v, want(v, seq, err)
			},
			"evalsha": func(ctx context.Context, seq int64) (string, error) {
				v, err := c.EvalSha(ctx, sha, []string{prefix + "evalsha"}, seq).Text()
				return v, want(v, seq, err)
			},
			"blocking": func(ctx context.Context, seq int64) (string, error) {
				if err := c.LPush(ctx, prefix+"queue", seq).Err(); err != nil {
					return "", err
				}
				return c.BLMove(ctx, prefix+"queue", prefix+"blocking", "RIGHT", "LEFT", popSeconds*1e9).Result()
			},
			"publish": func(ctx context.Context, seq int64) (string, error) {
				n, err := c.Publish(ctx, prefix+"channel", seq).Result()
				return fmt.Sprint(n), err
			},
		},
		pop: func(ctx context.Context) (string, error) {
			v, err := waiting.BLPop(ctx, popSeconds*1e9, prefix+"pop").Result()
			if err != nil {
				return "", err
			}
			return v[1], nil
		},
		subscribe: func(ctx context.Context, got func(string)) error {
			s := waiting.Subscribe(ctx, prefix+"channel")
			defer s.Close()
			for m := range s.Channel() {
				got(m.Payload)
			}
			return errors.New("its channel is closed")
		},
		scan: func(ctx context.Context, key func(string)) error {
			it := c.Scan(ctx, 0, prefix+"fix:*", 20).Iterator()
			for it.Next(ctx) {
				key(it.Val())
			}
			return it.Err()
		},
		close: func() { c.Close(); waiting.Close() },
	}
}

func goRedisPipeline(c *redis.Client, prefix string) func(context.Context, int64) (string, error) {
	return func(ctx context.Context, seq int64) (string, error) {
		p := c.Pipeline()
		p.RPush(ctx, prefix+"pipeline", seq)
		p.Set(ctx, prefix+"last", seq, 0)
		get := p.Get(ctx, prefix+"last")
		for range 10 {
			p.Incr(ctx, prefix+"n")
		}
		_, err := p.Exec(ctx)
		return get.Val(), want(get.Val(), seq, err)
	}
}

func goRedisTransaction(c *redis.Client, prefix string) func(context.Context, int64) (string, error) {
	return func(ctx context.Context, seq int64) (string, error) {
		err := c.Watch(ctx, func(tx *redis.Tx) error {
			n, err := tx.Get(ctx, prefix+"counter").Int64()
			if err != nil && !errors.Is(err, redis.Nil) {
				return err
			}
			_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
				p.Set(ctx, prefix+"counter", n+1, 0)
				p.RPush(ctx, prefix+"transaction", seq)
				return nil
			})
			return err
		}, prefix+"counter")
		if errors.Is(err, redis.TxFailedErr) {
			err = errLostWatch
		}
		return "", err
	}
}

func goRedisStream(c *redis.Client, prefix string) func(context.Context, int64) (string, error) {
	return func(ctx context.Context, seq int64) (string, error) {
		if err := c.XAdd(ctx, &redis.XAddArgs{Stream: prefix + "stream", Values: []any{"n", seq}}).Err(); err != nil {
			return "", err
		}
		read, err := c.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{prefix + "stream", ">"}, Count: 100, Block: 1e9}).Result()
		if err != nil {
			return "", err
		}
		for _, m := range read[0].Messages {
			n, err := c.XAck(ctx, prefix+"stream", "g", m.ID).Result()
			if err = want(n, 1, err); err != nil {
				return "", err
			}
		}
		return "", nil
	}
}

// TestTransactionsOfManyClients: MULTI and pipelines without a pause, so that some are on their way at every moment of an
// event. A kill costs errors that the documents name, a switchover none.
func TestTransactionsOfManyClients(t *testing.T) {
	d := up(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p := &participant{name: "go-redis"}
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	d.waitHealthy(30 * time.Second)
	for i := range 16 {
		c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0)})
		list := fmt.Sprint("many:", i)
		clients.Go(func() {
			defer c.Close()
			for seq := int64(1); ctx.Err() == nil; seq++ {
				pipe, feature := c.TxPipeline(), "transaction"
				if i%2 == 1 {
					pipe, feature = c.Pipeline(), "pipeline"
				}
				for range 3 {
					pipe.RPush(context.Background(), list, seq)
				}
				p.timed(context.Background(), feature, seq, func() (string, error) {
					_, err := pipe.Exec(context.Background())
					return "", err
				})
			}
		})
	}
	m := &matrix{t: t, d: d, p: p, features: []string{"transaction", "pipeline"}}
	each := func(what string, do func(status)) {
		s := d.waitHealthy(30 * time.Second)
		at := time.Now()
		do(s)
		m.events = append(m.events, at)
		for _, f := range m.features {
			if !poll(patience, func() bool { n, _ := p.successes(f, at.Add(20*time.Millisecond)); return n > 100 }) {
				t.Errorf("%s: no %s works again within %s", what, f, patience)
			}
		}
		d.waitHealthy(30 * time.Second)
	}
	each("kill", func(s status) {
		m.killAt = time.Now()
		signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
	})
	m.healedAt = time.Now()
	for range 2 {
		each("switchover", func(status) {
			if out, err := d.run("switchover", "--yes"); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	cancel()
	clients.Wait()
	m.judgeReports()
}
