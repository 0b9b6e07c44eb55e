// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// floating is the last byte of the address that floats in these tests.
const floating = 200

// where returns the hosts that have the address.
func (h *hosts) where(ip string) []int {
	var all []int
	for i := 1; i <= 3; i++ {
		out, err := exec.Command("ip", "-n", h.Name(i), "-o", "addr", "show").Output()
		if err == nil && strings.Contains(string(out), " "+ip+"/") {
			all = append(all, i)
		}
	}
	return all
}

// prober asks behind an address all the time.
type prober struct {
	mu   sync.Mutex
	ok   []time.Time // when an answer came
	stop chan struct{}
	done chan struct{}
}

func probe(addr string) *prober {
	p := &prober{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		for {
			select {
			case <-p.stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			if ping(addr) == nil {
				p.mu.Lock()
				p.ok = append(p.ok, time.Now())
				p.mu.Unlock()
			}
		}
	}()
	return p
}

func (p *prober) end() {
	close(p.stop)
	<-p.done
}

func ping(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	var b [5]byte
	_, err = c.Read(b[:])
	return err
}

// outage is the first time after a moment that nothing was answered for more than 60 ms; zero when it is not over.
func (p *prober) outage(at time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := at
	for _, ok := range p.ok {
		if ok.Before(at) {
			continue
		}
		if gap := ok.Sub(last); gap > 60*time.Millisecond {
			return gap
		}
		last = ok
	}
	return 0
}

// watchHolders says so when two hosts have the address at once.
func (h *hosts) watchHolders(ip string) (end func() string) {
	stop, said := make(chan struct{}), make(chan string, 1)
	go func() {
		for {
			select {
			case <-stop:
				said <- ""
				return
			case <-time.After(5 * time.Millisecond):
			}
			if all := h.where(ip); len(all) > 1 && len(h.where(ip)) > 1 { // looked at twice: the hosts are asked one after the other
				said <- fmt.Sprintf("hosts %v had the address at once", all)
				return
			}
		}
	}()
	return func() string { close(stop); return <-said }
}

// hit is one way to lose a holder, and to have it back.
type hit struct {
	name string
	do   func(h *hosts, holder int) (undo func())
}

func hits() []hit {
	return []hit{
		{"kill -9 of the holder's member", func(h *hosts, holder int) func() {
			signal(h.t, h.member(holder), syscall.SIGKILL)
			return func() { h.startMember(holder) }
		}},
		{"isolation of the holder's host", func(h *hosts, holder int) func() {
			h.cut = holder
			if err := h.Isolate(holder); err != nil {
				h.t.Fatal(err)
			}
			return h.heal
		}},
		{"SIGSTOP of the holder's member", func(h *hosts, holder int) func() {
			pid := h.member(holder)
			signal(h.t, pid, syscall.SIGSTOP)
			return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
		}},
	}
}

// said are the lines of all members' logs that match.
func (h *hosts) said(pattern string) string {
	out, _ := exec.Command("sh", "-c", "grep -hE '"+pattern+"' "+h.d.dir+"/*/redoubt.log | sort | tail -30").Output()
	return string(out)
}

// member is the process of the member on a host.
func (h *hosts) member(i int) int {
	h.t.Helper()
	for _, pid := range h.PIDs(i) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if words := strings.Split(string(b), "\x00"); len(words) > 1 && words[1] == "run" {
			return pid
		}
	}
	h.t.Fatalf("no member runs on host %d", i)
	return 0
}

