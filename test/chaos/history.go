// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// outcome is what a client knows about an operation.
type outcome string

const (
	ok      outcome = "ok"
	refused outcome = "refused" // certainly not executed
	unknown outcome = "unknown" // executed or not, now or at any later time
)

// op is one operation of one client.
type op struct {
	Client  int           `json:"client"`
	Host    int           `json:"host"`
	Kind    string        `json:"kind"` // set, setget, get, incr, sadd, srem, smembers, rpush, lpop, lrange, multi, counts
	Key     string        `json:"key"`
	Arg     string        `json:"arg,omitempty"`
	Out     string        `json:"out,omitempty"`
	Nil     bool          `json:"nil,omitempty"`
	All     []string      `json:"all,omitempty"` // of smembers and lrange
	Start   time.Duration `json:"start"`
	End     time.Duration `json:"end"`
	Outcome outcome       `json:"outcome"`
	Err     string        `json:"err,omitempty"`
	Final   bool          `json:"final,omitempty"` // after everything was healed and well
}

// history collects operations and the timeline of what was done to the hosts.
type history struct {
	begun time.Time

	mu    sync.Mutex
	ops   []op
	lines []string
}

func newHistory() *history { return &history{begun: time.Now()} }

func (h *history) now() time.Duration { return time.Since(h.begun) }

func (h *history) add(ops []op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, ops...)
}

// note prints and keeps a line of the timeline.
func (h *history) note(format string, args ...any) {
	line := fmt.Sprintf("%8.3f s  %s", h.now().Seconds(), strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; "))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, line)
	fmt.Println("  " + line)
}

// write leaves the operations as JSON lines, and the timeline as text.
func (h *history) write(opsFile, timeFile string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	f, err := os.Create(opsFile)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for _, o := range h.ops {
		if err := enc.Encode(o); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return os.WriteFile(timeFile, []byte(strings.Join(h.lines, "\n")+"\n"), 0o600)
}

// refusals are the errors with which a server or a proxy says that it did not execute a command.
var refusals = [...]string{"TRYAGAIN ", "READONLY ", "LOADING ", "MASTERDOWN ", "NOREPLICAS ", "MISCONF ", "EXECABORT ", "BUSY ", "NOAUTH ", "NOPERM ", "OOM ",
	"MOVED ", "ASK ", "CLUSTERDOWN "}

// classify tells what an error says about whether the command ran.
func classify(err error) outcome {
	var dial *net.OpError
	var reply redis.Error
	switch {
	case err == nil || errors.Is(err, redis.Nil):
		return ok
	case errors.As(err, &reply):
		for _, r := range refusals {
			if strings.HasPrefix(err.Error(), r) {
				return refused
			}
		}
		return unknown
	case errors.As(err, &dial) && dial.Op == "dial":
		return refused // no connection, nothing sent
	case strings.HasPrefix(err.Error(), "redis: all sentinels specified in configuration are unreachable"):
		return refused // no address, nothing sent
	}
	return unknown
}
