// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	keyLife  = 5 * time.Second // then a group of clients goes on with a new key, so that no key gets too many open operations
	opLimit  = 3 * time.Second
	pauseMin = 5 * time.Millisecond
	pauseMax = 35 * time.Millisecond
)

// client is one connection's worth of traffic from inside one host.
type client struct {
	id, host int
	c        redis.UniversalClient
	h        *history
	rnd      *rand.Rand
	final    bool
	ops      []op
	seq      int
	mine     []string // elements that this client added to the present set
}

// do runs one operation and records it.
func (c *client) do(kind, key, arg string, f func(ctx context.Context, o *op) error) op {
	o := op{Client: c.id, Host: c.host, Kind: kind, Key: key, Arg: arg, Final: c.final}
	ctx, cancel := context.WithTimeout(context.Background(), opLimit)
	defer cancel()
	o.Start = c.h.now()
	err := f(ctx, &o)
	o.End = c.h.now()
	o.Outcome = classify(err)
	o.Nil = o.Nil || errors.Is(err, redis.Nil)
	if o.Outcome != ok {
		o.Err = err.Error()
		again(ctx, c.c)
	}
	c.ops = append(c.ops, o)
	return o
}

// text takes a reply that is a string or absent.
func text(o *op, cmd *redis.StringCmd) error {
	v, err := cmd.Result()
	o.Out = v
	return err
}

func number(o *op, cmd *redis.IntCmd) error {
	v, err := cmd.Result()
	o.Out = strconv.FormatInt(v, 10)
	return err
}

func (c *client) get(key string) op {
	return c.do("get", key, "", func(ctx context.Context, o *op) error { return text(o, c.c.Get(ctx, wire(c.c, key))) })
}

func (c *client) smembers(key string) op {
	return c.do("smembers", key, "", func(ctx context.Context, o *op) (err error) {
		o.All, err = c.c.SMembers(ctx, wire(c.c, key)).Result()
		return err
	})
}

func (c *client) lrange(key string) op {
	return c.do("lrange", key, "", func(ctx context.Context, o *op) (err error) {
		o.All, err = c.c.LRange(ctx, wire(c.c, key), 0, -1).Result()
		return err
	})
}

// counts reads both counters of a pair in one transaction.
func (c *client) counts(key string) op {
	return c.do("counts", key, "", func(ctx context.Context, o *op) error {
		v, err := c.c.MGet(ctx, wire(c.c, key+":a"), wire(c.c, key+":b")).Result()
		if err == nil {
			o.Nil = v[0] == nil && v[1] == nil
			o.Out = fmt.Sprintf("%v %v", v[0], v[1])
		}
		return err
	})
}

// unique is a value that no other operation writes.
func (c *client) unique() string {
	c.seq++
	return fmt.Sprintf("%d.%d", c.id, c.seq)
}

func (c *client) register(gen int) {
	key := fmt.Sprintf("r:%d", gen)
	if gen > 0 && c.rnd.IntN(20) == 0 { // is what was written long ago still there?
		c.get(fmt.Sprintf("r:%d", c.rnd.IntN(gen)))
		return
	}
	switch n := c.rnd.IntN(10); {
	case n < 4: // the reply is the value before: a write that is a read, too
		v := c.unique()
		c.do("setget", key, v, func(ctx context.Context, o *op) (err error) {
			o.Out, err = c.c.SetArgs(ctx, wire(c.c, key), v, redis.SetArgs{Get: true}).Result()
			return err
		})
	case n < 6:
		v := c.unique()
		c.do("set", key, v, func(ctx context.Context, o *op) error { return c.c.Set(ctx, wire(c.c, key), v, 0).Err() })
	default:
		c.get(key)
	}
}

func (c *client) counter(gen int) {
	key := fmt.Sprintf("c:%d", gen)
	if c.rnd.IntN(10) < 7 {
		c.do("incr", key, "", func(ctx context.Context, o *op) error { return number(o, c.c.Incr(ctx, wire(c.c, key))) })
		return
	}
	c.get(key)
}

// pair increments two counters in a transaction.
func (c *client) pair(gen int) {
	key := fmt.Sprintf("t:%d", gen)
	if c.rnd.IntN(5) == 0 {
		c.counts(key)
		return
	}
	c.do("multi", key, "", func(ctx context.Context, o *op) error {
		var a, b *redis.IntCmd
		_, err := c.c.TxPipelined(ctx, func(p redis.Pipeliner) error {
			a, b = p.Incr(ctx, wire(c.c, key+":a")), p.Incr(ctx, wire(c.c, key+":b"))
			return nil
		})
		o.Out = fmt.Sprintf("%d %d", a.Val(), b.Val())
		return err
	})
}

func (c *client) set(gen int) {
	key := fmt.Sprintf("s:%d", gen)
	switch n := c.rnd.IntN(20); {
	case n == 0:
		c.smembers(key)
	case n == 1 && len(c.mine) > 0:
		e := c.mine[len(c.mine)-1]
		c.mine = c.mine[:len(c.mine)-1]
		in, _, _ := strings.Cut(e, "=")
		c.do("srem", in, e, func(ctx context.Context, o *op) error { return number(o, c.c.SRem(ctx, wire(c.c, in), e)) })
	default:
		e := key + "=" + c.unique()
		o := c.do("sadd", key, e, func(ctx context.Context, o *op) error { return number(o, c.c.SAdd(ctx, wire(c.c, key), e)) })
		if o.Outcome == ok {
			c.mine = append(c.mine, e)
		}
	}
}

func (c *client) push(gen int) {
	key, e := fmt.Sprintf("l:%d", gen), c.unique()
	c.do("rpush", key, e, func(ctx context.Context, o *op) error { return number(o, c.c.RPush(ctx, wire(c.c, key), e)) })
}

func (c *client) pop(gen int) {
	key := fmt.Sprintf("l:%d", gen)
	c.do("lpop", key, "", func(ctx context.Context, o *op) error { return text(o, c.c.LPop(ctx, wire(c.c, key))) })
}

// act is what one client does again and again; gen says with which key.
type act func(c *client, gen int)

// acts are the kinds of clients of each host.
func acts() []act {
	return []act{(*client).register, (*client).register, (*client).counter, (*client).pair, (*client).set, (*client).push, (*client).pop}
}

// traffic runs the clients of all hosts until ctx ends, and waits for their last operations.
func (r *run) traffic(ctx context.Context) {
	var wg sync.WaitGroup
	id := 0
	for host := 1; host <= r.o.hosts; host++ {
		for i, a := range acts() {
			id++
			to := host
			if i == 1 { // one client of each host goes to another host's proxy, over the network
				to = host%r.o.hosts + 1
			}
			c := r.newClient(id, host, to)
			wg.Go(func() { c.loop(ctx, a) })
		}
	}
	wg.Wait()
}

func (c *client) loop(ctx context.Context, a act) {
	defer c.c.Close()
	for ctx.Err() == nil {
		a(c, int(c.h.now()/keyLife))
		wait(ctx, pauseMin+time.Duration(c.rnd.Int64N(int64(pauseMax-pauseMin))))
	}
	c.h.add(c.ops)
}

// wait lets time pass, or less when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// newClient makes a client inside a host; it goes to the proxy of host to, or asks a Sentinel there.
func (r *run) newClient(id, host, to int) *client {
	return &client{id: id, host: host, c: r.sys.client(host, to), h: r.history, rnd: rand.New(rand.NewPCG(uint64(r.seed), uint64(id)+100))}
}
