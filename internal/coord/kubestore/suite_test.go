// SPDX-License-Identifier: Apache-2.0

package kubestore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
	"redoubt/internal/coord/kubestore"
	"redoubt/internal/coord/seat"
	"redoubt/internal/kube"
	"redoubt/test/kubeapi"
)

// servers are both API servers; the real one only where it was built.
var servers = []struct {
	name  string
	start func(testing.TB) *kubeapi.Server
}{{"small", kubeapi.Small}, {"real", kubeapi.Real}}

func each(t *testing.T, run func(t *testing.T, s *kubeapi.Server)) {
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			if s.name == "real" && testing.Short() {
				t.Skip("make show-kubernetes")
			}
			run(t, s.start(t))
		})
	}
}

func open(t testing.TB, s *kubeapi.Server, prefix string) *kubestore.Store {
	t.Helper()
	st, err := kubestore.Open(kubestore.Options{Client: s.Open(t), Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestTheContractIsKeptOverKubernetes: package seat over ConfigMaps is a store like any other.
func TestTheContractIsKeptOverKubernetes(t *testing.T) {
	each(t, func(t *testing.T, s *kubeapi.Server) {
		runs := 0
		start := func(t testing.TB, n int) *coordtest.Cluster {
			runs++
			return members(t, s, fmt.Sprintf("test/%d", runs), n)
		}
		for _, n := range []int{1, 3} {
			t.Run(fmt.Sprint(n), func(t *testing.T) { coordtest.RunSize(t, start, n) })
		}
	})
}

// members starts a deployment of n members.
func members(t testing.TB, s *kubeapi.Server, prefix string, n int) *coordtest.Cluster {
	out := &coordtest.Cluster{}
	for i := range n {
		id := fmt.Sprint("m", i+1)
		m, err := seat.Open(open(t, s, prefix), seat.Options{ID: id, ListenAddr: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
		out.IDs, out.Stores = append(out.IDs, id), append(out.Stores, m)
	}
	for _, m := range out.Stores {
		coordtest.Until(t, "all members know each other", func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			ms, err := m.(coord.Members).Members(ctx)
			return err == nil && len(ms) == n && m.Controller() != ""
		})
	}
	return out
}

// TestAWriteOfTheSameValueIsAWrite: the API server counts no update that changes nothing, and the contract does.
func TestAWriteOfTheSameValueIsAWrite(t *testing.T) {
	each(t, func(t *testing.T, s *kubeapi.Server) {
		st := open(t, s, "same")
		rev, err := st.Swap(within(t, 5*time.Second), "k", []byte("v"), 0)
		if err != nil {
			t.Fatal(err)
		}
		next, err := st.Swap(within(t, 5*time.Second), "k", []byte("v"), rev)
		if err != nil || next <= rev {
			t.Fatalf("revision %d after %d: %v", next, rev, err)
		}
		if _, err := st.Swap(within(t, 5*time.Second), "k", []byte("w"), rev); !errors.Is(err, coord.ErrConflict) {
			t.Fatalf("a swap of a version that somebody replaced by its like: %v", err)
		}
	})
}

// TestDocumentsOfAnyKeyAndBytes: names of objects are narrower than keys, and their data is text.
func TestDocumentsOfAnyKeyAndBytes(t *testing.T) {
	each(t, func(t *testing.T, s *kubeapi.Server) {
		st := open(t, s, "Redoubt/My_Deployment")
		keys := []string{"shard/a", "shard.a", "shard/A", "Shard/a", "shard/a-", "shard/-a", "ключ", strings.Repeat("long/", 100), "shard//a", "a", "/"}
		for i, k := range keys {
			value := append([]byte{0xff, 0, '\n', byte(i)}, k...)
			if _, err := st.Swap(within(t, 5*time.Second), k, value, 0); err != nil {
				t.Fatalf("%q: %v", k, err)
			}
		}
		docs, err := st.Read(within(t, 5*time.Second), keys...)
		if err != nil || len(docs) != len(keys) {
			t.Fatalf("%d of %d documents: %v", len(docs), len(keys), err)
		}
		for i, k := range keys {
			if want := append([]byte{0xff, 0, '\n', byte(i)}, k...); !bytes.Equal(docs[k].Value, want) {
				t.Errorf("%q holds %q, not %q", k, docs[k].Value, want)
			}
		}
		for i, c := range []byte{0xfe, 0, '<', '"', 'x'} {
			large, key := bytes.Repeat([]byte{c}, coord.DocMax), fmt.Sprint("large", i)
			if _, err := st.Swap(within(t, 5*time.Second), key, large, 0); err != nil {
				t.Fatalf("the largest document, of %q: %v", c, err)
			}
			docs, err = st.Read(within(t, 5*time.Second), key)
			if err != nil || !bytes.Equal(docs[key].Value, large) {
				t.Fatalf("the largest document, of %q, came back with %d bytes: %v", c, len(docs[key].Value), err)
			}
		}
	})
}

// TestAForeignObjectIsNotADocument: a ConfigMap of that name that somebody else made is neither read nor written.
func TestAForeignObjectIsNotADocument(t *testing.T) {
	each(t, func(t *testing.T, s *kubeapi.Server) {
		st, c := open(t, s, "foreign"), s.Open(t)
		m := kube.ConfigMap{Metadata: kube.Meta{Name: "foreign.k"}, Data: map[string]string{"document": "not ours"}}
		if err := c.Do(within(t, 5*time.Second), http.MethodPost, c.Path("", "configmaps"), nil, kube.JSON, m, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Read(within(t, 5*time.Second), "k"); !errors.Is(err, coord.ErrUnavailable) || !strings.Contains(err.Error(), "is not document") {
			t.Errorf("read: %v", err)
		}
		if _, err := st.Swap(within(t, 5*time.Second), "k", []byte("v"), 0); !errors.Is(err, coord.ErrConflict) {
			t.Errorf("swap: %v", err)
		}
	})
}

// TestManyWritersOneWins: of many swaps of one version exactly one succeeds.
func TestManyWritersOneWins(t *testing.T) {
	each(t, func(t *testing.T, s *kubeapi.Server) {
		const writers, rounds = 8, 10
		var stores []*kubestore.Store
		for range writers {
			stores = append(stores, open(t, s, "race"))
		}
		rev := coord.Rev(0)
		for round := range rounds {
			type outcome struct {
				rev coord.Rev
				err error
			}
			out := make(chan outcome, writers)
			for i, st := range stores {
				go func() {
					rev, err := st.Swap(within(t, 10*time.Second), "k", fmt.Append(nil, i), rev)
					out <- outcome{rev, err}
				}()
			}
			var won []coord.Rev
			for range writers {
				o := <-out
				if o.err == nil {
					won = append(won, o.rev)
				} else if !errors.Is(o.err, coord.ErrConflict) {
					t.Fatal(o.err)
				}
			}
			if len(won) != 1 || won[0] <= rev {
				t.Fatalf("round %d: %d writers have replaced revision %d: %v", round, len(won), rev, won)
			}
			rev = won[0]
		}
	})
}

// TestErrorsSayWhatToDo: no server, a wrong token.
func TestErrorsSayWhatToDo(t *testing.T) {
	s := kubeapi.Small(t)
	away := s.Access
	away.URL = "https://127.0.0.1:1"
	c, err := kube.Open(away)
	if err != nil {
		t.Fatal(err)
	}
	st, err := kubestore.Open(kubestore.Options{Client: c, Prefix: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := st.Read(within(t, 300*time.Millisecond), "k"); !errors.Is(err, coord.ErrUnavailable) {
		t.Errorf("nobody listens there: %v", err)
	}
	if _, err := st.Swap(within(t, 300*time.Millisecond), "k", nil, 0); !errors.Is(err, coord.ErrUnavailable) {
		t.Errorf("a swap that was surely not sent: %v", err)
	}
	wrong := s.Access
	wrong.TokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(wrong.TokenFile, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err = kube.Open(wrong); err != nil {
		t.Fatal(err)
	}
	if st, err = kubestore.Open(kubestore.Options{Client: c, Prefix: "p"}); err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := st.Read(within(t, 5*time.Second), "k"); !errors.Is(err, coord.ErrUnavailable) || !strings.Contains(err.Error(), "check kubernetes.token-file") {
		t.Errorf("a wrong token: %v", err)
	}
	if h := st.Health(); h.Endpoints[0].Up || h.Failures == 0 {
		t.Errorf("health: %+v", h)
	}
}
