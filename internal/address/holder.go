// SPDX-License-Identifier: Apache-2.0

package address

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/clock"
)

// announceAt is when, after the address came, the neighbours are told; and then every announceEvery.
func announceAt() []time.Duration {
	return []time.Duration{0, 20 * time.Millisecond, 80 * time.Millisecond, 250 * time.Millisecond, time.Second, 3 * time.Second}
}

const announceEvery = 10 * time.Second

// device is what holds addresses and sends frames.
type device interface {
	Add() error // or renew
	Remove() error
	Announce() error
}

// holder is the process that has the address in its hands. It lets go when it is told to, when the time that it was given is over, and
// when the member is gone. One goroutine uses it.
type holder struct {
	dev   device
	clock clock.Clock
	out   io.Writer
	held  bool
	until time.Duration
	began time.Duration // uptime at which it was added
	told  int           // announcements made
}

// RunHolder is that process: it is started by a Face with Options.Command, and takes its words from standard input. args are those
// that the Face appends.
func RunHolder(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("hold-address", flag.ContinueOnError)
	address := fs.String("address", "", "the address, with the length of its network")
	name := fs.String("interface", "", "the interface")
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("hold an address: %w", err)
	}
	prefix, err := netip.ParsePrefix(*address)
	if err != nil {
		return fmt.Errorf("hold an address: %w", err)
	}
	dev, err := openDevice(*name, prefix)
	if err != nil {
		return fmt.Errorf("hold an address: %w", err)
	}
	defer dev.Close()
	h := &holder{dev: dev, clock: clock.Real{}, out: os.Stdout}
	return h.run(ctx, os.Stdin)
}

func (h *holder) run(ctx context.Context, in io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := make(chan string)
	go func() { // ends with its input, which ends with the member, or with this process
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			select {
			case lines <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	h.held = true // it may be there from an earlier process
	if err := h.release(); err != nil {
		return err
	}
	for {
		t := time.NewTimer(h.next())
		select {
		case <-ctx.Done():
			t.Stop()
			return errors.Join(ctx.Err(), h.release())
		case line, ok := <-lines:
			t.Stop()
			if !ok {
				return h.release()
			}
			h.hear(line)
		case <-t.C:
			h.tick()
		}
	}
}

// hear obeys one line.
func (h *holder) hear(line string) {
	word, text, _ := strings.Cut(line, " ")
	n, err := strconv.ParseInt(text, 10, 64)
	until := time.Duration(n)
	switch {
	case word == wordHold && err == nil && until > h.clock.Uptime():
		h.until = until
		h.take()
	case word == wordHold && err == nil, word == wordRelease:
		h.say(h.release())
	default:
		h.say(fmt.Errorf("what does %q mean?", line))
	}
}

// take adds the address, or renews its time in the kernel.
func (h *holder) take() {
	if err := h.dev.Add(); err != nil {
		h.say(err)
		return
	}
	if h.held {
		return
	}
	h.held, h.began, h.told = true, h.clock.Uptime(), 0
	h.announce()
	fmt.Fprintln(h.out, wordHeld)
}

func (h *holder) announce() {
	h.told++
	h.say(h.dev.Announce())
}

func (h *holder) release() error {
	if !h.held {
		return nil
	}
	if err := h.dev.Remove(); err != nil {
		return err // tried again with the next word, or by the kernel's time
	}
	h.held, h.until = false, 0
	fmt.Fprintln(h.out, wordReleased)
	return nil
}

func (h *holder) say(err error) {
	if err != nil {
		fmt.Fprintf(h.out, "%s %s\n", wordError, strings.ReplaceAll(err.Error(), "\n", " "))
	}
}

// due is when the next announcement is to be made.
func (h *holder) due() time.Duration {
	at := announceAt()
	if h.told < len(at) {
		return h.began + at[h.told]
	}
	return h.began + at[len(at)-1] + time.Duration(h.told-len(at)+1)*announceEvery
}

// next is how long there is nothing to do.
func (h *holder) next() time.Duration {
	if !h.held {
		return time.Hour
	}
	return max(0, min(h.until, h.due())-h.clock.Uptime())
}

func (h *holder) tick() {
	if !h.held {
		return
	}
	now := h.clock.Uptime()
	if now >= h.until {
		h.say(h.release())
		if h.held { // it did not work; not in a loop
			h.until = now + 50*time.Millisecond
		}
		return
	}
	if now >= h.due() {
		h.announce()
	}
}
