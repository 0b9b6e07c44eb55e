// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// settle is the pause between two measurements: connections are closed, buffers given back.
const settle = 150 * time.Millisecond

// measure drives one workload: for each stack a short run that finds out how many requests a round takes, then the
// rounds. In each round every stack has its turn, and each round begins with another one. A stack that fails is noted
// and left out of the rest of the workload.
func measure(ctx context.Context, r *rig, w workload, res *results) error {
	requests := map[*stack]int{}
	for _, s := range r.stacks {
		n, err := calibrate(ctx, r, s, w, res.seconds)
		if err != nil && ctx.Err() == nil {
			res.fail(w, s, err)
		}
		if err == nil {
			requests[s] = n
		}
	}
	for round := range res.rounds {
		for i := range r.stacks {
			s := r.stacks[(i+round)%len(r.stacks)]
			if requests[s] == 0 {
				continue
			}
			got, err := sampleOf(ctx, r, s, w, requests[s])
			if err != nil && ctx.Err() == nil {
				res.fail(w, s, err)
				delete(requests, s)
			}
			if err == nil {
				res.add(w, s, got)
			}
			if err := pause(ctx, settle); err != nil {
				return err
			}
		}
		fmt.Fprintf(os.Stderr, "%s: round %d of %d\n", w.title, round+1, res.rounds)
	}
	fmt.Fprint(os.Stderr, brief(res, w))
	return ctx.Err()
}

// calibrate finds the number of requests that takes a stack so many seconds.
func calibrate(ctx context.Context, r *rig, s *stack, w workload, seconds float64) (int, error) {
	if w.rate > 0 {
		return int(float64(w.rate) * seconds), nil
	}
	least := w.clients * w.pipeline
	n := max(1000, 20*least)
	for _, length := range []float64{seconds / 8, seconds} {
		rate, err := closedLoop(ctx, r.generator, s.addr, w, n)
		if err != nil {
			return 0, err
		}
		n = max(least, int(rate*length))
	}
	return n, nil
}

// sampleOf is one stack's turn in one round.
func sampleOf(ctx context.Context, r *rig, s *stack, w workload, n int) (sample, error) {
	before, err := s.look(ctx)
	if err != nil {
		return sample{}, err
	}
	var got sample
	if w.rate > 0 {
		got, err = fixedRate(s.addr, w, n)
	} else {
		got.rate, err = closedLoop(ctx, r.generator, s.addr, w, n)
	}
	if err != nil {
		return sample{}, err
	}
	after, err := s.look(ctx)
	if err != nil {
		return sample{}, err
	}
	got.proxyCPU = micros(after.proxyCPU-before.proxyCPU) / float64(n)
	got.serverCPU = micros(after.serverCPU-before.serverCPU) / float64(n)
	return got, after.verify(before, w, n)
}

// state is what a stack and its server have done so far.
type state struct {
	proxyCPU, serverCPU    time.Duration
	commands, hits, misses int64
}

func (s *stack) look(ctx context.Context) (state, error) {
	var st state
	var err error
	if s.proxy != nil {
		if s.proxy.ended() {
			return st, fmt.Errorf("%w: %s", errEnded, s.proxy.lastWords())
		}
		if st.proxyCPU, err = cpuOf(s.proxy.cmd.Process.Pid); err != nil {
			return st, err
		}
	}
	for _, server := range s.servers {
		cpu, err := cpuOf(server.pid)
		if err != nil {
			return st, err
		}
		info, err := server.info(ctx)
		if err != nil {
			return st, err
		}
		st.serverCPU += cpu
		st.commands += counter(info, "total_commands_processed")
		st.hits += counter(info, "keyspace_hits")
		st.misses += counter(info, "keyspace_misses")
	}
	return st, nil
}

// verify makes sure that the server did the work, and found what was asked for.
func (s state) verify(before state, w workload, n int) error {
	switch {
	case s.misses > before.misses:
		return fmt.Errorf("%d keys were not found", s.misses-before.misses)
	case s.hits-before.hits < int64(w.reads*n):
		return fmt.Errorf("%d keys were read instead of %d", s.hits-before.hits, w.reads*n)
	case w.reads == 0 && s.commands-before.commands < int64(n):
		return fmt.Errorf("the server had %d commands instead of %d", s.commands-before.commands, n)
	}
	return nil
}

// closedLoop lets the generator send n requests and returns requests per second.
func closedLoop(ctx context.Context, generator, addr string, w workload, n int) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	args := []string{"-h", "127.0.0.1", "-p", portOf(addr), "-c", strconv.Itoa(w.clients), "-P", strconv.Itoa(w.pipeline), "-n", strconv.Itoa(n),
		"-r", strconv.Itoa(keys), "-e", "--csv"}
	cmd := exec.CommandContext(ctx, generator, append(args, w.command...)...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("generator: %w: %s %s", errors.Join(err, ctx.Err()), tail(out.String()), tail(complaints.String()))
	}
	return parseCSV(out.String())
}

// parseCSV reads requests per second from the generator's two lines of CSV. With -e it prints errors that the clients
// were answered with among them.
func parseCSV(out string) (float64, error) {
	if at := strings.Index(out, "Error from server"); at >= 0 {
		line, _, _ := strings.Cut(out[at:], "\n")
		return 0, errors.New(strings.TrimSpace(line))
	}
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil {
		return 0, fmt.Errorf("read the generator's output: %w", err)
	}
	if len(rows) != 2 || len(rows[0]) != len(rows[1]) {
		return 0, fmt.Errorf("read the generator's output: not a header and a line: %s", tail(out))
	}
	at := slices.Index(rows[0], "rps")
	if at < 0 {
		return 0, errors.New("read the generator's output: there is no column rps; it is too old (before 6.2)")
	}
	rate, err := strconv.ParseFloat(rows[1][at], 64)
	if err != nil || rate <= 0 {
		return 0, fmt.Errorf("read the generator's output: %q requests per second: %w", rows[1][at], errors.Join(err, errors.New("not a rate")))
	}
	return rate, nil
}

// fixedRate sends n requests at the workload's rate. What the first tenth of a second saw is not counted.
func fixedRate(addr string, w workload, n int) (sample, error) {
	all, err := runOpenLoop(addr, w.clients, w.rate, n, probeRequest(), probeReply())
	if err != nil {
		return sample{}, err
	}
	counted := slices.Clone(all[min(w.rate/10, n/2):])
	slices.Sort(counted)
	return sample{rate: float64(w.rate), p50: micros(quantile(counted, 0.5)), p99: micros(quantile(counted, 0.99))}, nil
}

// quantile of sorted values, by nearest rank.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func tail(s string) string { return strings.TrimSpace(s[max(0, len(s)-500):]) }

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
