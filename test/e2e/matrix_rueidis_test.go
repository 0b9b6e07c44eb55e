// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

func rueidisOps(t *testing.T, addr, prefix string) goOps {
	t.Helper()
	connect := func() rueidis.Client { // client-side caching is on unless it is switched off
		c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}})
		if err != nil {
			t.Fatalf("rueidis with default settings: %v", err)
		}
		return c
	}
	c, waiting := connect(), connect()
	sha := ""
	type op = func(context.Context, int64) (string, error)
	ops := goOps{
		setup: func(ctx context.Context) (err error) {
			if sha, err = c.Do(ctx, c.B().ScriptLoad().Script(pushScript).Build()).ToString(); err != nil {
				return err
			}
			return c.Do(ctx, c.B().XgroupCreate().Key(prefix+"stream").Group("g").Id("0").Mkstream().Build()).Error()
		},
		loop: map[string]op{
			"cache":       rueidisCache(c, waiting, prefix),
			"transaction": rueidisTransaction(c, prefix),
			"stream":      rueidisStream(c, prefix),
			"pipeline":    rueidisPipeline(c, prefix),
		},
		pop: func(ctx context.Context) (string, error) {
			v, err := waiting.Do(ctx, waiting.B().Blpop().Key(prefix+"pop").Timeout(popSeconds).Build()).AsStrSlice()
			if err != nil {
				return "", err
			}
			return v[1], nil
		},
		subscribe: func(ctx context.Context, got func(string)) error {
			return waiting.Receive(ctx, waiting.B().Subscribe().Channel(prefix+"channel").Build(), func(m rueidis.PubSubMessage) { got(m.Message) })
		},
		scan: func(ctx context.Context, key func(string)) error {
			for cursor := uint64(0); ; {
				e, err := c.Do(ctx, c.B().Scan().Cursor(cursor).Match(prefix+"fix:*").Count(20).Build()).AsScanEntry()
				if err != nil {
					return err
				}
				for _, k := range e.Elements {
					key(k)
				}
				if cursor = e.Cursor; cursor == 0 {
					return nil
				}
			}
		},
		close: func() { c.Close(); waiting.Close() },
	}
	rueidisBasics(c, ops.loop, prefix, &sha)
	return ops
}

// rueidisBasics adds the features that are a command or two.
func rueidisBasics(c rueidis.Client, loop map[string]func(context.Context, int64) (string, error), prefix string, sha *string) {
	script := rueidis.NewLuaScript("-- helper\n" + pushScript)
	loop["script"] = func(ctx context.Context, seq int64) (string, error) {
		v, err := script.Exec(ctx, c, []string{prefix + "script"}, []string{fmt.Sprint(seq)}).ToString()
		return v, want(v, seq, err)
	}
	loop["evalsha"] = func(ctx context.Context, seq int64) (string, error) {
		v, err := c.Do(ctx, c.B().Evalsha().Sha1(*sha).Numkeys(1).Key(prefix+"evalsha").Arg(fmt.Sprint(seq)).Build()).ToString()
		return v, want(v, seq, err)
	}
	loop["strings"] = func(ctx context.Context, seq int64) (string, error) {
		key := fmt.Sprintf("%ss:%d", prefix, seq)
		if err := c.Do(ctx, c.B().Set().Key(key).Value(fmt.Sprint(seq)).Build()).Error(); err != nil {
			return "", err
		}
		v, err := c.Do(ctx, c.B().Get().Key(key).Build()).ToString()
		return v, want(v, seq, err)
	}
	loop["blocking"] = func(ctx context.Context, seq int64) (string, error) {
		if err := c.Do(ctx, c.B().Lpush().Key(prefix+"queue").Element(fmt.Sprint(seq)).Build()).Error(); err != nil {
			return "", err
		}
		return c.Do(ctx, c.B().Brpoplpush().Source(prefix+"queue").Destination(prefix+"blocking").Timeout(popSeconds).Build()).ToString()
	}
	loop["publish"] = func(ctx context.Context, seq int64) (string, error) {
		n, err := c.Do(ctx, c.B().Publish().Channel(prefix+"channel").Message(fmt.Sprint(seq)).Build()).AsInt64()
		return fmt.Sprint(n), err
	}
}

