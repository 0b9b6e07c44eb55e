// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"strconv"
	"strings"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// info answers INFO of sections that include the proxy's own: the server's answer with ours behind it.
func (s *session) info(args [][]byte, raw []byte, f flags) bool {
	if len(args) != 2 || !route.Is(args[1], "REDOUBT") {
		return s.send(raw, item{flags: f | resendable, op: opInfo})
	}
	if f&muted != 0 {
		return true
	}
	return s.say(appendText(nil, s.proto, s.p.section()))
}

// withSection puts the proxy's section behind a server's answer to INFO.
func (p *Proxy) withSection(f []byte, proto int) []byte {
	if f[0] != '$' && f[0] != '=' {
		return f // an error
	}
	return appendText(nil, proto, string(resp.Text(f))+"\r\n"+p.section())
}

// appendText appends what a server shows to people: a verbatim string in RESP3.
func appendText(dst []byte, proto int, text string) []byte {
	if proto != 3 {
		return resp.AppendBulk(dst, text)
	}
	dst = append(strconv.AppendInt(append(dst, '='), int64(len(text)+4), 10), "\r\ntxt:"...)
	return append(append(dst, text...), '\r', '\n')
}

// section is the proxy's own section of INFO.
func (p *Proxy) section() string {
	st, o := p.Stats(), p.order.Load()
	state := o.why
	if t := p.noDisk.Load(); t != nil && o.need.disk {
		state = *t
	} else if p.maySend(o) {
		state = "serving"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Redoubt\r\nproxy_id:%s\r\nepoch:%d\r\nsending:%t\r\n", p.o.ID, st.Epoch, st.Sending)
	if o.t != nil {
		fmt.Fprintf(&b, "primary:%s\r\nprimary_run_id:%s\r\n", o.t.node, o.t.runID)
	}
	fmt.Fprintf(&b, "state:%s\r\ndurability:%s\r\nack_replicas:%d\r\nclients:%d\r\npinned:%d\r\nparked:%d\r\nparked_bytes:%d\r\nin_flight:%d\r\n",
		state, o.need.promise(), o.need.acks, st.Clients, st.Pinned, st.Parked, st.ParkedBytes, st.InFlight)
	age, bytes, held := p.Loss()
	fmt.Fprintf(&b, "unreplicated_ms:%d\r\nunreplicated_bytes:%d\r\nwrites_held:%t\r\n", age.Milliseconds(), bytes, held)
	if p.o.Exact {
		fmt.Fprintf(&b, "retry:exact\r\nretry_replayed:%d\r\nretry_applied:%d\r\nretry_evicting:%t\r\n", st.Replayed, st.Applied, st.Evicting)
	} else {
		b.WriteString("retry:none\r\n")
	}
	fmt.Fprintf(&b, "commands:%d\r\noutcome_unknown:%d\r\nresent:%d\r\nwas_parked:%d\r\nrefused:%d\r\n",
		st.Commands, st.Unknown, st.Resent, st.WasParked, st.Refused)
	return b.String()
}
