// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/kube"
	"redoubt/test/kubeapi"
)

// kubeURL is what `up --store` takes for an API server.
func kubeURL(s *kubeapi.Server, prefix, service string) string {
	q := url.Values{"namespace": {s.Access.Namespace}, "token-file": {s.Access.TokenFile}, "ca": {s.Access.CA}}
	if service != "" {
		q.Set("service", service)
	}
	return "kubernetes://" + strings.TrimPrefix(s.Access.URL, "https://") + "/" + prefix + "?" + q.Encode()
}

// TestADeploymentOverTheSmallAPIServer: the quick part of TestServiceOverKubernetes, which takes the real one.
func TestADeploymentOverTheSmallAPIServer(t *testing.T) {
	d := up(t, "--store", kubeURL(kubeapi.Small(t), "e2e", ""))
	if out, err := d.run("member", "list"); err != nil || !strings.Contains(out, "kept by kubernetes") {
		t.Errorf("%v\n%s", err, out)
	}
	before, begun := d.storeReads(), time.Now()
	wait(2 * time.Second)
	rate := float64(d.storeReads()-before) / time.Since(begun).Seconds()
	t.Logf("three members at rest: %.0f reads of the store in a second, each of one or two documents", rate)
	if rate < 1 || rate > 200 {
		t.Errorf("%.0f reads of the store in a second", rate)
	}
	outages, v := repeat(t, d, 1, 15*time.Second, d.survivor, func(s status) (time.Time, func()) {
		n := s.node(s.primary())
		at := time.Now()
		signal(t, agentOf(t, s, n.ID), syscall.SIGKILL)
		signal(t, n.PID, syscall.SIGKILL)
		return at, d.start
	})
	figures(t, "small API server: host of the primary lost", outages, v)
	requireNothingLost(t, v)
}

