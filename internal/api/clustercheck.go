// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"redoubt/internal/topo"
)

// bookQuiet is when what a member said about its servers is too old.
const bookQuiet = 3 * time.Second

// ClusterCheck is what the servers of a cluster say about it, and who has to do something about it.
type ClusterCheck struct {
	Servers  int              `json:"servers"` // whose agents looked a moment ago
	Findings []ClusterFinding `json:"findings"`
	Silent   []string         `json:"silent,omitempty"` // members that have servers and said nothing lately
}

// ClusterFinding is one thing that is not as it should be, and who sees it.
type ClusterFinding struct {
	Name    string   `json:"name"`
	Text    string   `json:"text"`
	Does    string   `json:"does,omitempty"`   // what is done about it without anybody
	Person  string   `json:"person,omitempty"` // what a person has to do
	Servers []string `json:"servers"`          // that see it: shard and node
}

func (s *Server) clusterCheck(w http.ResponseWriter, r *http.Request) {
	check, err := s.checkCluster(r.Context())
	reply(w, check, err)
}

func (s *Server) checkCluster(ctx context.Context) (ClusterCheck, error) {
	var c ClusterCheck
	if s.known()[0].Slots == nil {
		return c, refuse("no-cluster", "the deployment is no cluster (mode %s)", s.o.Mode)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	beats, err := s.known()[0].Store.All(ctx)
	if err != nil {
		return c, fmt.Errorf("read the reports: %w", err)
	}
	expected := map[string]bool{}
	for _, p := range s.known() {
		if snap := p.View.Load(); snap != nil {
			for _, n := range snap.Shard.Spec.Nodes {
				expected[string(n.ID)] = true
			}
		}
	}
	var books []topo.ClusterBook
	for name, b := range beats {
		var book topo.ClusterBook
		if member, ok := strings.CutPrefix(name, topo.BeatCluster); ok && b.Age <= bookQuiet && json.Unmarshal(b.Body, &book) == nil {
			delete(expected, member)
			books = append(books, book)
		}
	}
	c = combine(books)
	for member := range expected {
		c.Silent = append(c.Silent, member)
	}
	slices.Sort(c.Silent)
	return c, nil
}

// combine puts what several servers see into one list: what a person has to do comes first.
func combine(books []topo.ClusterBook) ClusterCheck {
	c := ClusterCheck{Findings: []ClusterFinding{}}
	for _, b := range books {
		c.Servers += b.Servers
		for _, f := range b.Findings {
			i := slices.IndexFunc(c.Findings, func(o ClusterFinding) bool {
				return o.Name == f.Name && o.Text == f.Text && o.Does == f.Does && o.Person == f.Person
			})
			if i < 0 {
				i = len(c.Findings)
				c.Findings = append(c.Findings, ClusterFinding{Name: f.Name, Text: f.Text, Does: f.Does, Person: f.Person})
			}
			c.Findings[i].Servers = append(c.Findings[i].Servers, f.Server)
		}
	}
	for i := range c.Findings {
		slices.Sort(c.Findings[i].Servers)
	}
	slices.SortFunc(c.Findings, func(a, b ClusterFinding) int {
		if (a.Person == "") != (b.Person == "") {
			if a.Person != "" {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name+a.Text, b.Name+b.Text)
	})
	return c
}

// ClusterCheck says what is wrong with the cluster, by the word of its servers.
func (c *Client) ClusterCheck(ctx context.Context) (ClusterCheck, error) {
	var check ClusterCheck
	err := c.do(ctx, http.MethodGet, "/v1/cluster", nil, &check)
	return check, err
}
