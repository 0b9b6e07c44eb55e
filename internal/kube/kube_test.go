// SPDX-License-Identifier: Apache-2.0

package kube_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"redoubt/internal/kube"
)

func serve(t *testing.T, h http.HandlerFunc) kube.Options {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(" secret \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return kube.Options{URL: s.URL, Namespace: "a b", TokenFile: token, CA: ca, Agent: "test"}
}

func open(t *testing.T, o kube.Options) *kube.Client {
	t.Helper()
	c, err := kube.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestErrorsSayWhatBecameOfTheRequest: not sent, refused with a reason, sent and never answered.
func TestErrorsSayWhatBecameOfTheRequest(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer secret" || r.Header.Get("User-Agent") != "test" || !strings.HasPrefix(r.URL.EscapedPath(), "/api/v1/namespaces/a%20b/things"):
			t.Errorf("request %v %s", r.Header, r.URL.EscapedPath())
		case strings.HasSuffix(r.URL.Path, "/refused"):
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"code":409,"reason":"Conflict","message":"no"}`)
		case strings.HasSuffix(r.URL.Path, "/plain"):
			http.Error(w, "a proxy between", http.StatusBadGateway)
		case strings.HasSuffix(r.URL.Path, "/hang"):
			<-hang
		case strings.HasSuffix(r.URL.Path, "/large"):
			fmt.Fprintf(w, `{"a":%q}`, strings.Repeat("x", 5<<20))
		}
	})
	c := open(t, o)
	do := func(c *kube.Client, name string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		var out any
		return c.Do(ctx, http.MethodPut, c.Path("", "things", name), nil, kube.JSON, map[string]string{}, &out)
	}
	notSent := func(err error) bool { return errors.As(err, new(*kube.NotSent)) }
	if err := do(c, "refused"); !kube.Is(err, http.StatusConflict) || notSent(err) || !strings.Contains(err.Error(), "409 Conflict: no") {
		t.Errorf("refused: %v", err)
	}
	if err := do(c, "plain"); !kube.Is(err, http.StatusBadGateway) || !strings.Contains(err.Error(), "a proxy between") {
		t.Errorf("plain words: %v", err)
	}
	if err := do(c, "hang"); err == nil || notSent(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("never answered: %v", err)
	}
	if err := do(c, "large"); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too large: %v", err)
	}
	away, untrusted := o, o
	away.URL = "https://127.0.0.1:1"
	if err := do(open(t, away), "x"); !notSent(err) {
		t.Errorf("nobody listens: %v", err)
	}
	untrusted.CA = ""
	if err := do(open(t, untrusted), "x"); !notSent(err) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an authority that nobody knows: %v", err)
	}
}

// TestWatchesEndWithTheirReason: the API server ends one, says that it is too old, or breaks off.
func TestWatchesEndWithTheirReason(t *testing.T) {
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"type":"ADDED","object":{"n":1}}`+"\n"+`{"type":"MODIFIED","object":{"n":2}}`)
		switch r.URL.Query().Get("end") {
		case "old":
			fmt.Fprint(w, `{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"too old"}}`)
		case "broken":
			fmt.Fprint(w, `{"type":"MODI`)
		}
	})
	c := open(t, o)
	for end, right := range map[string]func(error) bool{
		"well": func(err error) bool { return err == nil }, "old": func(err error) bool { return kube.Is(err, http.StatusGone) },
		"broken": func(err error) bool { return err != nil && !kube.Is(err, http.StatusGone) },
	} {
		var told []string
		err := c.Watch(t.Context(), c.Path("", "things"), url.Values{"end": {end}}, func(e kube.Event) error {
			var o struct{ N int }
			told = append(told, e.Type)
			return json.Unmarshal(e.Object, &o)
		})
		if !right(err) || strings.Join(told, " ") != "ADDED MODIFIED" {
			t.Errorf("%s: told %v, %v", end, told, err)
		}
	}
}

func TestOutsideOfAPodItSaysWhatIsMissing(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := kube.Open(kube.Options{}); err == nil || !strings.Contains(err.Error(), "kubernetes.api") {
		t.Error(err)
	}
	if _, err := kube.Open(kube.Options{URL: "https://127.0.0.1:1"}); err == nil || !strings.Contains(err.Error(), "kubernetes.namespace") {
		t.Error(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	o, err := kube.Options{Namespace: "n"}.Complete()
	if err != nil || o.URL != "https://10.0.0.1:443" || !strings.HasSuffix(o.TokenFile, "serviceaccount/token") || !strings.HasSuffix(o.CA, "serviceaccount/ca.crt") {
		t.Errorf("%+v %v", o, err)
	}
}
