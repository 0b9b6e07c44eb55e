// SPDX-License-Identifier: Apache-2.0

package front

import (
	"net"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// Loops drive connections, so that none needs a goroutine.
type Loops interface {
	Len() int
	// Take has a loop drive a connection, which is not to be used any more. event is called on that loop whenever there may be
	// something to read, room to write, or an end to see: for the first time soon, possibly before Take returns.
	Take(conn net.Conn, loop int, event func()) (Stream, error)
}

// Stream is one end of a connection that a loop drives. Nothing of it waits.
type Stream interface {
	Read(b []byte) (int, error)  // what has come; nothing, without an error, if that is nothing. One at a time
	Write(b []byte) (int, error) // what is taken at once; the event comes when there is room for the rest
	Again()                      // has the event come once more, soon
	Last(f func())               // on the loop: has f called when the events of this round are handled
	Late(f func())               // Last for the next round, which begins at once
	// Offer takes a plain command at once, of so many words, as if raw had been written; false: it has to be written. For the loop, while
	// nothing waits to be written.
	Offer(v route.Verdict, words int, raw []byte) bool
	// Hear has f called on the loop with replies, so many whole ones, in place of an event to read them; f returns false if they have to be
	// read all the same. b is valid until it returns. To be called before anything is written.
	Hear(f func(b []byte, replies int) bool)
	ID() []byte // of the client at the other end, as digits, as CLIENT ID would say; nil: it is not known here
	// Depart takes the other end out of its shard, for Options.Rejoin. What it had to say can still be read, and then the end. input is a command that
	// blocked there, and does so no more; file a descriptor, -1: none. False: that did not succeed within patience, and nothing has changed. It waits.
	Depart(patience time.Duration) (record []byte, file int, input []byte, ok bool)
	// Release has the loop let go of a connection that Loops took: then is called there with its descriptor, which it owns.
	Release(then func(file int))
	Shut()  // ends both directions; the event comes
	Close() // shuts it and gives it back; an event may still be on its way
}

const (
	scratchSize = 64 << 10 // what is read at once
	readsInARow = 4        // of one connection, before others have their turn
)

// scratch is what the clients of one loop share; owned by the loop.
type scratch struct {
	input  []byte       // where clients are read into; what is left of a command goes to the client's own memory
	parser *resp.Parser // for who has no part of a command; nil: a client has kept it
	reply  []byte       // where shards are read into
}
