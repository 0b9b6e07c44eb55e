// SPDX-License-Identifier: Apache-2.0

package proxy

// In a ring keys may become another shard's. What was given to this one and was not sent by then must not be sent any more: it is answered as not
// executed, and who gave it places it anew (ADR 46).

// Shut sends nothing any more. What waits here is answered with route.KeysMove, also commands that block at the server. It returns at once.
func (p *Proxy) Shut() {
	if p.shut.Swap(true) {
		return
	}
	p.spawn(p.unblockAll)
	p.rouse()
}

// Quiet reports whether nothing is on its way to the primary. Behind Shut it stays so until Reopen.
func (p *Proxy) Quiet() bool { return p.inflight.Load() == 0 }

// Reopen ends what Shut began.
func (p *Proxy) Reopen() {
	if p.shut.Swap(false) {
		p.rouse()
	}
}
