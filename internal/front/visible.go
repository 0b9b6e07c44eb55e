// SPDX-License-Identifier: Apache-2.0

package front

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// visible is what others see of a client: CLIENT LIST and KILL, and the sweep.
type visible struct {
	row     atomic.Pointer[route.Row] // of the latest command
	plain   bool                      // it has no subcommands; owned by who drives the client
	blocked atomic.Pointer[conn]      // where a command waits
	seen    atomic.Uint32             // tick at which it sent something
	known   atomic.Bool               // it has authenticated, or need not
	proto   atomic.Int32
	db      atomic.Int32
	txn     atomic.Bool

	mu        sync.Mutex // guards what follows
	sub       string     // subcommand of the latest command
	name      string
	lib, ver  string
	user      string
	subs      [subKinds]int
	far, near string
}

func (v *visible) begin(c *client, far, near string) {
	v.far, v.near = far, near
	v.seen.Store(c.f.tick.Load())
	v.reset(c)
}

func addrText(a net.Addr) string {
	if u, ok := a.(*net.UnixAddr); ok {
		return cmp.Or(u.Name, "unix") + ":0"
	}
	return a.String()
}

func (v *visible) reset(c *client) {
	v.proto.Store(2)
	v.db.Store(0)
	v.txn.Store(false)
	v.known.Store(c.f.o.Password == "")
	v.mu.Lock()
	defer v.mu.Unlock()
	v.name, v.user, v.subs = "", "", [subKinds]int{}
}

func (v *visible) protoNow() int { return int(v.proto.Load()) }

func (v *visible) setUser(user string) {
	v.known.Store(true)
	v.mu.Lock()
	v.user = user
	v.mu.Unlock()
}

func (v *visible) setSubs(subs *[subKinds]map[string]int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for kind, set := range subs {
		v.subs[kind] = len(set)
	}
}

// containers are commands whose subcommands are commands of their own.
const containers = " ACL CLIENT CLUSTER COMMAND CONFIG FUNCTION LATENCY MEMORY MODULE OBJECT PUBSUB SCRIPT SLOWLOG XGROUP XINFO "

// show notes the latest command.
func (v *visible) show(row *route.Row, args [][]byte) {
	if v.row.Load() == row && v.plain {
		return
	}
	v.row.Store(row)
	v.plain = len(row.Name) <= 2 || !strings.Contains(containers, " "+row.Name+" ")
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sub = ""; !v.plain && len(args) > 1 && len(args[1]) <= 20 {
		v.sub = "|" + strings.ToLower(string(args[1]))
	}
}

func (c *client) rename(name string) {
	c.name = name
	c.vis.mu.Lock()
	c.vis.name = name
	c.vis.mu.Unlock()
}

// describe returns the client's line of CLIENT LIST. Safe for concurrent use.
func (c *client) describe() string {
	c.mu.Lock()
	out := c.out.size()
	c.mu.Unlock()
	v := &c.vis
	command := "NULL"
	if row := v.row.Load(); row != nil {
		command = strings.ToLower(row.Name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	flags := ""
	if v.subs != [subKinds]int{} {
		flags += "P"
	}
	multi := -1
	if v.txn.Load() {
		flags, multi = flags+"x", 0
	}
	if v.blocked.Load() != nil {
		flags += "b"
	}
	return fmt.Sprintf("id=%d addr=%s laddr=%s fd=-1 name=%s age=%d idle=%d flags=%s db=%d sub=%d psub=%d ssub=%d multi=%d qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=%d tot-mem=%d events=r cmd=%s user=%s redir=-1 resp=%d lib-name=%s lib-ver=%s",
		c.id, v.far, v.near, v.name, int(time.Since(c.born).Seconds()), c.f.tick.Load()-v.seen.Load(), cmp.Or(flags, "N"), v.db.Load(),
		v.subs[subChannel], v.subs[subPattern], v.subs[subSharded], multi, out, out, command+v.sub, cmp.Or(v.user, "default"), v.protoNow(), v.lib, v.ver)
}

// appendText appends what a server shows to people: a verbatim string in RESP3.
func appendText(dst []byte, proto int, text string) []byte {
	if proto != 3 {
		return resp.AppendBulk(dst, text)
	}
	dst = append(strconv.AppendInt(append(dst, '='), int64(len(text)+4), 10), "\r\ntxt:"...)
	return append(append(dst, text...), '\r', '\n')
}

// filter says which clients are meant.
type filter struct {
	tests  []func(*client) bool
	skipMe bool
}

func (f filter) fits(me, o *client) bool {
	return !(f.skipMe && o == me) && !o.isOver() && !slices.ContainsFunc(f.tests, func(test func(*client) bool) bool { return !test(o) })
}

// filters reads the conditions of CLIENT LIST and CLIENT KILL; text is an error's.
func filters(args [][]byte, kill bool) (f filter, text string) {
	f.skipMe = kill
	add := func(test func(*client) bool) { f.tests = append(f.tests, test) }
	for i := 0; i < len(args); i += 2 {
		if i+1 >= len(args) {
			return f, "ERR syntax error"
		}
		v := string(args[i+1])
		switch {
		case route.Is(args[i], "ID"):
			var ids []uint64
			for ; i+1 < len(args); i++ {
				id, err := strconv.ParseUint(string(args[i+1]), 10, 64)
				if err != nil && len(ids) > 0 {
					break
				}
				if err != nil || id == 0 {
					return f, "ERR client-id should be greater than 0"
				}
				ids = append(ids, id)
			}
			i--
			add(func(o *client) bool { return slices.Contains(ids, o.id) })
		case route.Is(args[i], "ADDR"):
			add(func(o *client) bool { return o.vis.far == v })
		case route.Is(args[i], "LADDR"):
			add(func(o *client) bool { return o.vis.near == v })
		case route.Is(args[i], "USER"):
			add(func(o *client) bool { return o.userText() == v })
		case route.Is(args[i], "SKIPME") && kill:
			if f.skipMe = strings.EqualFold(v, "yes"); !f.skipMe && !strings.EqualFold(v, "no") {
				return f, "ERR syntax error"
			}
		case route.Is(args[i], "TYPE"):
			switch strings.ToLower(v) {
			case "normal":
				add(func(o *client) bool { return !o.subscriber() })
			case "pubsub":
				add((*client).subscriber)
			case "master", "primary", "replica", "slave":
				add(func(*client) bool { return false })
			default:
				return f, "ERR Unknown client type '" + v + "'"
			}
		default:
			return f, "ERR syntax error"
		}
	}
	return f, ""
}

func (c *client) userText() string {
	c.vis.mu.Lock()
	defer c.vis.mu.Unlock()
	return cmp.Or(c.vis.user, "default")
}

func (c *client) subscriber() bool {
	c.vis.mu.Lock()
	defer c.vis.mu.Unlock()
	return c.vis.subs != [subKinds]int{}
}
