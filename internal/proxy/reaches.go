// SPDX-License-Identifier: Apache-2.0

package proxy

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
