// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	jobs     = 1000
	jobBound = 90 * time.Second // libraries look for jobs of lost workers each half a minute
)

// TestFrameworks: job queues and sessions, as they come, keep what they were given through a kill of the primary.
func TestFrameworks(t *testing.T) {
	if !*everyone {
		t.Skip("make show-frameworks runs it")
	}
	t.Run("bullmq", func(t *testing.T) {
		keepsJobs(t, "", func(host, port string) (add, work *exec.Cmd) {
			return exec.Command("node", "bullmq.js", host, port, "add", fmt.Sprint(jobs)), exec.Command("node", "bullmq.js", host, port, "work")
		})
	})
	celery := func(more ...string) func(host, port string) (add, work *exec.Cmd) {
		return func(host, port string) (add, work *exec.Cmd) {
			add = exec.Command("/usr/bin/python3", "celery_jobs.py", fmt.Sprint(jobs))
			work = exec.Command("/usr/bin/python3", "-m", "celery", "-A", "celery_jobs", "worker", "--loglevel", "WARNING")
			for _, c := range []*exec.Cmd{add, work} {
				c.Env = append(os.Environ(), "REDIS_URL=redis://"+net.JoinHostPort(host, port)+"/0", "C_FORCE_ROOT=1", "PYTHONDONTWRITEBYTECODE=1")
				c.Env = append(c.Env, more...)
			}
			return add, work
		}
	}
	t.Run("celery", func(t *testing.T) {
		// kombu takes an error reply to its acknowledgement for a broken channel, and the worker exits; it knows a closed connection.
		keepsJobs(t, "unknown-outcome: disconnect", celery("VISIBILITY=15"))
	})
	t.Run("celery-default-timeout", func(t *testing.T) { keepsJobs(t, "unknown-outcome: disconnect", celery()) })
	t.Run("sidekiq", func(t *testing.T) {
		keepsJobs(t, "", func(host, port string) (add, work *exec.Cmd) {
			add = exec.Command("ruby", "sidekiq_jobs.rb", fmt.Sprint(jobs))
			work = exec.Command("sidekiq", "-r", "./sidekiq_jobs.rb")
			for _, c := range []*exec.Cmd{add, work} {
				c.Env = append(os.Environ(), "REDIS_URL=redis://"+net.JoinHostPort(host, port)+"/0")
			}
			return add, work
		})
	})
	t.Run("express-session", keepsSessions)
}

// program is one process of a framework; it says in lines what it does.
type program struct {
	cmd *exec.Cmd
	in  io.Closer
	end chan struct{}

	mu    sync.Mutex
	said  map[string][]string // by the first word
	noise lockedText          // its standard error, and what else it wrote
}

func launch(t *testing.T, cmd *exec.Cmd) *program {
	t.Helper()
	if _, err := exec.LookPath(cmd.Path); err != nil {
		t.Skipf("%s is not installed (scripts/deps.sh matrix installs it)", cmd.Path)
	}
	p := &program{cmd: cmd, end: make(chan struct{}), said: map[string][]string{}}
	cmd.Dir, cmd.Stderr = "../clients", &p.noise
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // workers have workers
	in, out := pipes(t, cmd)
	p.in = in
	go func() {
		defer close(p.end)
		defer cmd.Wait()
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			word, rest, _ := strings.Cut(lines.Text(), " ")
			if !slices.Contains([]string{"added", "done", "result", "error", "port"}, word) {
				fmt.Fprintln(&p.noise, lines.Text())
				continue
			}
			p.mu.Lock()
			p.said[word] = append(p.said[word], rest)
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		p.in.Close()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-p.end
		if t.Failed() {
			t.Logf("%s wrote:\n%s", cmd.Path, p.noise.String())
		}
	})
	return p
}

// all returns what was said after a word; it is only ever appended to.
func (p *program) all(word string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said[word]
}

func (p *program) ended() bool {
	select {
	case <-p.end:
		return true
	default:
		return false
	}
}

