// SPDX-License-Identifier: Apache-2.0

// Package kubeapi gives tests an API server of Kubernetes: a small one in this process, which keeps objects of any kind with the
// rules that Redoubt relies on (409, 410, no change without a difference, watches), or the real one over a real etcd. One suite of
// requests is played to both, so that the small one stays honest.
//
// It is not part of the product. It has no controllers and no kubelet, and neither has the real one: nobody runs pods. Its
// invariant: what it started is gone when the test ends. Goroutines: those of net/http, and one for each process.
package kubeapi

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"redoubt/internal/kube"
)

// Server is an API server for one test.
type Server struct {
	Access kube.Options // how it is reached
	small  *small
	real   *process
}

// Open makes a client of it.
func (s *Server) Open(t testing.TB) *kube.Client {
	t.Helper()
	c, err := kube.Open(s.Access)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

const token = "a-token-for-tests"

// Small starts the small API server.
func Small(t testing.TB) *Server {
	t.Helper()
	s := &small{objects: map[string]object{}, news: make(chan struct{}), rev: 100}
	h := httptest.NewTLSServer(s)
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
	})
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	write(t, filepath.Join(dir, "ca.crt"), ca)
	write(t, filepath.Join(dir, "token"), []byte(token+"\n"))
	return &Server{Access: kube.Options{URL: h.URL, Namespace: "default", TokenFile: filepath.Join(dir, "token"), CA: filepath.Join(dir, "ca.crt")}, small: s}
}

