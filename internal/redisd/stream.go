// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"fmt"
	"io"
	"time"
)

// moveStream makes a primary send something to its replicas: it asks them for acknowledgements, of which these are never enough
// (WAIT, Redis 3.0 and later), for 1 ms, which a server with nothing else to do takes up to 100 ms for. Other servers answer an error.
var moveStream = []string{"WAIT", "1000", "1"}

// Acknowledge has a replica tell its primary how far it is, as it does by itself once a second. Behind a full sync the primary sends
// nothing before it hears that, and does not hear what comes before it has seen its child end (Redis 7.0 to Valkey 9.0).
// It is an errand of its own, because REPLCONF GETACK, which a replica takes from anybody, has no reply.
func (n *Node) Acknowledge(ctx context.Context) error {
	c, err := connect(ctx, n.own)
	if err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })()
	var b []byte
	for _, cmd := range append(authCommand(n.adminLogin()), []string{"REPLCONF", "GETACK", "*"}, []string{"QUIT"}) {
		b = appendCommand(b, cmd)
	}
	if _, err = c.Write(b); err == nil {
		_, err = io.Copy(io.Discard, c)
	}
	if err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	return nil
}
