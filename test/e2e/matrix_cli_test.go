// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pushSHA is pushScript's digest.
const pushSHA = "e7e6d8ac81eafff3fa143c0e4217e1a76ef17afc"

// cliSession is one redis-cli that is fed through its standard input.
type cliSession struct {
	in    *bufio.Writer
	lines *bufio.Scanner
	n     int
}

// ask sends lines, and collects what is printed until the answer to an ECHO that follows them.
func (s *cliSession) ask(lines ...string) (string, error) {
	s.n++
	token := fmt.Sprint("end-", s.n)
	if _, err := s.in.WriteString(strings.Join(lines, "\n") + "\nECHO " + token + "\n"); err != nil {
		return "", err
	}
	if err := s.in.Flush(); err != nil {
		return "", err
	}
	var got []string
	for s.lines.Scan() {
		if s.lines.Text() == token {
			return strings.Join(got, "\n"), nil
		}
		got = append(got, s.lines.Text())
	}
	return "", errors.New("redis-cli ended")
}

// expect asks, and calls any other answer an error.
func (s *cliSession) expect(answer string, lines ...string) error {
	got, err := s.ask(lines...)
	if err == nil && got != answer {
		err = fmt.Errorf("redis-cli says %q", strings.TrimSpace(got))
	}
	return err
}

func cliOps(t *testing.T, addr, prefix string) goOps {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	file := filepath.Join(t.TempDir(), "push.lua")
	if err := os.WriteFile(file, []byte("-- helper\n"+pushScript), 0o600); err != nil {
		t.Fatal(err)
	}
	command := func(ctx context.Context, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, "redis-cli", append([]string{"-h", host, "-p", port}, args...)...)
	}
	once := func(ctx context.Context, args ...string) (string, error) {
		out, err := command(ctx, args...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := command(ctx)
	in, out := pipes(t, cmd)
	s := &cliSession{in: bufio.NewWriter(in), lines: bufio.NewScanner(out)}
	ops := goOps{
		setup: func(context.Context) error {
			return s.expect("OK", "XGROUP CREATE "+prefix+"stream g 0 MKSTREAM")
		},
		loop: s.loop(prefix),
		pop: func(context.Context) (string, error) {
			v, err := once(ctx, "BLPOP", prefix+"pop", fmt.Sprint(popSeconds))
			key, item, _ := strings.Cut(v, "\n")
			return item, want(key, prefix+"pop", err)
		},
		subscribe: func(_ context.Context, got func(string)) error {
			return cliSubscribe(command(ctx, "SUBSCRIBE", prefix+"channel"), got)
		},
		scan: func(_ context.Context, key func(string)) error {
			v, err := once(context.Background(), "--scan", "--pattern", prefix+"fix:*")
			for k := range strings.Lines(v) {
				key(strings.TrimSpace(k))
			}
			if err != nil {
				err = fmt.Errorf("%w: %s", err, v)
			}
			return err
		},
		close: func() { in.Close(); cancel(); _ = cmd.Wait() },
	}
	ops.loop["script"] = func(ctx context.Context, seq int64) (string, error) {
		v, err := once(ctx, "--eval", file, prefix+"script", ",", fmt.Sprint(seq))
		return v, want(v, seq, err)
	}
	ops.loop["pipeline"] = func(ctx context.Context, seq int64) (string, error) {
		c := command(ctx, "--pipe")
		c.Stdin = bytes.NewBufferString(fmt.Sprintf("RPUSH %spipeline %d\r\nSET %slast %d\r\nINCR %sn\r\n", prefix, seq, prefix, seq, prefix))
		out, err := c.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "errors: 0, replies: 3") {
			return "", fmt.Errorf("%w: %s", errors.Join(err, errors.New("redis-cli --pipe")), out)
		}
		return "", nil
	}
	return ops
}

