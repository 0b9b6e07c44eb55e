// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"
)

// diskServer is a server that can confirm what is on its disk: REDOUBT_TEST_SERVER, or the one on PATH.
func diskServer(t *testing.T) string {
	t.Helper()
	name := os.Getenv("REDOUBT_TEST_SERVER")
	if name == "" {
		name = "redis-server"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no server to test with: %v", err)
	}
	out, err := exec.Command(path, "--version").Output()
	v := regexp.MustCompile(` v=(\d+)\.(\d+)`).FindStringSubmatch(string(out))
	if err != nil || v == nil {
		t.Skipf("%s does not tell its version: %q, %v", path, out, err)
	}
	major, _ := strconv.Atoi(v[1])
	minor, _ := strconv.Atoi(v[2])
	if major*100+minor < 704 {
		t.Skipf("quorum+disk needs Redis 7.4 or Valkey 8.0 (REDOUBT_TEST_SERVER), this is %s", strings.TrimSpace(string(out)))
	}
	return path
}

// newDiskCrew starts three members with a server each that can confirm what is on its disk.
func newDiskCrew(t *testing.T, durability string) *crew {
	t.Helper()
	server := diskServer(t)
	c := newCrew(t)
	c.extra = "    durability: " + durability + "\n"
	c.local = func(string) string { return fmt.Sprintf("{binary: %q}", server) }
	return c
}

func (c *crew) startAll() {
	c.t.Helper()
	for _, id := range []string{"n1", "n2", "n3"} {
		c.start(id, "")
	}
}

// setters are clients of all proxies that write keys of their own one after the other, and remember what was acknowledged.
type setters struct {
	stop  chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	acked map[string]int // of each client: how many keys, from 0 on, all acknowledged
	wild  int            // other replies
}

func (c *crew) startSetters(run string, clients int) *setters {
	s := &setters{stop: make(chan struct{}), acked: map[string]int{}}
	for i := range clients {
		name := fmt.Sprintf("{%s:%d}:", run, i)
		client := redis.NewClient(&redis.Options{Addr: c.at(0, 1+i%3), MaxRetries: -1, DialTimeout: time.Second, ReadTimeout: 15 * time.Second, PoolSize: 1})
		s.wg.Go(func() {
			defer client.Close()
			for n := 0; ; {
				select {
				case <-s.stop:
					return
				default:
				}
				err := client.Set(context.Background(), name+strconv.Itoa(n), n, 0).Err()
				s.mu.Lock()
				if err != nil {
					s.wild++
				} else {
					n++
					s.acked[name] = n
				}
				s.mu.Unlock()
				if err != nil {
					wait(10 * time.Millisecond)
				}
			}
		})
	}
	return s
}

// end stops the clients and waits for their last writes.
func (s *setters) end() {
	close(s.stop)
	s.wg.Wait()
}

func (s *setters) total() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.acked {
		n += k
	}
	return n
}

func (s *setters) errors() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wild
}

// missing counts the acknowledged keys that the server of member i does not have.
func (c *crew) missing(s *setters, i int) (n int) {
	c.t.Helper()
	client := c.direct(i, 0)
	defer client.Close()
	for name, acked := range s.acked {
		for from := 0; from < acked; from += 1000 {
			var keys []string
			for k := from; k < min(acked, from+1000); k++ {
				keys = append(keys, name+strconv.Itoa(k))
			}
			there, err := client.Exists(context.Background(), keys...).Result()
			if err != nil {
				c.t.Fatal(err)
			}
			n += len(keys) - int(there)
		}
	}
	return n
}

func (c *crew) killAllAtOnce() {
	for _, id := range []string{"n1", "n2", "n3"} {
		_ = c.members[id].Process.Kill()
	}
	c.endManaged("*")
	for _, id := range []string{"n1", "n2", "n3"} {
		c.kill(id)
	}
}

// TestQuorumDiskThroughKills: the primary's server is killed under load, then all servers and all members at once.
func TestQuorumDiskThroughKills(t *testing.T) { diskThroughKills(t, newDiskCrew(t, "quorum+disk")) }

