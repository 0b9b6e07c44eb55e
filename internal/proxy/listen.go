// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listener is a port, or a Unix socket, whose descriptor a loop can watch.
type listener interface {
	net.Listener
	syscall.Conn
}

// UnixPrefix marks an address to listen at as the path of a Unix socket.
const UnixPrefix = "unix:"

// SocketMode is what a Unix socket's permissions are by default: its owner's only.
const SocketMode fs.FileMode = 0o700

// listenAt opens a port, or a Unix socket with these permissions.
func listenAt(addr string, mode fs.FileMode) (listener, error) {
	if path, ok := strings.CutPrefix(addr, UnixPrefix); ok {
		return listenUnix(path, mode)
	}
	return listenTCP(addr)
}

const keepAlive = 30 // seconds

// listenTCP opens a port whose connections are without delay and kept alive: accepted sockets inherit that (Linux).
func listenTCP(addr string) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var errs []error
		err := raw.Control(func(fd uintptr) {
			for _, o := range [][3]int{
				{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAlive}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAlive / 3}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
			} {
				errs = append(errs, os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), o[0], o[1], o[2])))
			}
		})
		return errors.Join(append(errs, err)...)
	}}
	l, err := config.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// listenUnix makes a Unix socket. What a process left that did not close its own is taken away; a socket that somebody
// answers at is not.
func listenUnix(path string, mode fs.FileMode) (listener, error) {
	if mode == 0 {
		mode = SocketMode
	}
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var chmod error
		err := raw.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), uint32(mode.Perm())) }) // the file is never more open than that
		return errors.Join(err, os.NewSyscallError("fchmod", chmod))
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode.Perm()); err != nil { // whatever the process's mask is
		_ = l.Close()
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// clearSocket removes a socket that nobody listens at.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is no socket: choose another path, or remove it", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("somebody already listens at %s", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("look whether somebody listens at %s: %w", path, err)
	}
	return os.Remove(path)
}