func write(t testing.TB, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// object is one object in its JSON form.
type object = map[string]any

func meta(o object) object {
	m, _ := o["metadata"].(object)
	if m == nil {
		m = object{}
		o["metadata"] = m
	}
	return m
}

func text(v any) string { s, _ := v.(string); return s }

// small is the API server in this process. Deleted objects are told of to who watches at the time only.
type small struct {
	mu      sync.Mutex
	rev     int
	objects map[string]object // by path
	log     []change
	news    chan struct{} // closed and replaced at every change
}

type change struct {
	rev    int
	kind   string
	path   string
	object object
}

func clone(o object) object {
	b, _ := json.Marshal(o)
	var c object
	_ = json.Unmarshal(b, &c)
	return c
}

func refuse(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

func answer(w http.ResponseWriter, code int, o any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(o)
}

// ServeHTTP implements http.Handler.
func (s *small) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+token {
		refuse(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
		return
	}
	if r.Method == http.MethodGet && r.URL.Query().Get("watch") != "" {
		s.watch(w, r)
		return
	}
	var in object
	if r.Method != http.MethodGet && r.Method != http.MethodDelete {
		b, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(b, &in)
		}
		if err != nil {
			refuse(w, http.StatusBadRequest, "BadRequest", err.Error())
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	path := strings.TrimSuffix(r.URL.Path, "/status")
	switch r.Method {
	case http.MethodGet:
		if isList(path) {
			s.list(w, r)
		} else if o, ok := s.objects[path]; ok {
			answer(w, http.StatusOK, o)
		} else {
			notFound(w, path)
		}
	case http.MethodPost:
		s.create(w, path, in)
	case http.MethodPut:
		s.replace(w, path, in)
	case http.MethodPatch:
		s.patch(w, path, in)
	case http.MethodDelete:
		o, ok := s.objects[path]
		if !ok {
			notFound(w, path)
			return
		}
		delete(s.objects, path)
		s.commit("DELETED", path, o)
		answer(w, http.StatusOK, object{"kind": "Status", "apiVersion": "v1", "status": "Success"})
	}
}

func notFound(w http.ResponseWriter, path string) {
	refuse(w, http.StatusNotFound, "NotFound", path[strings.LastIndex(path, "/")+1:]+" not found")
}

// isList reports whether a path names a kind and not an object.
func isList(path string) bool {
	n := strings.Count(path, "/")
	return strings.HasPrefix(path, "/api/") && n == 5 || strings.HasPrefix(path, "/apis/") && n == 6
}

func (s *small) commit(kind, path string, o object) {
	s.rev++
	meta(o)["resourceVersion"] = strconv.Itoa(s.rev)
	s.log = append(s.log, change{s.rev, kind, path, clone(o)})
	close(s.news)
	s.news = make(chan struct{})
}

func (s *small) create(w http.ResponseWriter, path string, o object) {
	m := meta(o)
	if text(m["name"]) == "" && text(m["generateName"]) != "" {
		m["name"] = text(m["generateName"]) + strconv.Itoa(s.rev)
	}
	at := path + "/" + text(m["name"])
	if _, ok := s.objects[at]; ok {
		refuse(w, http.StatusConflict, "AlreadyExists", text(m["name"])+" already exists")
		return
	}
	if text(m["resourceVersion"]) != "" {
		refuse(w, http.StatusInternalServerError, "", "resourceVersion should not be set on objects to be created")
		return
	}
	m["uid"] = fmt.Sprintf("00000000-0000-4000-8000-%012d", s.rev)
	s.objects[at] = o
	s.commit("ADDED", at, o)
	answer(w, http.StatusCreated, o)
}

func (s *small) replace(w http.ResponseWriter, path string, o object) {
	old, ok := s.objects[path]
	if !ok {
		notFound(w, path)
		return
	}
	if rev := text(meta(o)["resourceVersion"]); rev != "" && rev != text(meta(old)["resourceVersion"]) {
		refuse(w, http.StatusConflict, "Conflict", "the object has been modified; please apply your changes to the latest version and try again")
		return
	}
	meta(o)["uid"] = meta(old)["uid"]
	meta(o)["resourceVersion"] = meta(old)["resourceVersion"]
	if !reflect.DeepEqual(clone(o), clone(old)) {
		s.commit("MODIFIED", path, o)
		s.objects[path] = o
	}
	answer(w, http.StatusOK, o)
}

func (s *small) patch(w http.ResponseWriter, path string, p object) {
	old, ok := s.objects[path]
	if !ok {
		notFound(w, path)
		return
	}
	s.replace(w, path, merge(clone(old), p))
}

// merge applies a patch as RFC 7386 says.
func merge(o, p object) object {
	for k, v := range p {
		inner, isObject := v.(object)
		switch {
		case v == nil:
			delete(o, k)
		case isObject:
			of, _ := o[k].(object)
			if of == nil {
				of = object{}
			}
			o[k] = merge(of, inner)
		default:
			o[k] = v
		}
	}
	return o
}

// chosen reports whether an object is asked for.
func chosen(r *http.Request, path string, o object) bool {
	if path[:strings.LastIndex(path, "/")] != r.URL.Path {
		return false
	}
	if f := r.URL.Query().Get("fieldSelector"); f != "" && f != "metadata.name="+text(meta(o)["name"]) {
		return false
	}
	labels, _ := meta(o)["labels"].(object)
	for _, l := range strings.Split(r.URL.Query().Get("labelSelector"), ",") {
		if k, v, ok := strings.Cut(l, "="); ok && text(labels[k]) != v {
			return false
		}
	}
	return true
}

func (s *small) list(w http.ResponseWriter, r *http.Request) {
	items := []any{}
	for _, path := range slices.Sorted(maps.Keys(s.objects)) {
		if o := s.objects[path]; chosen(r, path, o) {
			items = append(items, o)
		}
	}
	answer(w, http.StatusOK, object{"kind": "List", "metadata": object{"resourceVersion": strconv.Itoa(s.rev)}, "items": items})
}

func (s *small) watch(w http.ResponseWriter, r *http.Request) {
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		refuse(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	for sent := 0; ; {
		s.mu.Lock()
		fresh, news := s.log[sent:], s.news
		sent = len(s.log)
		s.mu.Unlock()
		for _, c := range fresh {
			if c.rev > from && chosen(r, c.path, c.object) {
				_ = json.NewEncoder(w).Encode(object{"type": c.kind, "object": c.object})
			}
		}
		_ = flush.Flush()
		select {
		case <-news:
		case <-r.Context().Done():
			return
		}
	}
}
