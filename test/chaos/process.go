// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// restartAfter is how soon the supervisor starts again what ended, as systemd's RestartSec would.
const restartAfter = 500 * time.Millisecond

// process is a program in a host that the harness supervises, as systemd would: it is started again when it ends,
// unless it is held down.
type process struct {
	name    string
	log     string
	command func() *exec.Cmd
	h       *history
	done    chan struct{}

	mu   sync.Mutex
	pid  int // 0: not running
	held bool
}

// supervise starts a process and keeps it running until ctx ends; then it is told to stop, and killed if it does not.
func supervise(ctx context.Context, h *history, name, log string, command func() *exec.Cmd) *process {
	p := &process{name: name, log: log, command: command, h: h, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		for ctx.Err() == nil {
			if p.isHeld() {
				wait(ctx, 20*time.Millisecond)
				continue
			}
			p.once(ctx)
			wait(ctx, restartAfter)
		}
	}()
	return p
}

func (p *process) once(ctx context.Context) {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.h.note("cannot log for %s: %v", p.name, err)
		return
	}
	defer log.Close()
	cmd := p.command()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for the harness
	if err := cmd.Start(); err != nil {
		p.h.note("cannot start %s: %v", p.name, err)
		return
	}
	p.set(cmd.Process.Pid)
	ended := make(chan struct{})
	go func() { defer close(ended); err = cmd.Wait() }()
	select {
	case <-ended:
		p.set(0)
		if !p.isHeld() && ctx.Err() == nil {
			p.h.note("%s ended by itself: %v", p.name, err)
		}
	case <-ctx.Done():
		_ = cmd.Process.Signal(syscall.SIGINT)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		p.set(0)
	}
}

func (p *process) set(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pid
}

func (p *process) isHeld() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// hold keeps the process down once it ended, or lets it be started again.
func (p *process) hold(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = down
}

// id is the process id, 0 if it does not run.
func (p *process) id() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}
