// SPDX-License-Identifier: Apache-2.0

package kubeapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"redoubt/internal/kube"
	"redoubt/test/kubeapi"
)

type object = map[string]any

// steps are requests whose answers Redoubt relies on. Versions are those of the latest answers: "now" and the one "before".
var steps = []struct {
	name         string
	method, path string
	query        string
	kind, body   string
}{
	{"read what is not there", "GET", "configmaps/a", "", "", ""},
	{"replace what is not there", "PUT", "configmaps/a", "", kube.JSON, `{"metadata":{"name":"a","resourceVersion":"1"}}`},
	{"patch what is not there", "PATCH", "configmaps/a", "", kube.Merge, `{"data":{"k":"1"}}`},
	{"create", "POST", "configmaps", "", kube.JSON, `{"metadata":{"name":"a","labels":{"l":"x"}},"data":{"k":"1"}}`},
	{"create again", "POST", "configmaps", "", kube.JSON, `{"metadata":{"name":"a"},"data":{"k":"2"}}`},
	{"read", "GET", "configmaps/a", "", "", ""},
	{"replace", "PUT", "configmaps/a", "", kube.JSON, `{"metadata":{"name":"a","labels":{"l":"x"},"resourceVersion":"now"},"data":{"k":"2"}}`},
	{"replace an old version", "PUT", "configmaps/a", "", kube.JSON, `{"metadata":{"name":"a","resourceVersion":"before"},"data":{"k":"3"}}`},
	{"replace by the same", "PUT", "configmaps/a", "", kube.JSON, `{"metadata":{"name":"a","labels":{"l":"x"},"resourceVersion":"now"},"data":{"k":"2"}}`},
	{"patch with a version", "PATCH", "configmaps/a", "", kube.Merge, `{"metadata":{"labels":{"l":null,"m":"y"},"resourceVersion":"now"}}`},
	{"patch an old version", "PATCH", "configmaps/a", "", kube.Merge, `{"metadata":{"labels":{"m":"z"},"resourceVersion":"before"}}`},
	{"list by name", "GET", "configmaps", "fieldSelector=metadata.name%3Da", "", ""},
	{"list by another name", "GET", "configmaps", "fieldSelector=metadata.name%3Db", "", ""},
	{"list by label", "GET", "configmaps", "labelSelector=m%3Dy", "", ""},
	{"list by another label", "GET", "configmaps", "labelSelector=m%3Dz", "", ""},
	{"create with a version", "POST", "configmaps", "", kube.JSON, `{"metadata":{"name":"b","resourceVersion":"1"}}`},
	{"remove", "DELETE", "configmaps/a", "", "", ""},
	{"remove again", "DELETE", "configmaps/a", "", "", ""},
	{"create after that", "POST", "configmaps", "", kube.JSON, `{"metadata":{"name":"a"},"data":{"k":"4"}}`},
	{"no object at all", "POST", "configmaps", "", kube.JSON, `[`},
}

