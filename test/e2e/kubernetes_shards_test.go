// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/internal/kube"
	"redoubt/test/kubeapi"
)

// shardsInPods: each shard of a deployment has services of its own. A member that leads shards is told to end as a kubelet does it: each
// shard is handed over, the services follow, and clients of another member's proxy see no error.
func shardsInPods(t *testing.T, s *kubeapi.Server, mode string) {
	t.Helper()
	for i := range 3 {
		s.Pod(t, fmt.Sprint("n", i+1), fmt.Sprint("10.244.0.", i+1))
	}
	d := up(t, "--mode", mode, "--shards", "3", "--replicas", "2", "--store", kubeURL(s, "shards", "db")+"&endpoints=true")
	st := d.waitHealthy(40 * time.Second)
	for _, sh := range st.Deployments[0].Shards {
		d.leads(s, sh)
	}
	var ws []*writer
	for i := range 3 {
		key := d.keyOn(fmt.Sprintf("mymaster-s%d", i+1), "w:")
		w := goRedisWriter(key, key, redis.NewClient(&redis.Options{Addr: d.proxyAddr(1)}))
		t.Cleanup(w.finish)
		waitAcked(t, w, 20)
		ws = append(ws, w)
	}
	was, begun := st, time.Now()
	signal(t, agentOf(t, st, "n1"), syscall.SIGTERM)
	handed := 0
	d.until(20*time.Second, "what n1 led is led by others", func() (bool, string) {
		var err error
		if st, err = d.status(); err != nil {
			return false, err.Error()
		}
		for _, sh := range st.Deployments[0].Shards {
			if sh.Primary == "n1" || sh.Phase != "serving" {
				return false, sh.ID + " is " + sh.Phase + " with " + sh.Primary
			}
		}
		return true, ""
	})
	for i, sh := range st.Deployments[0].Shards {
		if was.Deployments[0].Shards[i].Primary == "n1" {
			handed++
		}
		d.leads(s, sh)
	}
	if handed == 0 {
		t.Error("n1 led no shard")
	}
	longest := outage(ws, begun).outage
	for _, w := range ws {
		w.finish()
	}
	v := judge(t, d.proxyAddr(1), ws)
	t.Logf("mode %s: %d shards handed over by a member that was told to end: longest time without a write %.1f ms, %d acknowledged, %d lost, %d duplicated, %d errors %v",
		mode, handed, ms(longest), v.acked, v.lost, v.duplicated, v.errors, v.messages)
	if v.errors > 0 {
		t.Errorf("clients have seen errors: %v", v.messages)
	}
	requireNothingLost(t, v)
}

// leads waits until the services of a shard lead to its primary alone, by slice and Endpoints, and the pods are labelled.
func (d *deployment) leads(s *kubeapi.Server, sh shard) {
	d.t.Helper()
	name := strings.TrimPrefix(sh.ID, "mymaster-")
	port := 0
	for _, n := range sh.Nodes {
		if n.ID == sh.Primary {
			port, _ = strconv.Atoi(n.Addr[strings.LastIndex(n.Addr, ":")+1:])
		}
	}
	want := fmt.Sprintf("10.244.0.%s:%d", strings.TrimPrefix(sh.Primary, "n"), port)
	c := s.Open(d.t)
	d.until(10*time.Second, "db-"+name+"-primary leads to "+want, func() (bool, string) {
		var slice kube.EndpointSlice
		var points kube.Endpoints
		var pod kube.Pod
		for _, x := range []struct {
			group, resource, name string
			into                  any
		}{{"discovery.k8s.io/v1", "endpointslices", "db-" + name + "-primary", &slice}, {"", "endpoints", "db-" + name + "-primary", &points}, {"", "pods", sh.Primary, &pod}} {
			if err := c.Do(d.t.Context(), http.MethodGet, c.Path(x.group, x.resource, x.name), nil, "", nil, x.into); err != nil {
				return false, err.Error()
			}
		}
		got, older := "", ""
		if len(slice.Endpoints) == 1 {
			got = fmt.Sprintf("%s:%d", slice.Endpoints[0].Addresses[0], slice.Ports[0].Port)
		}
		if len(points.Subsets) == 1 && len(points.Subsets[0].Addresses) == 1 {
			older = fmt.Sprintf("%s:%d", points.Subsets[0].Addresses[0].IP, points.Subsets[0].Ports[0].Port)
		}
		role := pod.Metadata.Labels["role.redoubt.io/"+name]
		return got == want && older == want && role == "primary", fmt.Sprintf("slice %s, Endpoints %s, %s is %q", got, older, sh.Primary, role)
	})
}

// TestShardsOverTheSmallAPIServer: the quick part of the next one.
func TestShardsOverTheSmallAPIServer(t *testing.T) { shardsInPods(t, kubeapi.Small(t), "ring") }

// TestShardsOverKubernetes: the same in mode cluster, with the real API server's checks.
func TestShardsOverKubernetes(t *testing.T) {
	if testing.Short() {
		t.Skip("make show-kubernetes")
	}
	shardsInPods(t, kubeapi.Real(t), "cluster")
}
