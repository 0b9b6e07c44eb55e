// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"redoubt/internal/kube"
)

// TestEndpointSlicesFollowOverKubernetes: the slice of the primary's service names the new primary soon after the decision, never before it, and
// never two.
func TestEndpointSlicesFollowOverKubernetes(t *testing.T) {
	p := startPods(t, withManifests(t), 0)
	c := p.s.Open(t)
	path := c.Path("discovery.k8s.io/v1", "endpointslices", "redoubt-primary")
	type seen struct {
		withdrawn, at time.Time // when the old primary was named no more, and another one was
		err           error
	}
	follow := func(was string) (news seen) {
		for end := time.Now().Add(10 * time.Second); news.at.IsZero() && news.err == nil; wait(2 * time.Millisecond) {
			var slice kube.EndpointSlice
			if news.err = c.Do(t.Context(), http.MethodGet, path, nil, "", nil, &slice); news.err != nil {
				break
			}
			var names []string
			for _, e := range slice.Endpoints {
				names = append(names, e.Addresses...)
			}
			if len(names) > 1 || time.Now().After(end) {
				news.err = fmt.Errorf("it names %v", names)
			}
			if !slices.Contains(names, was) && news.withdrawn.IsZero() {
				news.withdrawn = time.Now()
			}
			if len(names) == 1 && names[0] != was {
				news.at = time.Now()
			}
		}
		return news
	}
	for range roundsOr(1) {
		for _, change := range changes() {
			s := p.d.waitHealthy(40 * time.Second)
			p.told(s)
			was := p.podIP(slices.Index([]string{p.id(0), p.id(1), p.id(2)}, s.primary()))
			begun, said := time.Now(), make(chan seen, 1)
			go func() { said <- follow(was) }()
			change.make(p.d, s)
			news := <-said
			if news.err != nil {
				t.Fatalf("%s: the slice of the primary: %v", change.name, news.err)
			}
			decided := p.d.decided(s.epoch())
			t.Logf("%s: decided %.0f ms after it began; the slice named the old primary until %.0f ms after it began, and names the new one %.0f ms after the decision",
				change.name, ms(decided.Sub(begun)), ms(news.withdrawn.Sub(begun)), ms(news.at.Sub(decided)))
			if news.at.Before(decided.Add(-time.Millisecond)) { // it is noted in whole milliseconds
				t.Errorf("%s: named %s before the decision", change.name, decided.Sub(news.at))
			}
			p.told(p.d.waitHealthy(40 * time.Second))
		}
	}
}
