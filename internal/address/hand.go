// SPDX-License-Identifier: Apache-2.0

package address

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"redoubt/internal/clock"
)

// The words between a member and the process that holds its address. The member says "hold UPTIME" again and again, or "release"; the
// other says "held" and "released" when that has changed, and "error TEXT".
const (
	wordHold     = "hold"
	wordRelease  = "release"
	wordHeld     = "held"
	wordReleased = "released"
	wordError    = "error"
)

const (
	stopHand  = time.Second            // for the process to let go and end; then it is killed, and the address with its time
	startHand = 10 * time.Second       // for it to say that it has cleaned up
	saidOnce  = 500 * time.Millisecond // how often the same wish is said
)

// hand is the process that holds the address, as its member sees it. hold is for one goroutine.
type hand struct {
	argv  []string
	log   *slog.Logger
	clock clock.Clock

	cmd   *exec.Cmd
	in    io.WriteCloser
	ended chan struct{} // closed when it has been waited for
	up    time.Duration // uptime at which it was started

	mu   sync.Mutex // guards here
	here bool       // it may have the address: said so, or was told to hold and has not said the contrary

	said   time.Duration // the latest wish
	saidAt time.Duration
}

func newHand(o Options) *hand {
	argv := append(append([]string{}, o.Command...), "--address", o.Address.String(), "--interface", o.Interface)
	return &hand{argv: argv, log: o.Log, clock: o.Clock}
}

// start starts the process, which begins by letting go of what an earlier one may have left. News are told to news.
func (h *hand) start(news chan<- struct{}) error {
	h.up = h.clock.Uptime()
	h.cmd = exec.Command(h.argv[0], h.argv[1:]...)
	h.cmd.Stderr = os.Stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is not for it
	in, err := h.cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start what holds the address: %w", err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start what holds the address: %w", err)
	}
	if err := h.cmd.Start(); err != nil {
		return fmt.Errorf("start what holds the address: %w", err)
	}
	h.in, h.ended, h.here, h.said = in, make(chan struct{}), true, -1
	ready := make(chan struct{}, 1)
	go func() {
		defer close(h.ended)
		h.listen(out, ready, news)
		if err := h.cmd.Wait(); err != nil {
			h.log.Warn("what holds the address has ended", "err", err)
		}
		nudge(news)
	}()
	t := time.NewTimer(startHand)
	defer t.Stop()
	select {
	case <-ready:
		return nil
	case <-h.ended:
		return fmt.Errorf("what holds the address has ended: see the log; it needs the right to change addresses (CAP_NET_ADMIN, CAP_NET_RAW)")
	case <-t.C:
		h.stop()
		return errors.New("what holds the address does not answer")
	}
}

func (h *hand) listen(out io.Reader, ready chan<- struct{}, news chan<- struct{}) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		word, text, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case wordHeld, wordReleased:
			h.mu.Lock()
			h.here = word == wordHeld
			h.mu.Unlock()
			nudge(ready)
			nudge(news)
		case wordError:
			h.log.Error("the floating address", "err", text)
		}
	}
}

// hold says until when the address may be held (uptime), zero: it may not, and reports whether it may be here still. An error means
// that the process is gone; the address is, too, unless it was killed, and then it ends with its time in the kernel.
func (h *hand) hold(until time.Duration) (here bool, err error) {
	select {
	case <-h.ended:
		return false, errors.New("what holds the floating address has ended")
	default:
	}
	h.mu.Lock()
	here = h.here
	h.mu.Unlock()
	now := h.clock.Uptime()
	if until == h.said && now-h.saidAt < saidOnce {
		return here, nil
	}
	line := wordRelease + "\n"
	if until > 0 {
		line = wordHold + " " + strconv.FormatInt(int64(until), 10) + "\n"
	}
	if _, err := io.WriteString(h.in, line); err != nil {
		return here, fmt.Errorf("tell what holds the floating address: %w", err)
	}
	h.said, h.saidAt = until, now
	return here, nil
}

// lived is how long ago the latest process was started.
func (h *hand) lived() time.Duration { return h.clock.Uptime() - h.up }

// stop has the process let go and end.
func (h *hand) stop() {
	_ = h.in.Close()
	t := time.NewTimer(stopHand)
	defer t.Stop()
	select {
	case <-h.ended:
		return
	case <-t.C:
	}
	_ = h.cmd.Process.Kill()
	<-h.ended
}
