// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net"
	"time"

	"redoubt/internal/redis"
)

// presenceRetry paces attempts to say that the proxy is there.
const presenceRetry = 100 * time.Millisecond

// stayPresent keeps a connection to the primary that says that something may be on its way there from this proxy, until in a
// switchover nothing is (ADR 7). Shared connections say so as well; those of single sessions, of which a proxy may have no others,
// cannot.
func (p *Proxy) stayPresent() {
	var at *tenure
	var conn net.Conn
	var ended chan struct{}
	leave := func() {
		if conn != nil {
			_ = conn.Close()
			conn, ended = nil, nil
		}
	}
	defer leave()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	due := true
	for {
		o := p.order.Load()
		if o.t != at {
			leave()
			at, due = o.t, true
		}
		if !o.sending && !(o.draining && p.inflight.Load() > 0) {
			leave()
		}
		if conn == nil && due && o.sending {
			var err error
			if conn, ended, err = p.appear(at.addr); err != nil {
				p.log.Debug("be seen at the primary", "node", at.node, "err", err)
				due = false
				retry.Reset(presenceRetry)
			}
			continue // what is ordered may have changed meanwhile
		}
		select {
		case <-p.ctx.Done():
			return
		case <-p.presence:
		case <-retry.C:
			due = true
		case <-ended:
			leave()
			due = false
			retry.Reset(presenceRetry)
		}
	}
}

// appear opens such a connection. The channel is closed when it has ended.
func (p *Proxy) appear(addr string) (net.Conn, chan struct{}, error) {
	k, err := p.errandAs(redis.PresentClientName, target{addr: addr})
	if err != nil {
		return nil, nil, err
	}
	if err := k.conn.SetDeadline(time.Time{}); err != nil {
		_ = k.conn.Close()
		return nil, nil, err
	}
	conn, ended := k.conn, make(chan struct{})
	p.spawn(func() {
		_, _ = conn.Read(make([]byte, 1)) // nothing is said here, until it ends
		close(ended)
	})
	return conn, ended, nil
}