// keepsJobs adds jobs while a worker does them, kills the primary in the middle, and requires each to be done. A producer
// that got an error adds the job again, so a job may be done twice.
//
// A worker that takes jobs by BRPOP alone (Sidekiq without its Pro fetch, kombu) loses the one whose pop was applied and whose reply never
// came, with any server that crashes. Here it is told so by an error for each, or its connection is closed: more may not be missing.
func keepsJobs(t *testing.T, setting string, commands func(host, port string) (add, work *exec.Cmd)) {
	d := up(t)
	if setting != "" {
		d.set("proxy", setting)
	}
	s := d.waitHealthy(30 * time.Second)
	host, port, _ := net.SplitHostPort(d.proxyAddr(0))
	add, work := commands(host, port)
	worker := launch(t, work)
	producer := launch(t, add)
	d.until(jobBound, "a third of the jobs is done", func() (bool, string) {
		return len(worker.all("done")) >= jobs/3, fmt.Sprintf("%d done, %d added, errors %v %v", len(worker.all("done")), len(producer.all("added")), producer.all("error"), worker.all("error"))
	})
	killed := time.Now()
	signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
	before := len(worker.all("done"))
	resumed := poll(jobBound, func() bool { return len(worker.all("done")) > before+20 || worker.ended() })
	t.Logf("killed after %d jobs; the next 20 were done %.0f ms later: %t", before, ms(time.Since(killed)), resumed && !worker.ended())
	times := map[string]int{}
	everything := func() bool {
		clear(times)
		for _, n := range worker.all("done") {
			times[n]++
		}
		return len(times) >= jobs && len(producer.all("added")) == jobs
	}
	last, since := 0, time.Now()
	poll(jobBound, func() bool {
		if n := len(worker.all("done")); n != last {
			last, since = n, time.Now()
		}
		idle := time.Since(since) > 40*time.Second && (setting != "" || strings.Contains(worker.noise.String(), "Error fetching job: OUTCOMEUNKNOWN"))
		return everything() || worker.ended() || idle
	})
	var missing []int
	for n := 1; n <= jobs; n++ {
		if times[strconv.Itoa(n)] == 0 {
			missing = append(missing, n)
		}
	}
	told := strings.Count(worker.noise.String(), "Error fetching job: OUTCOMEUNKNOWN")
	if setting != "" {
		told++ // kombu pops on one connection
	}
	if len(missing) > told {
		t.Errorf("%d jobs of %d were not done within %s, first %v (added: %d; the worker ended by itself: %t)", len(missing), jobs, jobBound, missing[:min(5, len(missing))], len(producer.all("added")), worker.ended())
	}
	t.Logf("%d jobs added, %d done, %d of them again, all %.1f s after the kill", len(producer.all("added")), len(times), len(worker.all("done"))-len(times), time.Since(killed).Seconds())
	t.Logf("%d jobs missing; at most %d pops had an unknown outcome", len(missing), told)
	requireDocumented(t, "the producer", producer.all("error"))
	requireDocumented(t, "the worker", worker.all("error"))
}

// requireDocumented: a kill may cost the errors that docs/guide/clients.md names, and no others.
func requireDocumented(t *testing.T, who string, errs []string) {
	t.Helper()
	kinds := map[string]int{}
	allowed := []string{"OUTCOMEUNKNOWN", "TRYAGAIN", "EXECABORT"}
	if slices.ContainsFunc(errs, func(e string) bool { return strings.Contains(e, "OUTCOMEUNKNOWN") }) {
		allowed = append(allowed, "Missing lock for job") // BullMQ's word for a step of unknown outcome that it tries again, and that had been applied
	}
	for _, e := range errs {
		kinds[clip(e)]++
		if !slices.ContainsFunc(allowed, func(p string) bool { return strings.Contains(e, p) }) {
			t.Errorf("%s: %s", who, e)
		}
	}
	for e, n := range kinds {
		t.Logf("%s: %d × %s", who, n, e)
	}
}

// keepsSessions begins sessions over HTTP, kills the primary in the middle, and reads all back by their cookies.
func keepsSessions(t *testing.T) {
	d := up(t)
	s := d.waitHealthy(30 * time.Second)
	host, port, _ := net.SplitHostPort(d.proxyAddr(0))
	app := launch(t, exec.Command("node", "sessions.js", host, port))
	d.until(15*time.Second, "the application listens", func() (bool, string) { return len(app.all("port")) == 1, app.noise.String() })
	url := "http://127.0.0.1:" + app.all("port")[0] + "/session"
	client := &http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	cookies := make([]string, jobs)
	var refused []string
	for i := range jobs {
		if i == jobs*2/5 {
			signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
		}
		for attempts := 0; cookies[i] == ""; attempts++ {
			body, cookie, err := exchange(client, http.MethodPost, fmt.Sprintf("%s?v=%d", url, i), "")
			switch {
			case err != nil || attempts > 20:
				t.Fatalf("session %d: %v; refused so far: %v", i, err, refused)
			case body != "stored" || cookie == "":
				refused = append(refused, body)
			default:
				cookies[i] = cookie
			}
		}
	}
	lost := 0
	for i, c := range cookies {
		body, _, err := exchange(client, http.MethodGet, url, c)
		if err != nil || body != strconv.Itoa(i) {
			if lost++; lost <= 3 {
				t.Errorf("session %d answers %q (%v)", i, clip(body), err)
			}
		}
	}
	t.Logf("%d sessions, %d lost, %d attempts refused", len(cookies), lost, len(refused))
	requireDocumented(t, "POST", refused)
	requireDocumented(t, "the application", app.all("error"))
}

// exchange sends one request with a cookie, and returns the answer and the cookie that it sets.
func exchange(c *http.Client, method, url, cookie string) (body, set string, err error) {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		return "", "", err
	}
	if cookie != "" {
		req.Header.Set("Cookie", cookie)
	}
	res, err := c.Do(req)
	if err != nil {
		return "", "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	set, _, _ = strings.Cut(res.Header.Get("Set-Cookie"), ";")
	return string(text), set, err
}
