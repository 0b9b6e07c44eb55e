// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
)

// Upgraded is the answer to an order to hand the member over to a new process.
type Upgraded struct {
	Member string `json:"member"`
	Old    int    `json:"old_pid"`
	New    int    `json:"new_pid"` // it has read its configuration, and is taking over
}

// upgrade starts the program on disk as this member's next process. It answers when that one is ready to take over, or
// with the reason why nothing was changed.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	if s.o.Upgrade == nil {
		reply(w, nil, &Error{Status: http.StatusNotImplemented, Code: "not-here", Message: "this member cannot hand over to a new process"})
		return
	}
	pid, err := s.o.Upgrade(r.Context())
	if err != nil {
		reply(w, nil, &Error{Status: http.StatusConflict, Code: "refused", Message: err.Error()})
		return
	}
	reply(w, Upgraded{Member: s.o.Member, Old: os.Getpid(), New: pid}, nil)
}

// Upgrade has a member replace its process by one of the program on disk. Give the client one address: that member's.
func (c *Client) Upgrade(ctx context.Context) (Upgraded, error) {
	if len(c.addrs) != 1 {
		return Upgraded{}, errors.New("upgrade: name exactly one member")
	}
	var u Upgraded
	return u, c.do(ctx, http.MethodPost, "/v1/upgrade", struct{}{}, &u)
}

func fileOf(l net.Listener) (*os.File, error) {
	if inner, ok := l.(*limited); ok {
		l = inner.Listener
	}
	f, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("hand over the API's port: %T has no descriptor", l)
	}
	return f.File()
}
