// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// statusEvery is how often a stream carries the status when nothing was decided: offsets move all the time.
const statusEvery = time.Second

// events streams server-sent events: "document" with each new version of the shard's document (versions may be
// skipped), and "status" after each of them and once a second.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		reply(w, nil, &Error{http.StatusServiceUnavailable, "busy", fmt.Sprintf("%d event streams are open already: close one", streamsMax)})
		return
	}
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	send := func(kind string, v any) bool {
		body, err := json.Marshal(v)
		if err != nil {
			return false
		}
		if rc.SetWriteDeadline(time.Now().Add(10*time.Second)) != nil {
			return false
		}
		if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, body); err != nil {
			return false
		}
		return rc.Flush() == nil
	}
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	known, first := uint64(0), s.parts[0] // the others are seen with the next status
	for {
		next := first.View.Next()
		if snap := first.View.Load(); snap != nil && uint64(snap.Rev) > known {
			known = uint64(snap.Rev)
			if !send("document", snap.Shard.Redacted()) {
				return
			}
		}
		st, err := s.status(r.Context())
		if err != nil || !send("status", st) {
			return
		}
		for waiting := true; waiting; {
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
				waiting = false
			case <-next:
				next = first.View.Next()
				snap := first.View.Load()
				waiting = snap == nil || uint64(snap.Rev) <= known
			}
		}
	}
}
