// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

// redigoOps uses a pool as its documentation shows it, without a TestOnBorrow: a connection through a proxy does not break.
func redigoOps(t *testing.T, addr, prefix string) goOps {
	pool := &redis.Pool{MaxIdle: 3, IdleTimeout: 240 * time.Second, Dial: func() (redis.Conn, error) { return redis.Dial("tcp", addr) }}
	waiting, err := redis.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	listening, err := redis.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	sha := ""
	with := func(do func(c redis.Conn) (string, error)) (string, error) {
		c := pool.Get()
		defer c.Close()
		return do(c)
	}
	type op = func(context.Context, int64) (string, error)
	loop := map[string]op{}
	for name, do := range redigoFeatures(prefix, &sha) {
		loop[name] = func(_ context.Context, seq int64) (string, error) {
			return with(func(c redis.Conn) (string, error) { return do(c, seq) })
		}
	}
	return goOps{
		setup: func(context.Context) error {
			_, err := with(func(c redis.Conn) (_ string, err error) {
				if sha, err = redis.String(c.Do("SCRIPT", "LOAD", pushScript)); err != nil {
					return "", err
				}
				return redis.String(c.Do("XGROUP", "CREATE", prefix+"stream", "g", "0", "MKSTREAM"))
			})
			return err
		},
		loop: loop,
		pop: func(context.Context) (string, error) {
			v, err := redis.Strings(waiting.Do("BLPOP", prefix+"pop", popSeconds))
			if err != nil {
				return "", err
			}
			return v[1], nil
		},
		subscribe: func(_ context.Context, got func(string)) error {
			s := redis.PubSubConn{Conn: listening}
			if err := s.Subscribe(prefix + "channel"); err != nil {
				return err
			}
			for {
				switch m := s.Receive().(type) {
				case redis.Message:
					got(string(m.Data))
				case error:
					return m
				}
			}
		},
		scan:  func(_ context.Context, key func(string)) error { return redigoScan(pool, prefix, key) },
		close: func() { waiting.Close(); listening.Close(); pool.Close() },
	}
}

func redigoFeatures(prefix string, sha *string) map[string]func(redis.Conn, int64) (string, error) {
	script := redis.NewScript(1, "-- helper\n"+pushScript)
	return map[string]func(redis.Conn, int64) (string, error){
		"strings": func(c redis.Conn, seq int64) (string, error) {
			key := fmt.Sprintf("%ss:%d", prefix, seq)
			if _, err := c.Do("SET", key, seq); err != nil {
				return "", err
			}
			v, err := redis.String(c.Do("GET", key))
			return v, want(v, seq, err)
		},
		"pipeline":    func(c redis.Conn, seq int64) (string, error) { return redigoPipeline(c, prefix, seq) },
		"transaction": func(c redis.Conn, seq int64) (string, error) { return redigoTransaction(c, prefix, seq) },
		"stream":      func(c redis.Conn, seq int64) (string, error) { return redigoStream(c, prefix, seq) },
		"script": func(c redis.Conn, seq int64) (string, error) {
			v, err := redis.String(script.Do(c, prefix+"script", seq))
			return v, want(v, seq, err)
		},
		"evalsha": func(c redis.Conn, seq int64) (string, error) {
			v, err := redis.String(c.Do("EVALSHA", *sha, 1, prefix+"evalsha", seq))
			return v, want(v, seq, err)
		},
		"blocking": func(c redis.Conn, seq int64) (string, error) {
			if _, err := c.Do("LPUSH", prefix+"queue", seq); err != nil {
				return "", err
			}
			return redis.String(c.Do("BRPOPLPUSH", prefix+"queue", prefix+"blocking", popSeconds))
		},
		"publish": func(c redis.Conn, seq int64) (string, error) {
			n, err := redis.Int(c.Do("PUBLISH", prefix+"channel", seq))
			return fmt.Sprint(n), err
		},
	}
}

func redigoScan(pool *redis.Pool, prefix string, key func(string)) error {
	c := pool.Get()
	defer c.Close()
	for cursor := "0"; ; {
		page, err := redis.Values(c.Do("SCAN", cursor, "MATCH", prefix+"fix:*", "COUNT", 20))
		if err != nil {
			return err
		}
		var keys []string
		if _, err := redis.Scan(page, &cursor, &keys); err != nil {
			return err
		}
		for _, k := range keys {
			key(k)
		}
		if cursor == "0" {
			return nil
		}
	}
}

func redigoPipeline(c redis.Conn, prefix string, seq int64) (string, error) {
	sent := errors.Join(c.Send("RPUSH", prefix+"pipeline", seq), c.Send("SET", prefix+"last", seq), c.Send("GET", prefix+"last"))
	for range 10 {
		sent = errors.Join(sent, c.Send("INCR", prefix+"n"))
	}
	if err := errors.Join(sent, c.Flush()); err != nil {
		return "", err
	}
	var v string
	var errs error
	for i := range 13 {
		reply, err := c.Receive()
		if i == 2 {
			v, err = redis.String(reply, err)
		}
		errs = errors.Join(errs, err)
	}
	return v, want(v, seq, errs)
}

func redigoTransaction(c redis.Conn, prefix string, seq int64) (string, error) {
	if _, err := c.Do("WATCH", prefix+"counter"); err != nil {
		return "", err
	}
	n, err := redis.Int64(c.Do("GET", prefix+"counter"))
	if err != nil && !errors.Is(err, redis.ErrNil) {
		return "", err
	}
	if err := errors.Join(c.Send("MULTI"), c.Send("SET", prefix+"counter", n+1), c.Send("RPUSH", prefix+"transaction", seq)); err != nil {
		return "", err
	}
	results, err := redis.Values(c.Do("EXEC"))
	if errors.Is(err, redis.ErrNil) {
		return "", errLostWatch
	}
	return "", want(len(results), 2, err)
}

func redigoStream(c redis.Conn, prefix string, seq int64) (string, error) {
	if _, err := c.Do("XADD", prefix+"stream", "*", "n", seq); err != nil {
		return "", err
	}
	streams, err := redis.Values(c.Do("XREADGROUP", "GROUP", "g", "c", "COUNT", 100, "BLOCK", 1000, "STREAMS", prefix+"stream", ">"))
	if err != nil {
		return "", err
	}
	stream, err := redis.Values(streams[0], nil)
	if err != nil {
		return "", err
	}
	entries, err := redis.Values(stream[1], nil)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		entry, err := redis.Values(e, err)
		if err != nil {
			return "", err
		}
		n, err := redis.Int(c.Do("XACK", prefix+"stream", "g", entry[0]))
		if err = want(n, 1, err); err != nil {
			return "", err
		}
	}
	return "", nil
}
