// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/coord"
)

// statusEvery is how often a stream carries the status when nothing was decided: offsets move all the time.
const statusEvery = time.Second

// stream is one client of the events.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

// send writes one server-sent event, and reports whether the client is still there.
func (s stream) send(kind, id string, v any) bool {
	body, err := json.Marshal(v)
	if err != nil || s.rc.SetWriteDeadline(time.Now().Add(10*time.Second)) != nil {
		return false
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	if _, err := fmt.Fprintf(s.w, "event: %s\n%sdata: %s\n\n", kind, id, body); err != nil {
		return false
	}
	return s.rc.Flush() == nil
}

// events streams server-sent events: "document" with each new version of a shard's document (versions may be skipped), "event" with
// what happened on this member, and "status" after each of them and once a second. Who comes back with Last-Event-ID gets the
// events that it missed, if they are still known.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		reply(w, nil, &Error{http.StatusServiceUnavailable, "busy", fmt.Sprintf("%d event streams are open already: close one", streamsMax)})
		return
	}
	to := stream{w, http.NewResponseController(w)}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	news := make(chan struct{}, 1)
	done := s.watch(ctx, news)
	defer func() { cancel(); done() }()
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	known := map[string]coord.Rev{} // of each shard
	seen := s.lastSeen(r.Header.Get("Last-Event-ID"))
	for {
		for _, p := range s.known() {
			if snap := p.View.Load(); snap != nil && snap.Rev > known[p.ID] {
				known[p.ID] = snap.Rev
				if !to.send("document", "", snap.Shard.Redacted()) {
					return
				}
			}
		}
		happened, first, next := s.o.Events.after(seen)
		for i, e := range happened {
			seen = first + uint64(i)
			if !to.send("event", s.eventID(seen), e) {
				return
			}
		}
		st, err := s.status(ctx)
		if err != nil || !to.send("status", "", st) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-next:
		case <-news:
		}
	}
}

// eventID names an event of this process.
func (s *Server) eventID(n uint64) string {
	return strconv.FormatInt(s.began.UnixNano(), 36) + "-" + strconv.FormatUint(n, 10)
}

// lastSeen is the number of the event that a client had last: who is new gets what happens from now on, who had one of an earlier
// process gets all that are kept.
func (s *Server) lastSeen(id string) uint64 {
	if id == "" {
		return s.o.Events.newest()
	}
	process, number, _ := strings.Cut(id, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || process != strconv.FormatInt(s.began.UnixNano(), 36) {
		return 0
	}
	return n
}

// watch tells news of each new version of a document until ctx ends; done waits for that.
func (s *Server) watch(ctx context.Context, news chan<- struct{}) (done func()) {
	parts := s.known()
	ended := make(chan struct{}, len(parts))
	for _, p := range parts {
		go func() {
			defer func() { ended <- struct{}{} }()
			p.View.Revisions(ctx, news)
		}()
	}
	return func() {
		for range parts {
			<-ended
		}
	}
}
