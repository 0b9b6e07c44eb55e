// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/test/netns"
)

// several are the hosts that a fault of the network hits: the target, or all of them.
func (r *run) several(f fault, at int) []int {
	if f.dice%4 != 0 {
		return []int{at}
	}
	var all []int
	for i := 1; i <= r.o.hosts; i++ {
		all = append(all, i)
	}
	return all
}

// rough makes the lines of hosts slow, or worse.
func rough(how func(dice int) netns.Rough) deed {
	return func(r *run, ctx context.Context, f fault, at int) (func() error, error) {
		line := how(f.dice / 4)
		line.Seed = uint64(r.seed)
		hosts := r.several(f, at)
		r.history.note("%s: hosts %v: %s", f.kind, hosts, said(line))
		var undos []func() error
		undo := func() error {
			var errs []error
			for _, u := range undos {
				errs = append(errs, u())
			}
			return errors.Join(errs...)
		}
		for _, i := range hosts {
			smooth, err := r.net().Roughen(i, line)
			if err != nil {
				return undo, err // also if another fault has this line already
			}
			undos = append(undos, smooth)
		}
		return undo, nil
	}
}

func said(l netns.Rough) string {
	s := fmt.Sprintf("%s later, up to %s more", l.Delay, l.Jitter)
	if l.Late > 0 {
		s += fmt.Sprintf(", %.0f %% come %s behind their time", 100*l.Late, l.LateBy)
	}
	if l.Lose > 0 {
		s += fmt.Sprintf(", %.0f %% are lost, %.0f %% come twice", 100*l.Lose, 100*l.Twice)
	}
	return s
}

func delayed(dice int) netns.Rough {
	d := time.Duration(5+dice%146) * time.Millisecond
	return netns.Rough{Delay: d, Jitter: d / 4}
}

func reordered(dice int) netns.Rough {
	return netns.Rough{Jitter: time.Millisecond, Late: 0.05 + 0.01*float64(dice%21), LateBy: time.Duration(2+dice%29) * time.Millisecond}
}

func ragged(dice int) netns.Rough {
	l := delayed(dice)
	l.Late, l.LateBy, l.Lose, l.Twice = 0.1, time.Duration(2+dice%29)*time.Millisecond, 0.02+0.01*float64(dice%9), 0.02
	return l
}

const diskSize = "96m"

// mountDisks gives each host a bounded disk: a file system of its own on a loop device, which can be frozen; where there
// are no loop devices, a part of the memory, which cannot.
func (b *base) mountDisks() error {
	images := filepath.Join(b.r.dir, "images")
	if err := os.MkdirAll(images, 0o700); err != nil {
		return err
	}
	if err := command("mount", "-t", "tmpfs", "tmpfs", images); err != nil {
		return err
	}
	b.freezable = true
	for i := 1; i <= b.r.o.hosts; i++ {
		if err := os.MkdirAll(b.disk(i), 0o700); err != nil {
			return err
		}
		image := filepath.Join(images, fmt.Sprintf("%d.img", i))
		err := command("truncate", "-s", diskSize, image)
		if err == nil {
			err = command("mkfs.ext4", "-q", "-m", "0", image)
		}
		if err == nil {
			err = command("mount", "-o", "loop", image, b.disk(i))
		}
		if err == nil {
			continue
		}
		b.freezable = false
		b.r.history.note("disks cannot be frozen here: %v", err)
		if err := command("mount", "-t", "tmpfs", "-o", "size="+diskSize, "tmpfs", b.disk(i)); err != nil {
			return fmt.Errorf("mount a bounded disk: %w", err)
		}
	}
	return nil
}

// freeze stops all writes to a mounted disk, or lets them go on; who writes meanwhile hangs.
func freeze(dir string, on bool) error {
	const fiFreeze, fiThaw = 0xc0045877, 0xc0045878
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	what := uint(fiThaw)
	if on {
		what = fiFreeze
	}
	if err := unix.IoctlSetInt(int(f.Fd()), what, 0); err != nil {
		return fmt.Errorf("freeze %s %v: %w", dir, on, err)
	}
	return nil
}