// diskThroughKills is the test of one kind of deployment.
func diskThroughKills(t *testing.T, c *crew) {
	c.startAll()
	for i := range roundsOr(2) {
		st := c.d.waitHealthy(60 * time.Second)
		s := c.startSetters(fmt.Sprintf("r%d", i), 12)
		c.d.until(20*time.Second, "some writes are acknowledged", func() (bool, string) { return s.total() > 500, strconv.Itoa(s.total()) })
		before := st.primary()
		c.endManaged(before)
		c.d.until(20*time.Second, "another primary serves", func() (bool, string) {
			now, err := c.d.status()
			return err == nil && now.primary() != "" && now.primary() != before, fmt.Sprint(err)
		})
		at := s.total()
		c.d.until(20*time.Second, "writes go on", func() (bool, string) { return s.total() > at+500, strconv.Itoa(s.total()) })
		c.d.waitHealthy(60 * time.Second)
		c.killAllAtOnce()
		close(s.stop)
		s.wg.Wait()
		c.startAll()
		now := c.d.waitHealthy(60 * time.Second)
		t.Logf("round %d: %d writes acknowledged, %d unanswered; primary %s, after its kill another, after the kill of all %s", i+1, s.total(), s.wild, before, now.primary())
		for n := 1; n <= 3; n++ {
			if lost := c.missing(s, n); lost > 0 {
				t.Errorf("n%d: %d of %d acknowledged writes are missing", n, lost, s.total())
			}
		}
	}
}

// shutdownDisk is what EXT4_IOC_SHUTDOWN asks for: from now on nothing reaches the disk any more, and what was not synced never did.
const (
	shutdownDisk      = 0x8004587d
	withoutTheJournal = 2
)

// powered is a file system on a disk of its own, whose power can be cut.
type powered struct {
	t          *testing.T
	image, dir string
}

func newPowered(t *testing.T) *powered {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a file system")
	}
	p := &powered{t: t, image: filepath.Join(t.TempDir(), "image"), dir: filepath.Join(t.TempDir(), "disk")}
	f, err := os.Create(p.image)
	if err == nil {
		err = f.Truncate(512 << 20)
		f.Close()
	}
	if err == nil {
		err = os.Mkdir(p.dir, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", p.image).CombinedOutput(); err != nil {
		t.Skipf("no file system of our own: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", p.image, p.dir).CombinedOutput(); err != nil {
		t.Skipf("no file system of our own: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", p.dir).Run() })
	return p
}

// cut ends the power: nothing is written from here on.
func (p *powered) cut() {
	p.t.Helper()
	d, err := os.Open(p.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	defer d.Close()
	if err := unix.IoctlSetPointerInt(int(d.Fd()), shutdownDisk, withoutTheJournal); err != nil {
		p.t.Skipf("this kernel cannot cut a file system off: %v", err)
	}
}

// on brings the disk back, as it was at the cut. Nobody uses it meanwhile.
func (p *powered) on() {
	p.t.Helper()
	var out []byte
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); wait(50 * time.Millisecond) { // processes that were killed a moment ago
		if out, err = exec.Command("umount", p.dir).CombinedOutput(); err == nil {
			break
		}
	}
	if err == nil {
		out, err = exec.Command("mount", "-o", "loop", p.image, p.dir).CombinedOutput()
	}
	if err != nil {
		p.t.Fatalf("%v: %s", err, out)
	}
}

