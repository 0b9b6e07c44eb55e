// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// hatchFormat is the version of what passes between two processes of one member. The older one names its version; the newer
// one refuses what it does not know.
// A member with several shards has a format of its own: a program that does not know it refuses.
const (
	hatchFormat = 1
	hatchShards = 2
)

// HatchEnv names the descriptor of the hatch in the environment of a process that is to take a member over.
const HatchEnv = "REDOUBT_HANDOVER_FD"

const (
	hatchFrameMax = 8 << 20
	hatchFilesMax = 64
	hatchPatience = 5 * time.Second // for the other process to take a frame
)

// what is the kind of a frame.
type what byte

const (
	whatOffer  what = 'o' // old: who I am
	whatReady  what = 'r' // new: my configuration is sound
	whatRefuse what = 'x' // new: it is not, or I do not understand you
	whatGo     what = 'g' // old: take over; with the lock and the ports
	whatUp     what = 'u' // new: store, agent and faces run; give me the clients
	whatScript what = 'l' // old: a script that clients use
	whatClient what = 's' // old: a client, with its sockets
	whatLore   what = 'm' // old, several shards: a script or functions that clients use
	whatFront  what = 'c' // old, several shards: a client, with its sockets
	whatDone   what = 'd' // old: no more clients come
	whatAsk    what = 'q' // old: read the store for me
	whatAnswer what = 'a' // new
)

// frame is one message of the hatch. Whoever receives it closes the files.
type frame struct {
	what  what
	body  []byte
	files []int
}

func (f frame) close() {
	for _, fd := range f.files {
		_ = unix.Close(fd)
	}
}

func (f frame) decode(v any) error {
	if err := json.Unmarshal(f.body, v); err != nil {
		return fmt.Errorf("read a hand-over message (%c): %w", f.what, err)
	}
	return nil
}

// hatch is the connection between the old and the new process of a member: frames in both directions, with descriptors.
// One goroutine receives; send is safe for concurrent use.
type hatch struct {
	c  *net.UnixConn
	mu sync.Mutex // of writing
}

// newHatch makes a hatch, and the end for a child process.
func newHatch() (*hatch, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	h, err := hatchOf(os.NewFile(uintptr(pair[0]), "hatch"))
	if err != nil {
		_ = unix.Close(pair[1])
		return nil, nil, err
	}
	return h, os.NewFile(uintptr(pair[1]), "hatch"), nil
}

func hatchOf(f *os.File) (*hatch, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use the socket to the other process: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("use the socket to the other process: it is a %T", c)
	}
	return &hatch{c: u}, nil
}

func (h *hatch) close() { _ = h.c.Close() }

// send writes one frame; the descriptors are copied, and stay the caller's.
func (h *hatch) send(w what, v any, files ...int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode a hand-over message (%c): %w", w, err)
	}
	if len(body) > hatchFrameMax || len(files) > hatchFilesMax {
		return fmt.Errorf("a hand-over message (%c) of %d bytes and %d files is too large", w, len(body), len(files))
	}
	head := binary.LittleEndian.AppendUint32([]byte{byte(w), byte(len(files))}, uint32(len(body)))
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.c.SetWriteDeadline(time.Now().Add(hatchPatience)); err != nil {
		return fmt.Errorf("tell the other process: %w", err)
	}
	if _, _, err := h.c.WriteMsgUnix(head, rights, nil); err != nil {
		return fmt.Errorf("tell the other process: %w", err)
	}
	if _, err := h.c.Write(body); err != nil {
		return fmt.Errorf("tell the other process: %w", err)
	}
	return nil
}

const hatchHead = 6

// receive returns the next frame; io.EOF when the other process has ended.
func (h *hatch) receive() (frame, error) {
	var f frame
	head, oob := make([]byte, hatchHead), make([]byte, unix.CmsgSpace(4*hatchFilesMax))
	for got := 0; got < hatchHead; {
		n, on, _, _, err := h.c.ReadMsgUnix(head[got:], oob)
		if on > 0 {
			f.files = append(f.files, rightsIn(oob[:on])...)
		}
		if n == 0 && err == nil {
			err = io.EOF
		}
		if err != nil {
			f.close()
			return frame{}, err
		}
		got += n
	}
	size := binary.LittleEndian.Uint32(head[2:])
	f.what = what(head[0])
	if size > hatchFrameMax || int(head[1]) != len(f.files) {
		f.close()
		return frame{}, fmt.Errorf("a hand-over message (%c) of %d bytes with %d of %d files", f.what, size, len(f.files), head[1])
	}
	f.body = make([]byte, size)
	if _, err := io.ReadFull(h.c, f.body); err != nil {
		f.close()
		return frame{}, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return f, nil
}

// fdOf returns a file's descriptor. File.Fd would make a socket blocking, for the other process as well.
func fdOf(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("hand over %s: %w", f.Name(), err)
	}
	fd := -1
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		return -1, fmt.Errorf("hand over %s: %w", f.Name(), err)
	}
	return fd, nil
}

func rightsIn(oob []byte) []int {
	var all []int
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			all = append(all, fds...)
		}
	}
	return all
}