func rueidisPipeline(c rueidis.Client, prefix string) func(context.Context, int64) (string, error) {
	return func(ctx context.Context, seq int64) (string, error) {
		cmds := rueidis.Commands{
			c.B().Rpush().Key(prefix + "pipeline").Element(fmt.Sprint(seq)).Build(),
			c.B().Set().Key(prefix + "last").Value(fmt.Sprint(seq)).Build(),
			c.B().Get().Key(prefix + "last").Build(),
		}
		for range 10 {
			cmds = append(cmds, c.B().Incr().Key(prefix+"n").Build())
		}
		var errs error
		replies := c.DoMulti(ctx, cmds...)
		for _, r := range replies {
			errs = errors.Join(errs, r.Error())
		}
		v, _ := replies[2].ToString()
		return v, want(v, seq, errs)
	}
}

func rueidisTransaction(c rueidis.Client, prefix string) func(context.Context, int64) (string, error) {
	return func(ctx context.Context, seq int64) (string, error) {
		err := c.Dedicated(func(d rueidis.DedicatedClient) error {
			if err := d.Do(ctx, d.B().Watch().Key(prefix+"counter").Build()).Error(); err != nil {
				return err
			}
			n, err := d.Do(ctx, d.B().Get().Key(prefix+"counter").Build()).AsInt64()
			if err != nil && !rueidis.IsRedisNil(err) {
				return err
			}
			replies := d.DoMulti(ctx, d.B().Multi().Build(),
				d.B().Set().Key(prefix+"counter").Value(fmt.Sprint(n+1)).Build(),
				d.B().Rpush().Key(prefix+"transaction").Element(fmt.Sprint(seq)).Build(),
				d.B().Exec().Build())
			for _, r := range replies[:3] {
				if r.Error() != nil {
					return r.Error()
				}
			}
			results, err := replies[3].ToArray()
			if rueidis.IsRedisNil(err) {
				return errLostWatch
			}
			return want(len(results), 2, err)
		})
		return "", err
	}
}

func rueidisStream(c rueidis.Client, prefix string) func(context.Context, int64) (string, error) {
	return func(ctx context.Context, seq int64) (string, error) {
		if err := c.Do(ctx, c.B().Xadd().Key(prefix+"stream").Id("*").FieldValue().FieldValue("n", fmt.Sprint(seq)).Build()).Error(); err != nil {
			return "", err
		}
		read, err := c.Do(ctx, c.B().Xreadgroup().Group("g", "c").Count(100).Block(1000).Streams().Key(prefix+"stream").Id(">").Build()).AsXRead()
		if err != nil {
			return "", err
		}
		for _, e := range read[prefix+"stream"] {
			n, err := c.Do(ctx, c.B().Xack().Key(prefix+"stream").Group("g").Id(e.ID).Build()).AsInt64()
			if err = want(n, 1, err); err != nil {
				return "", err
			}
		}
		return "", nil
	}
}

// rueidisCache reads through the client's cache what another connection writes: the news must arrive within a second, and
// repeated reads must be served from the cache.
func rueidisCache(c, other rueidis.Client, prefix string) func(context.Context, int64) (string, error) {
	return func(ctx context.Context, seq int64) (string, error) {
		key := fmt.Sprintf("%scached:%d", prefix, seq%10)
		if err := other.Do(ctx, other.B().Set().Key(key).Value(fmt.Sprint(seq)).Build()).Error(); err != nil {
			return "", err
		}
		for begun := time.Now(); ; {
			r := c.DoCache(ctx, c.B().Get().Key(key).Cache(), time.Minute)
			v, err := r.ToString()
			if err != nil {
				return "", err
			}
			if v == fmt.Sprint(seq) {
				break
			}
			if time.Since(begun) > time.Second {
				return "", fmt.Errorf("the cache says %s a second after %d was acknowledged (from the cache: %t)", v, seq, r.IsCacheHit())
			}
			wait(time.Millisecond)
		}
		if r := c.DoCache(ctx, c.B().Get().Key(key).Cache(), time.Minute); r.Error() != nil || !r.IsCacheHit() {
			// Something may have emptied the cache in between, as an event does; not twice.
			if r = c.DoCache(ctx, c.B().Get().Key(key).Cache(), time.Minute); r.Error() != nil || !r.IsCacheHit() {
				return "", fmt.Errorf("a repeated read is not served from the cache (%w)", errors.Join(r.Error(), errors.New("no hit")))
			}
		}
		return "", nil
	}
}
