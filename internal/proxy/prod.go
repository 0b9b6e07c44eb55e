// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"sync/atomic"
	"time"

	"redoubt/internal/redis"
)

// prod counts the WAITs that are open, so that one that is late can be helped.
//
// A replica that resumed its stream (partial resync) acknowledges over a connection without TCP_NODELAY (redis-server
// 7.0.15: the cached primary's connection is taken over as it is). Its answer to the WAIT can then sit behind the
// acknowledgement that its cron sent a moment before, until the primary's kernel confirms that one: 40 ms, once a second
// (measured). Any further byte on the stream carries that confirmation along, so a late WAIT is helped by one more
// marker on another connection.
type prod struct {
	open atomic.Int64
	done atomic.Int64 // grows with every WAIT that was answered
	wake chan struct{}
}

func (p *prod) opened() {
	if p.open.Add(1) == 1 {
		poke(p.wake)
	}
}

func (p *prod) closed(n int) {
	p.open.Add(int64(-n))
	p.done.Add(int64(n))
}

// A WAIT normally takes well below prodAfter; while one stays open the pauses grow to prodPauseMax.
const (
	prodAfter    = 1500 * time.Microsecond
	prodPauseMax = 200 * time.Millisecond
)

// prodReplicas is a goroutine of the proxy. It costs one timer every prodAfter while WAITs are open, and nothing else.
func (p *Proxy) prodReplicas() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.prod.wake:
		}
		pause := prodAfter
		for p.prod.open.Load() > 0 {
			before := p.prod.done.Load()
			timer.Reset(pause)
			select {
			case <-p.ctx.Done():
				return
			case <-timer.C:
			}
			o := p.order.Load()
			if p.prod.done.Load() != before || p.prod.open.Load() == 0 || o.t == nil {
				pause = prodAfter
				continue
			}
			if _, err := p.ask(o.t.addr, redis.Marker(p.o.Cluster)); err != nil {
				p.log.Debug("help a late acknowledgement", "node", o.t.node, "err", err)
			}
			pause = min(2*pause, prodPauseMax)
		}
	}
}
