// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"redoubt/internal/route"
)

// Attach returns a connection of a new client in this process, as if it had come by the read-write port. Run must have been
// called, or be called before ctx ends.
func (p *Proxy) Attach(ctx context.Context) (net.Conn, error) {
	select {
	case <-p.running:
	case <-ctx.Done():
		return nil, fmt.Errorf("attach to the proxy: %w", ctx.Err())
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("attach to the proxy: %w", err)
	}
	f := os.NewFile(uintptr(pair[0]), "attached client")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		_ = unix.Close(pair[1])
		return nil, fmt.Errorf("attach to the proxy: %w", err)
	}
	p.admit(&sock{fd: pair[1], door: attached}, false)
	return c, nil
}

// attached is the door of clients that came by Attach: nobody stands in front of them with a PROXY header.
const attached = "attached"

// Table returns the commands of the server behind the proxy, as far as they are known by now. Safe for concurrent use.
func (p *Proxy) Table() *route.Table { return p.table.Load() }

// Reaches tells whether commands of clients can be sent to the shard's primary now. When the last attempt to connect to it failed,
// another one is made, which takes as long as a connection may. For a caller that would rather do without the shard than wait.
func (p *Proxy) Reaches() bool {
	o := p.order.Load()
	if o.t == nil || !o.sending || !o.t.good(p.now()) {
		return false
	}
	if p.herald.lost.Load() != o.t {
		return true
	}
	k, err := p.errand(o.t.addr)
	if err != nil {
		return false
	}
	_ = k.conn.Close()
	p.herald.reached(o.t, true)
	return true
}