// diskHang: for a while, whoever writes to the disk of a host hangs.
func diskHang(r *run, ctx context.Context, f fault, at int) (func() error, error) {
	if !r.b.freezable {
		return nil, errors.New("left out: disks cannot be frozen here")
	}
	if err := freeze(r.disk(at), true); err != nil {
		return nil, err
	}
	return func() error { return freeze(r.disk(at), false) }, nil
}

// diskSlow: most of the time, whoever writes hangs for a moment.
func diskSlow(r *run, ctx context.Context, f fault, at int) (func() error, error) {
	if !r.b.freezable {
		return nil, errors.New("left out: disks cannot be frozen here")
	}
	hangs, flows := time.Duration(20+f.dice%180)*time.Millisecond, time.Duration(2+f.dice%19)*time.Millisecond
	r.history.note("disk-slow: host %d: writes hang for %s, pass for %s, again and again", at, hangs, flows)
	ctx, end := context.WithCancel(ctx)
	failed := make(chan error, 1)
	go func() {
		var err error
		for err == nil && ctx.Err() == nil {
			if err = freeze(r.disk(at), true); err == nil {
				wait(ctx, hangs)
				err = freeze(r.disk(at), false)
			}
			wait(ctx, flows)
		}
		failed <- err
	}()
	return func() error { end(); return <-failed }, nil
}

// diskFull fills the disk of a host to its last byte.
func diskFull(r *run, ctx context.Context, f fault, at int) (func() error, error) {
	name := filepath.Join(r.disk(at), "filler")
	file, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err = io.Copy(file, zeros{}); errors.Is(err, syscall.ENOSPC) {
		err = nil
	}
	return func() error { return os.Remove(name) }, err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

//go:embed clock/clock.c
var clockSource []byte

// makeClocks builds what gives servers a wall clock that can be set, if there is a C compiler, and sets all clocks right.
func (b *base) makeClocks() error {
	source, library := filepath.Join(b.r.dir, "clock.c"), filepath.Join(b.r.dir, "clock.so")
	if err := os.WriteFile(source, clockSource, 0o600); err != nil {
		return err
	}
	if err := command("cc", "-shared", "-fPIC", "-O1", "-o", library, source); err != nil {
		b.r.history.note("clocks cannot be set here: %v", err)
		return nil
	}
	b.clocks = library
	for i := 1; i <= b.r.o.hosts; i++ {
		if err := os.WriteFile(b.clockFile(i), make([]byte, 8), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// clockFile says how far the clock of the servers in a host is off.
func (b *base) clockFile(i int) string { return filepath.Join(b.r.dir, fmt.Sprintf("clock-%d", i)) }

// clockEnv gives a program and its children a wall clock that can be set. It works for servers; a member is one static
// program, and measures time by a clock that nobody can set.
func (b *base) clockEnv(i int) []string {
	if b.clocks == "" {
		return os.Environ()
	}
	return append(os.Environ(), "LD_PRELOAD="+b.clocks, "CHAOS_CLOCK="+b.clockFile(i))
}

// setClock sets the wall clock of the servers in a host off by some seconds. The file is mapped by them.
func (b *base) setClock(i, seconds int) error {
	f, err := os.OpenFile(b.clockFile(i), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(binary.NativeEndian.AppendUint64(nil, uint64(seconds)))
	return errors.Join(err, f.Close())
}

// clockStep sets the servers' wall clock of a host forward or back, by a second up to ten minutes, and later right again.
func clockStep(r *run, ctx context.Context, f fault, at int) (func() error, error) {
	if r.b.clocks == "" {
		return nil, errors.New("left out: clocks cannot be set here")
	}
	by := []int{1, 5, 30, 600}[f.dice/2%4]
	if f.dice%2 == 0 {
		by = -by
	}
	r.history.note("clock: the server of host %d is %+d s off", at, by)
	return func() error { return r.b.setClock(at, 0) }, r.b.setClock(at, by)
}

// command runs one of the system's tools.
func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