// anotherBoot makes every seat see what a loss of power is: its latest process ran under another kernel.
func (c *crew) anotherBoot() {
	c.t.Helper()
	seats, _ := filepath.Glob(filepath.Join(c.d.dir, "*", "data", "redis", "redoubt-seat.json"))
	for _, path := range seats {
		text, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, regexp.MustCompile(`"boot_id":"[^"]*"`).ReplaceAll(text, []byte(`"boot_id":"another"`)), 0o600)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

// TestALossOfPowerTakesNothingThatWasAcknowledged: the power of all machines ends at once, under load. A person is asked
// which data set goes on, and told where everything is. With plain quorum the same loses writes, or the test could not see it.
func TestALossOfPowerTakesNothingThatWasAcknowledged(t *testing.T) {
	for _, story := range []string{"quorum+disk", "quorum+disk, after a failover", "quorum"} {
		t.Run(story, func(t *testing.T) {
			durability, failover, _ := strings.Cut(story, ", ")
			disk := newPowered(t) // first, because it goes last
			c := newDiskCrew(t, durability)
			c.d.dir = disk.dir
			c.startAll()
			st := c.d.waitHealthy(60 * time.Second)
			s := c.startSetters("p", 12)
			c.d.until(30*time.Second, "some writes are acknowledged", func() (bool, string) { return s.total() > 2000, strconv.Itoa(s.total()) })
			if failover != "" { // and only a moment later
				old := st.primary()
				c.endManaged(old)
				c.d.until(20*time.Second, "another primary serves", func() (bool, string) {
					now, err := c.d.status()
					if err == nil && now.phase() == "serving" && now.primary() != old {
						st = now
					}
					return st.primary() != old, fmt.Sprint(err)
				})
			}
			c.killAllAtOnce() // first, so that nothing is acknowledged between two of the steps
			disk.cut()
			close(s.stop)
			s.wg.Wait()
			disk.on()
			c.anotherBoot()
			c.startAll()
			why := ""
			c.d.until(30*time.Second, "it asks an operator", func() (bool, string) {
				why, _ = c.d.run("explain")
				return strings.Contains(strings.SplitN(why, "\n", 2)[0], "choose"), why
			})
			if durability == "quorum+disk" && !strings.Contains(why, "choose it with redoubt failover --to "+st.primary()+" --accept-data-loss") {
				t.Fatal(why)
			}
			if out, err := c.d.run("failover", "--to", st.primary(), "--accept-data-loss", "--yes"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			c.d.waitHealthy(60 * time.Second)
			lost := c.missing(s, number(t, st.primary()))
			t.Logf("%s: %d writes acknowledged, %d lost with the power", story, s.total(), lost)
			if durability == "quorum+disk" && lost > 0 {
				t.Errorf("%d of %d acknowledged writes are missing", lost, s.total())
			}
			if durability == "quorum" && lost == 0 {
				t.Error("plain quorum lost nothing either: the power was not cut as it should have been")
			}
		})
	}
}

// TestQuorumDiskIsRefusedWhereItCannotBeKept: the verb says which node and what to do; nothing is weakened silently.
func TestQuorumDiskIsRefusedWhereItCannotBeKept(t *testing.T) {
	d := up(t, "--persistence", "none")
	d.waitHealthy(60 * time.Second)
	out, err := d.run("set", "durability=quorum+disk")
	if err == nil || !strings.Contains(err.Error()+out, "quorum+disk is not possible with n1: ") {
		t.Fatalf("%v: %s", err, out)
	}
	t.Log(err)
	if out, err := d.run("set", "durability=async"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestQuorumDiskBeginsAndEndsUnderLoad: without an error and without a loss.
func TestQuorumDiskBeginsAndEndsUnderLoad(t *testing.T) {
	diskBeginsAndEnds(t, newDiskCrew(t, "quorum"))
}

// diskBeginsAndEnds is the test of one kind of deployment.
func diskBeginsAndEnds(t *testing.T, c *crew) {
	c.startAll()
	c.d.waitHealthy(60 * time.Second)
	policy := func() string {
		client := redis.NewClient(&redis.Options{Addr: c.at(100, 1), MaxRetries: -1})
		defer client.Close()
		return client.ConfigGet(context.Background(), "appendfsync").Val()["appendfsync"]
	}
	s := c.startSetters("g", 12)
	for _, durability := range []string{"quorum+disk", "quorum", "quorum+disk", "async", "quorum+disk"} {
		begun := time.Now()
		if out, err := c.d.run("set", "durability="+durability); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		at := s.total()
		t.Logf("durability=%s after %s, %d writes so far", durability, time.Since(begun).Round(time.Millisecond), at)
		want := map[bool]string{true: "always", false: "everysec"}[durability == "quorum+disk"]
		c.d.until(10*time.Second, "appendfsync "+want, func() (bool, string) { return policy() == want, policy() })
		c.d.until(20*time.Second, "writes go on", func() (bool, string) { return s.total() > at+300, strconv.Itoa(s.total()) })
	}
	for range roundsOr(2) {
		c.d.waitHealthy(30 * time.Second)
		if out, err := c.d.run("switchover", "--yes"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if n := s.errors(); n > 0 {
		t.Errorf("%d writes got an error", n)
	}
	c.killAllAtOnce()
	close(s.stop)
	s.wg.Wait()
	c.startAll()
	c.d.waitHealthy(60 * time.Second)
	for n := 1; n <= 3; n++ {
		if lost := c.missing(s, n); lost > 0 {
			t.Errorf("n%d: %d of %d acknowledged writes are missing", n, lost, s.total())
		}
	}
}

// TestWhatDisksCost compares writes with durability quorum+disk and quorum, as TestWhatQuorumCosts does. What a sync costs is the
// disk's affair.
func TestWhatDisksCost(t *testing.T) {
	if _, err := exec.LookPath("redis-benchmark"); err != nil {
		t.Skip("redis-benchmark is not installed")
	}
	disk, quorum := newDiskCrew(t, "quorum+disk"), newDiskCrew(t, "quorum")
	disk.startAll()
	quorum.startAll()
	disk.d.waitHealthy(60 * time.Second)
	quorum.d.waitHealthy(60 * time.Second)
	costs(t, "quorum+disk", disk.d, "quorum", quorum.d, 0.005)
}