// play carries the steps out and says what became of each, without what differs by nature.
func play(t *testing.T, s *kubeapi.Server) (told []string) {
	c := s.Open(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	now, before := "", ""
	for _, step := range steps {
		var body any
		if step.body != "" {
			text := json.RawMessage(step.body)
			var o object
			if json.Unmarshal(text, &o) == nil {
				if m, ok := o["metadata"].(object); ok {
					switch m["resourceVersion"] {
					case "now":
						m["resourceVersion"] = now
					case "before":
						m["resourceVersion"] = before
					}
				}
				body = o
			} else {
				body = []any{} // a list is no object
			}
		}
		query, err := url.ParseQuery(step.query)
		if err != nil {
			t.Fatal(err)
		}
		var out object
		err = c.Do(ctx, step.method, c.Path("", step.path), query, step.kind, body, &out)
		if err != nil {
			var status *kube.Status
			if !errors.As(err, &status) {
				t.Fatalf("%s: %v", step.name, err)
			}
			told = append(told, fmt.Sprintf("%s: %d %s", step.name, status.Code, status.Reason))
			continue
		}
		line := step.name + ": ok"
		if items, ok := out["items"].([]any); ok {
			line += fmt.Sprintf(", %d items", len(ours(items)))
		} else if m, ok := out["metadata"].(object); ok && out["kind"] != "Status" {
			rev := fmt.Sprint(m["resourceVersion"])
			line += fmt.Sprintf(", data %v, labels %v, version %s", out["data"], m["labels"], compare(t, now, rev))
			if rev != now {
				now, before = rev, now
			}
		}
		told = append(told, line)
	}
	return told
}

// ours leaves out what the real API server's own controllers make.
func ours(items []any) []any {
	return slices.DeleteFunc(items, func(o any) bool {
		m, _ := o.(object)["metadata"].(object)
		return m["name"] == "kube-root-ca.crt"
	})
}

func compare(t *testing.T, old, rev string) string {
	n, err := strconv.ParseUint(rev, 10, 64)
	if err != nil {
		t.Fatalf("version %q is no number", rev)
	}
	switch o, _ := strconv.ParseUint(old, 10, 64); {
	case n > o:
		return "larger"
	case n == o:
		return "the same"
	}
	return "smaller"
}

// TestTheSmallOneAnswersAsExpected: what the real one was seen to answer.
func TestTheSmallOneAnswersAsExpected(t *testing.T) {
	want := []string{
		"read what is not there: 404 NotFound", "replace what is not there: 404 NotFound", "patch what is not there: 404 NotFound",
		"create: ok, data map[k:1], labels map[l:x], version larger", "create again: 409 AlreadyExists",
		"read: ok, data map[k:1], labels map[l:x], version the same", "replace: ok, data map[k:2], labels map[l:x], version larger",
		"replace an old version: 409 Conflict", "replace by the same: ok, data map[k:2], labels map[l:x], version the same",
		"patch with a version: ok, data map[k:2], labels map[m:y], version larger", "patch an old version: 409 Conflict",
		"list by name: ok, 1 items", "list by another name: ok, 0 items", "list by label: ok, 1 items", "list by another label: ok, 0 items",
		"create with a version: 500 ", "remove: ok", "remove again: 404 NotFound",
		"create after that: ok, data map[k:4], labels <nil>, version larger", "no object at all: 400 BadRequest",
	}
	same(t, want, play(t, kubeapi.Small(t)))
}

// TestTheSmallOneIsLikeTheRealOne plays the same requests to both.
func TestTheSmallOneIsLikeTheRealOne(t *testing.T) {
	if testing.Short() {
		t.Skip("make show-kubernetes")
	}
	real := kubeapi.Real(t)
	same(t, play(t, real), play(t, kubeapi.Small(t)))
}

func same(t *testing.T, want, got []string) {
	t.Helper()
	for i := range max(len(want), len(got)) {
		if w, g := at(want, i), at(got, i); w != g {
			t.Errorf("step %d: it says %q, not %q", i, g, w)
		}
	}
}

func at(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return ""
}

// TestAWatchTellsWhatHappens: on both, from the list's version on, and 410 where that is too old is the real one's alone.
func TestAWatchTellsWhatHappens(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *kubeapi.Server{"small": kubeapi.Small, "real": kubeapi.Real} {
		t.Run(name, func(t *testing.T) {
			if name == "real" && testing.Short() {
				t.Skip("make show-kubernetes")
			}
			c := start(t).Open(t)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			do := func(method, path, body string) {
				t.Helper()
				if err := c.Do(ctx, method, c.Path("", path), nil, kube.JSON, json.RawMessage(body), nil); err != nil {
					t.Fatal(err)
				}
			}
			do(http.MethodPost, "configmaps", `{"metadata":{"name":"w"}}`)
			var list kube.List[kube.ConfigMap]
			query := url.Values{"fieldSelector": {"metadata.name=w"}}
			if err := c.Do(ctx, http.MethodGet, c.Path("", "configmaps"), query, "", nil, &list); err != nil || len(list.Items) != 1 {
				t.Fatalf("%+v: %v", list, err)
			}
			do(http.MethodPut, "configmaps/w", `{"metadata":{"name":"w"},"data":{"k":"1"}}`)
			do(http.MethodPost, "configmaps", `{"metadata":{"name":"other"}}`)
			do(http.MethodPut, "configmaps/w", `{"metadata":{"name":"w"},"data":{"k":"2"}}`)
			do(http.MethodDelete, "configmaps/w", `{}`)
			query.Set("watch", "1")
			query.Set("resourceVersion", list.Metadata.ResourceVersion)
			var told []string
			enough := errors.New("enough")
			err := c.Watch(ctx, c.Path("", "configmaps"), query, func(e kube.Event) error {
				var m kube.ConfigMap
				if err := json.Unmarshal(e.Object, &m); err != nil {
					return err
				}
				told = append(told, e.Type+" "+m.Metadata.Name+" "+m.Data["k"])
				if e.Type == "DELETED" {
					return enough
				}
				return nil
			})
			if want := []string{"MODIFIED w 1", "MODIFIED w 2", "DELETED w 2"}; !errors.Is(err, enough) || !slices.Equal(told, want) {
				t.Errorf("told %v: %v", told, err)
			}
		})
	}
}
