// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

// SalvageFiles is what this member kept of the writes that failovers discarded.
type SalvageFiles interface {
	List() []topo.Salvage
	Open(id string) (io.ReadCloser, error)
	Replayed(id string, r topo.Replay) error
}

// SalvageList is what all members kept, as they reported it.
type SalvageList struct {
	Files []SalvageFile `json:"files"` // the oldest first
}

// SalvageFile is one file, and where it lies.
type SalvageFile struct {
	topo.Salvage
	Member string `json:"member"`
	API    string `json:"api,omitempty"` // of that member, where the file can be read; empty when it does not report
}

// salvageUser is the name in the credentials that guard the content of files where the deployment has a password.
const salvageUser = "redoubt"

// salvaged lists the files of all members that report.
func (g *gatherer) salvaged(ctx context.Context) (SalvageList, error) {
	l := SalvageList{Files: []SalvageFile{}}
	beats, err := g.beats(ctx)
	if err != nil {
		return l, err
	}
	apis := map[string]string{}
	for name, b := range beats {
		var m topo.MemberReport
		if strings.HasPrefix(name, topo.BeatMember) && json.Unmarshal(b.Body, &m) == nil {
			apis[m.ID] = m.APIAddr
		}
	}
	for name, b := range beats {
		member, ok := strings.CutPrefix(name, topo.BeatSalvage)
		var files []topo.Salvage
		if !ok || json.Unmarshal(b.Body, &files) != nil {
			continue
		}
		for _, f := range files {
			l.Files = append(l.Files, SalvageFile{f, member, apis[member]})
		}
	}
	slices.SortFunc(l.Files, older)
	return l, nil
}

func older(x, y SalvageFile) int {
	if x.AtMS != y.AtMS {
		return int(min(max(x.AtMS-y.AtMS, -1), 1))
	}
	return strings.Compare(x.ID, y.ID)
}

// here returns who keeps the file when it lies at this member; otherwise the error says where it does.
func (s *Server) here(ctx context.Context, id string) (SalvageFiles, error) {
	for _, p := range s.known() {
		if p.Salvage != nil && slices.ContainsFunc(p.Salvage.List(), func(f topo.Salvage) bool { return f.ID == id }) {
			return p.Salvage, nil
		}
	}
	l, err := s.salvaged(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range l.Files {
		if f.ID == id {
			return nil, &Error{http.StatusMisdirectedRequest, "elsewhere", fmt.Sprintf("salvage %s lies at member %s: ask its API at %s", id, f.Member, f.API)}
		}
	}
	return nil, &Error{http.StatusNotFound, "unknown-salvage", fmt.Sprintf("no member reports a salvage file %q: see `redoubt salvage list`", id)}
}

// getSalvage sends a file as it is. It holds users' data: where the deployment has a password, that is asked for.
func (s *Server) getSalvage(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	files, err := s.here(r.Context(), id)
	if _, given, _ := r.BasicAuth(); err == nil && subtle.ConstantTimeCompare([]byte(given), []byte(s.o.Password)) != 1 {
		err = &Error{http.StatusUnauthorized, "password", "discarded writes are data: the password of the deployment is needed (`redoubt salvage` takes it from REDISCLI_AUTH)"}
	}
	if err != nil {
		reply(w, nil, err)
		return
	}
	f, err := files.Open(id)
	if err != nil {
		reply(w, nil, err)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.Copy(w, f)
}

func (s *Server) postReplayed(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	var note topo.Replay
	err := decode(w, r, &note)
	var files SalvageFiles
	if err == nil {
		files, err = s.here(r.Context(), id)
	}
	if err == nil {
		err = files.Replayed(id, note)
	}
	if err == nil {
		s.o.Log.Info("discarded writes were replayed", "salvage", id, "by", note.By, "sent", note.Sent, "failed", note.Failed)
	}
	reply(w, note, err)
}

// Note appends an event to the timeline.
func (o *Orders) Note(ctx context.Context, e topo.TimelineEvent) error {
	key := topo.KeyTimeline + strings.TrimPrefix(o.key, topo.KeyShard)
	var last error
	for range swapTries {
		line := topo.Timeline{Format: topo.Format}
		doc, err := o.docs.Get(ctx, key)
		if err != nil && !errors.Is(err, coord.ErrNotFound) {
			return fmt.Errorf("read the timeline: %w", err)
		}
		if err == nil {
			if err := json.Unmarshal(doc.Value, &line); err != nil {
				return fmt.Errorf("decode the timeline: %w", err)
			}
		}
		if slices.Contains(line.Events, e) {
			return nil // recorded by an earlier try whose outcome was unknown
		}
		line.Events = append(line.Events, e)
		line.Events = line.Events[max(0, len(line.Events)-topo.TimelineMax):]
		b, err := json.Marshal(line)
		if err != nil {
			return fmt.Errorf("encode the timeline: %w", err)
		}
		if _, last = o.docs.Swap(ctx, key, b, doc.Rev); last == nil || ctx.Err() != nil {
			break
		}
	}
	if last != nil {
		return fmt.Errorf("write the timeline: %w", last)
	}
	return nil
}

// Salvaged lists what the members kept of discarded writes.
func (c *Client) Salvaged(ctx context.Context) (SalvageList, error) {
	var l SalvageList
	return l, c.do(ctx, http.MethodGet, "/v1/salvage", nil, &l)
}

// SalvageFile reads a file with use. It has to be asked of the member that has it.
func (c *Client) SalvageFile(ctx context.Context, id, password string, use func(io.Reader) error) error {
	if len(c.addrs) != 1 {
		return errors.New("a salvage file is asked of one member")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.addrs[0]+"/v1/salvage/"+url.PathEscape(id), nil)
	if err != nil {
		return err
	}
	if password != "" {
		req.SetBasicAuth(salvageUser, password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the member that has the file, %s: %w", c.addrs[0], err)
	}
	if resp.StatusCode != http.StatusOK {
		return readAnswer(resp, c.addrs[0], nil)
	}
	defer resp.Body.Close()
	return use(resp.Body)
}

// Replayed notes that commands of a file were sent again. It has to be told to the member that has it.
func (c *Client) Replayed(ctx context.Context, id string, r topo.Replay) error {
	return c.do(ctx, http.MethodPost, "/v1/salvage/"+url.PathEscape(id)+"/replayed", r, nil)
}