// TestTheFloatingAddress: one host has the address, also after its holder was killed, cut off or stopped, never two have it, and a
// client behind it is answered again.
func TestTheFloatingAddress(t *testing.T) {
	h := upHostsWith(t, func(h *hosts, i int, text string) string {
		text = strings.Replace(text, fmt.Sprintf("proxy: {listen: \"%s:6379\"}", h.Addr(i)), "proxy: {listen: \"0.0.0.0:6379\"}", 1)
		return text + fmt.Sprintf("address: {ip: \"%s/24\", interface: eth0}\n", h.Addr(floating))
	})
	h.d.waitHealthy(60 * time.Second)
	ip := h.Addr(floating)
	one := func() (holder int) {
		t.Helper()
		h.d.until(15*time.Second, "one host has the address", func() (bool, string) {
			all := h.where(ip)
			if len(all) == 1 && ping(ip+":6379") == nil {
				holder = all[0]
			}
			return holder > 0, fmt.Sprint(all)
		})
		return holder
	}
	holder := one()
	h.d.until(5*time.Second, "status shows who holds it", func() (bool, string) {
		s, err := h.d.status()
		text, _ := h.d.run("status")
		return err == nil && s.Address.IP == ip+"/24" && s.Address.Holder == fmt.Sprint("n", holder) && strings.Contains(text, "HOLDER"), fmt.Sprintf("%+v %v\n%s", s.Address, err, text)
	})
	end := h.watchHolders(ip)
	p := probe(ip + ":6379")
	defer p.end()
	for _, x := range hits() {
		var took []time.Duration
		for range roundsOr(1) {
			s := h.d.waitHealthy(60 * time.Second)
			holder := one()
			if s.primary() == fmt.Sprint("n", holder) { // a failover of the shard is measured elsewhere
				h.d.until(20*time.Second, "it is primary elsewhere", func() (bool, string) { // on a busy machine a node may be called silent
					out, err := h.d.run("switchover", "--to", fmt.Sprint("n", holder%3+1), "--yes")
					return err == nil, out
				})
			}
			at := time.Now()
			undo := x.do(h, holder)
			var gap time.Duration
			h.d.until(15*time.Second, "it is answered again", func() (bool, string) {
				gap = p.outage(at)
				return gap > 0, fmt.Sprint(h.where(ip))
			})
			took = append(took, gap)
			if gap > 1500*time.Millisecond {
				t.Logf("%s at %s took %s:\n%s", x.name, at.UTC().Format("15:04:05.000"), gap, h.said("floating address|the address|elected controller|no longer"))
			}
			if x.name != hits()[1].name && slices.Contains(h.where(ip), holder) {
				t.Errorf("%s: host %d has the address still", x.name, holder)
			}
			undo()
		}
		t.Logf("%s: outage %s", x.name, medianWorst(took))
	}
	if both := end(); both != "" {
		t.Error(both)
	}
	h.d.waitHealthy(60 * time.Second)
	holder = one()
	at := time.Now()
	signal(t, h.member(holder), syscall.SIGTERM)
	h.d.until(15*time.Second, "another host has the address", func() (bool, string) {
		all := h.where(ip)
		return len(all) == 1 && all[0] != holder && ping(ip+":6379") == nil, fmt.Sprint(all)
	})
	t.Logf("a member that stops: another one has the address %.0f ms after SIGTERM", ms(time.Since(at)))
}

// TestKeepalivedBesideIt measures the real keepalived in the same kind of networks: with the advert_int 1 of most tutorials, and with 0.1.
func TestKeepalivedBesideIt(t *testing.T) {
	if *rounds == 0 {
		t.Skip("a measurement: make bench-address")
	}
	if _, err := exec.LookPath("keepalived"); err != nil {
		t.Skip("keepalived is not installed")
	}
	for _, advert := range []string{"0.1", "1"} {
		t.Run("advert_int "+advert, func(t *testing.T) { besideKeepalived(t, advert) })
	}
}

func besideKeepalived(t *testing.T, advert string) {
	h := upHostsWith(t, func(h *hosts, i int, text string) string { // its members hold no address: they are what listens behind it
		return strings.Replace(text, fmt.Sprintf("proxy: {listen: \"%s:6379\"}", h.Addr(i)), "proxy: {listen: \"0.0.0.0:6379\"}", 1)
	})
	s := h.d.waitHealthy(60 * time.Second)
	ip, dir := h.Addr(floating), t.TempDir()
	pids := map[int]int{}
	start := func(i int) {
		file := filepath.Join(dir, fmt.Sprint(i))
		text := fmt.Sprintf("vrrp_instance v {\n interface eth0\n virtual_router_id 51\n state BACKUP\n priority %d\n advert_int %s\n virtual_ipaddress {\n  %s/24\n }\n}\n", 100+i, advert, ip)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := h.Command(i, "keepalived", "-n", "-P", "-f", file, "-p", file+".pid", "-r", file+".vrrp", "-l")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pids[i] = cmd.Process.Pid
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
	for i := 1; i <= 3; i++ {
		start(i)
	}
	one := func() (holder int) {
		h.d.until(30*time.Second, "one host has the address", func() (bool, string) {
			all := h.where(ip)
			if len(all) == 1 && ping(ip+":6379") == nil {
				holder = all[0]
			}
			return holder > 0, fmt.Sprint(all)
		})
		return holder
	}
	holder := one()
	if s.primary() == fmt.Sprint("n", holder) {
		if out, err := h.d.run("switchover", "--to", fmt.Sprint("n", holder%3+1), "--yes"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	p := probe(ip + ":6379")
	defer p.end()
	var took []time.Duration
	for range roundsOr(1) {
		holder = one()
		h.cut = holder
		at := time.Now()
		if err := h.Isolate(holder); err != nil {
			t.Fatal(err)
		}
		h.d.until(30*time.Second, "it is answered again", func() (bool, string) {
			gap := p.outage(at)
			if gap > 0 {
				took = append(took, gap)
			}
			return gap > 0, fmt.Sprint(h.where(ip))
		})
		if all := h.where(ip); len(all) > 1 {
			t.Logf("hosts %v have the address at once", all)
		}
		h.heal()
		h.d.waitHealthy(60 * time.Second)
	}
	t.Logf("isolation of the holder's host, keepalived with advert_int %s: outage %s", advert, medianWorst(took))
}