// TestBenchmarkTool: redis-benchmark, which ends at the first error or broken connection, runs to its end without an event
// and through a switchover. A kill may end it with an error that the documents name; the next run works.
func TestBenchmarkTool(t *testing.T) {
	d := up(t)
	host, port, _ := net.SplitHostPort(d.proxyAddr(0))
	for _, event := range []string{"no event", "kill", "after the kill", "switchover"} {
		s := d.waitHealthy(30 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "redis-benchmark", "-h", host, "-p", port, "-n", "20000", "-c", "20", "-P", "4", "-r", "1000", "-q",
			"-t", "set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,zadd,zpopmin,mset")
		var out lockedText
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		d.until(30*time.Second, "it has begun", func() (bool, string) { return strings.Contains(out.String(), "GET: "), out.String() })
		switch event {
		case "kill":
			signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
		case "switchover":
			if text, err := d.run("switchover", "--yes"); err != nil {
				t.Errorf("%v\n%s", err, text)
			}
		}
		err := cmd.Wait()
		text := strings.ReplaceAll(out.String(), "\r", "\n")
		complete := err == nil && strings.Contains(text, "MSET (10 keys): ")
		documented := strings.Contains(text, "Error from server: OUTCOMEUNKNOWN ") || strings.Contains(text, "Error from server: TRYAGAIN ")
		if !complete && (event != "kill" || !documented) {
			t.Errorf("%s: redis-benchmark: %v\n%s", event, err, text)
		}
		t.Logf("%s: complete %t, ended by a documented error %t", event, complete, documented)
	}
}

func (s *cliSession) loop(prefix string) map[string]func(context.Context, int64) (string, error) {
	return map[string]func(context.Context, int64) (string, error){
		"strings": func(_ context.Context, seq int64) (string, error) {
			return "", s.expect(fmt.Sprintf("OK\n%d", seq), fmt.Sprintf("SET %ss:%d %d", prefix, seq, seq), fmt.Sprintf("GET %ss:%d", prefix, seq))
		},
		"transaction": func(_ context.Context, seq int64) (string, error) {
			if err := s.expect("OK", "WATCH "+prefix+"counter"); err != nil {
				return "", err
			}
			got, err := s.ask("MULTI", "INCR "+prefix+"counter", fmt.Sprintf("RPUSH %stransaction %d", prefix, seq), "EXEC")
			if err != nil {
				return "", err
			}
			rest, ok := strings.CutPrefix(got, "OK\nQUEUED\nQUEUED\n")
			switch lines := strings.Fields(rest); {
			case ok && len(lines) == 0:
				return "", errLostWatch
			case ok && len(lines) == 2:
				return "", nil
			}
			return "", fmt.Errorf("redis-cli says %q", got)
		},
		"evalsha": func(_ context.Context, seq int64) (string, error) {
			if seq == 1 {
				if err := s.expect(pushSHA, `SCRIPT LOAD "`+pushScript+`"`); err != nil {
					return "", err
				}
			}
			return "", s.expect(fmt.Sprint(seq), fmt.Sprintf("EVALSHA %s 1 %sevalsha %d", pushSHA, prefix, seq))
		},
		"blocking": func(_ context.Context, seq int64) (string, error) {
			got, err := s.ask(fmt.Sprintf("LPUSH %squeue %d", prefix, seq), fmt.Sprintf("BRPOPLPUSH %squeue %sblocking %d", prefix, prefix, popSeconds))
			if err != nil || len(strings.Fields(got)) != 2 {
				return "", errors.Join(err, fmt.Errorf("redis-cli says %q", got))
			}
			return got, nil
		},
		"stream": func(_ context.Context, seq int64) (string, error) {
			id, err := s.ask(fmt.Sprintf("XADD %sstream * n %d", prefix, seq))
			if err != nil || strings.Contains(id, " ") {
				return "", errors.Join(err, fmt.Errorf("redis-cli says %q", id))
			}
			got, err := s.ask("XREADGROUP GROUP g c COUNT 100 BLOCK 1000 STREAMS " + prefix + "stream >")
			if err != nil || !strings.Contains(got, id) {
				return "", errors.Join(err, fmt.Errorf("redis-cli says %q", got))
			}
			return id, s.expect("1", "XACK "+prefix+"stream g "+id)
		},
		"publish": func(_ context.Context, seq int64) (string, error) {
			got, err := s.ask(fmt.Sprintf("PUBLISH %schannel %d", prefix, seq))
			if err == nil && len(got) != 1 {
				err = fmt.Errorf("redis-cli says %q", got)
			}
			return got, err
		},
	}
}

func cliSubscribe(cmd *exec.Cmd, got func(string)) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == "message" && lines.Scan() && lines.Scan() {
			got(lines.Text())
		}
	}
	return errors.Join(cmd.Wait(), errors.New("redis-cli ended"))
}