// storeReads sums up what the members have read of the store outside.
func (d *deployment) storeReads() (sum int) {
	d.t.Helper()
	for i := range 3 {
		r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", d.base+30+i))
		if err != nil {
			d.t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil {
			d.t.Fatal(err)
		}
		for _, line := range strings.Split(string(body), "\n") {
			if value, ok := strings.CutPrefix(line, "redoubt_store_reads_total "); ok {
				n, err := strconv.Atoi(value)
				if err != nil {
					d.t.Fatal(err)
				}
				sum += n
			}
		}
	}
	return sum
}

// TestServiceOverKubernetes: as over other stores. The API server is one process: it is away when it hangs, and while it is started again.
func TestServiceOverKubernetes(t *testing.T) {
	s := kubeapi.Real(t)
	d := up(t, "--store", kubeURL(s, "e2e", ""))
	tellStories(t, d, "kubernetes")
	outageOf(t, d, "kubernetes: the API server stopped", s.Stop, s.Continue)
	outageOf(t, d, "kubernetes: the API server killed, and started again", s.Kill, func() { s.Start(t) })
}

// pods are a StatefulSet of three, redis-0 to redis-2, and one of a Deployment, proxy-0, as processes of this machine: each time one of the
// set starts, its name leads to another address.
type pods struct {
	t     *testing.T
	d     *deployment
	s     *kubeapi.Server
	hosts string // the names' file, in place of DNS
	at    [3]int // generation of each
	ring  int    // shards; 0: mode single
	cmds  map[string]*exec.Cmd
}

const podProxy = "proxy-0"

func startPods(t *testing.T, s *kubeapi.Server, ring int) *pods {
	t.Helper()
	if _, err := exec.LookPath("unshare"); err != nil || os.Geteuid() != 0 {
		t.Skip("names that lead elsewhere need root and unshare")
	}
	p := &pods{t: t, s: s, ring: ring, d: &deployment{t: t, bin: binary(t), dir: t.TempDir(), base: freeBase(t)}, cmds: map[string]*exec.Cmd{}}
	p.hosts = filepath.Join(p.d.dir, "hosts")
	p.d.api = func() string { return p.addr(-1, 30) }
	t.Cleanup(p.end)
	p.names()
	for i := range p.at {
		p.start(i)
	}
	p.start(-1)
	return p
}

func (p *pods) id(i int) string {
	if i < 0 {
		return podProxy
	}
	return fmt.Sprint("redis-", i)
}

// ip is where a pod's processes listen now; the loopback has room for that. The API server is told of another one, because it takes
// no loopback.
func (p *pods) ip(i int) string {
	if i < 0 {
		return "127.0.0.1"
	}
	return fmt.Sprintf("127.8.%d.%d", p.at[i], i+1)
}

func (p *pods) podIP(i int) string { return strings.Replace(p.ip(i), "127.8.", "10.244.", 1) }

func (p *pods) addr(i, kind int) string {
	return net.JoinHostPort(p.ip(i), strconv.Itoa(p.d.base+kind))
}

func (p *pods) names() {
	p.t.Helper()
	text := "127.0.0.1 localhost\n"
	for i := range p.at {
		text += fmt.Sprintf("%s %s.redis\n", p.ip(i), p.id(i))
	}
	if err := os.WriteFile(p.hosts, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// start starts a pod at its present address.
func (p *pods) start(i int) {
	p.t.Helper()
	id := p.id(i)
	dir := filepath.Join(p.d.dir, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	var b strings.Builder
	k := p.s.Member()
	fmt.Fprintf(&b, "member: {id: %s, dir: data, host: %q}\nstore: {kind: kubernetes, listen: %q, prefix: e2e}\n", id, p.ip(i), p.addr(i, 40))
	fmt.Fprintf(&b, "kubernetes: {api: %q, namespace: %q, token-file: %q, ca: %q, service: redoubt}\n", k.URL, k.Namespace, k.TokenFile, k.CA)
	b.WriteString("deployments:\n  - name: mymaster\n" + p.roster())
	if i >= 0 {
		b.WriteString("    node: {}\n")
		p.s.Pod(p.t, id, p.podIP(i))
	}
	fmt.Fprintf(&b, "proxy: {listen: %q}\napi: {listen: %q}\n", p.addr(i, 0), p.addr(i, 30))
	file := filepath.Join(dir, "redoubt.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		p.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "redoubt.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, p.hosts, p.d.bin, "run", "-c", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.cmds[id] = cmd
}

// roster is the part of the file that names the servers. Each shard of a ring has its first primary on another pod.
func (p *pods) roster() string {
	var b strings.Builder
	nodes := func(indent string, k int) {
		fmt.Fprintf(&b, "%snodes:\n", indent)
		for j := range p.at {
			fmt.Fprintf(&b, "%s  - {id: %s, host: h%d, addr: \"%s.redis:%d\", priority: %d}\n", indent, p.id(j), j, p.id(j), p.d.base+100+10*k, (j-k+len(p.at))%len(p.at))
		}
	}
	if p.ring == 0 {
		nodes("    ", 0)
		return b.String()
	}
	b.WriteString("    mode: ring\n    shards:\n")
	for k := range p.ring {
		fmt.Fprintf(&b, "      - name: s%d\n", k+1)
		nodes("        ", k)
	}
	return b.String()
}

// stop ends a pod as a kubelet does, and returns how long that took.
func (p *pods) stop(id string, sig syscall.Signal) time.Duration {
	p.t.Helper()
	cmd := p.cmds[id]
	if cmd == nil {
		return 0
	}
	delete(p.cmds, id)
	begun, done := time.Now(), make(chan error, 1)
	_ = cmd.Process.Signal(sig)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			p.t.Errorf("%s: %v", id, err)
		}
	case <-time.After(30 * time.Second):
		p.t.Errorf("%s does not end within 30 s", id)
		_ = cmd.Process.Kill()
		<-done
	}
	return time.Since(begun)
}

func (p *pods) end() {
	if p.t.Failed() {
		p.d.showLogs()
	}
	for _, i := range []int{0, 1, 2, -1} {
		p.stop(p.id(i), syscall.SIGINT)
	}
}

// ready asks a pod as a readiness probe does.
func (p *pods) ready(i int) (bool, string) {
	c := http.Client{Timeout: time.Second}
	r, err := c.Get("http://" + p.addr(i, 30) + "/readyz")
	if err != nil {
		return false, err.Error()
	}
	defer r.Body.Close()
	return r.StatusCode == http.StatusOK, r.Status
}

// told waits until the cluster was told of the primary that status shows; of a ring's first shard.
func (p *pods) told(s status) {
	p.t.Helper()
	service, label := "redoubt-primary", "redoubt.io/role"
	if p.ring > 0 {
		service, label = "redoubt-s1-primary", "role.redoubt.io/s1"
	}
	c := p.s.Open(p.t)
	i, err := strconv.Atoi(strings.TrimPrefix(s.primary(), "redis-"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.d.until(10*time.Second, "the cluster knows the primary", func() (bool, string) {
		var slice kube.EndpointSlice
		var pod kube.Pod
		err := c.Do(p.t.Context(), http.MethodGet, c.Path("discovery.k8s.io/v1", "endpointslices", service), nil, "", nil, &slice)
		if err == nil {
			err = c.Do(p.t.Context(), http.MethodGet, c.Path("", "pods", s.primary()), nil, "", nil, &pod)
		}
		text, _ := json.Marshal(slice)
		return err == nil && len(slice.Endpoints) == 1 && slice.Endpoints[0].Addresses[0] == p.podIP(i) && pod.Metadata.Labels[label] == "primary",
			fmt.Sprintf("%s %v %v, not %s at %s", text, pod.Metadata.Labels, err, s.primary(), p.podIP(i))
	})
}

// rollingUpdate restarts all pods of the set, the last one first, each with a new address, while clients write through the proxy of another
// pod: no error, no loss.
func rollingUpdate(t *testing.T, s *kubeapi.Server, ring int) {
	t.Helper()
	p := startPods(t, s, ring)
	st := p.d.waitHealthy(40 * time.Second)
	p.told(st)
	addr := p.addr(-1, 0)
	ws := startWriters(t, "roll", addr)
	for _, i := range []int{2, 1, 0} {
		p.restart(i, ws)
	}
	p.told(p.d.waitHealthy(30 * time.Second))
	for _, w := range ws {
		w.finish()
	}
	v := judge(t, addr, ws)
	t.Logf("three restarts with new addresses: %d acknowledged, %d lost, %d duplicated, %d errors %v", v.acked, v.lost, v.duplicated, v.errors, v.messages)
	if v.errors > 0 {
		t.Errorf("clients have seen %d errors: %v", v.errors, v.messages)
	}
	requireNothingLost(t, v)
}

// namesKept is how long a process remembers what a name led to: five seconds for names of files in Go. In a cluster it is what CoreDNS keeps.
const namesKept = 5500 * time.Millisecond

// restart ends a pod, starts it with another address, waits until it is ready and returns the longest time without a write.
func (p *pods) restart(i int, ws []*writer) time.Duration {
	p.t.Helper()
	id, was := p.id(i), p.d.waitHealthy(30*time.Second)
	begun := time.Now()
	took := p.stop(id, syscall.SIGTERM)
	p.at[i]++
	p.names()
	p.start(i)
	p.d.until(40*time.Second, id+" is ready again", func() (bool, string) { return p.ready(i) })
	ready := time.Since(begun)
	wait(namesKept) // minReadySeconds
	longest, role := outage(ws, begun).outage, "replica"
	if was.primary() == id {
		role = "primary"
	}
	p.t.Logf("%s (%s) ended in %s, longest time without a write %.1f ms, ready at %s after %s", id, role, took.Round(time.Millisecond), ms(longest), p.ip(i), ready.Round(time.Millisecond))
	if longest > 2*time.Second {
		p.t.Errorf("%s was missed for %s", id, longest)
	}
	return longest
}

func TestARollingUpdateOverTheSmallAPIServer(t *testing.T) { rollingUpdate(t, kubeapi.Small(t), 0) }

func TestARollingUpdateOverKubernetes(t *testing.T) {
	if testing.Short() {
		t.Skip("make show-kubernetes")
	}
	overManifests(t, 0)
}

// TestARollingUpdateOfARing: each pod has a server of all three shards, and is the first primary of one.
func TestARollingUpdateOfARing(t *testing.T) {
	if !*everyone {
		t.Skip("make show-kubernetes")
	}
	overManifests(t, 3)
}

// overManifests plays a rolling update over the real API server, with the rights that the manifests give.
func overManifests(t *testing.T, ring int) {
	t.Helper()
	rollingUpdate(t, withManifests(t), ring)
}

// withManifests is the real API server with what the manifests apply.
func withManifests(t *testing.T) *kubeapi.Server {
	t.Helper()
	s := kubeapi.Real(t)
	manifests, err := os.ReadFile("../../deploy/kubernetes/redoubt.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// Nobody runs its pods here; its services and the rights of its service account are what the members use.
	if out, err := s.Kubectl(t, manifests, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return s
}

// TestPrimariesHandOverOverKubernetes ends the primary's pod, again and again, as a rolling update does.
func TestPrimariesHandOverOverKubernetes(t *testing.T) {
	if !*everyone {
		t.Skip("make show-kubernetes")
	}
	p := startPods(t, withManifests(t), 0)
	p.told(p.d.waitHealthy(40 * time.Second))
	addr := p.addr(-1, 0)
	ws := startWriters(t, "over", addr)
	var outages []time.Duration
	for range 5 {
		at := slices.Index([]string{p.id(0), p.id(1), p.id(2)}, p.d.waitHealthy(30*time.Second).primary())
		outages = append(outages, p.restart(at, ws))
	}
	for _, w := range ws {
		w.finish()
	}
	v := judge(t, addr, ws)
	t.Logf("the primary's pod is restarted: longest time without a write %s; %d acknowledged, %d lost, %d duplicated, %d errors", medianWorst(outages), v.acked, v.lost, v.duplicated, v.errors)
	if v.errors > 0 {
		t.Errorf("clients have seen %d errors: %v", v.errors, v.messages)
	}
	requireNothingLost(t, v)
}
