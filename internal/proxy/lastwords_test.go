// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// A client that sends no more, or says goodbye, gets all of what it is owed, however much that is and however slowly it reads.
func TestAClientThatSendsNoMoreGetsLargeReplies(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	const size, times = 1 << 20, 16
	s.client().want("OK", "SET", "large", strings.Repeat("x", size))
	whole := times * (len("$1048576\r\n") + size + len("\r\n"))
	for _, how := range []string{"closes its side", "QUIT", "closes its side, subscribed", "speaks no RESP"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			c, want := s.client(), whole
			if strings.HasSuffix(how, "subscribed") {
				c.do("HELLO", "3")
				c.want(">3 $9 subscribe $2 ch :1", "SUBSCRIBE", "ch")
			}
			for range times {
				c.send("GET", "large")
			}
			switch how {
			case "QUIT":
				c.send("QUIT")
				want += len("+OK\r\n")
			case "speaks no RESP":
				_, _ = c.c.Write([]byte("*x\r\n"))
				want += len("-ERR Protocol error: invalid multibulk length\r\n")
			default:
				_ = c.c.(*net.TCPConn).CloseWrite()
			}
			<-time.After(200 * time.Millisecond)
			n, err := int64(0), error(nil)
			for k := int64(0); err == nil; n += k {
				k, err = io.CopyN(io.Discard, c.r, 64<<10)
				<-time.After(time.Millisecond)
			}
			if n != int64(want) || err != io.EOF {
				t.Errorf("%d of %d bytes: %v", n, want, err)
			}
		})
	}
}
