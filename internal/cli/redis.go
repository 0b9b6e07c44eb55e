// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/salvage"
)

// redisConn is a plain client of a proxy, a server or a Sentinel: one command, one reply. It is not safe for concurrent use.
type redisConn struct {
	nc   net.Conn
	buf  []byte
	db   int
	stop func() bool

	patience time.Duration // for one reply; zero: redisReplyTime
}

// redisReplyTime bounds the wait for one reply: a proxy parks commands for a while when there is no primary.
const redisReplyTime = time.Minute

func dialRedis(ctx context.Context, addr, password string) (*redisConn, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to the proxy: %w", err)
	}
	r := &redisConn{nc: nc, stop: context.AfterFunc(ctx, func() { _ = nc.Close() })}
	if password == "" {
		return r, nil
	}
	if err := r.must("AUTH", password); err != nil {
		r.close()
		return nil, fmt.Errorf("log in at the proxy %s: %w", addr, err)
	}
	return r, nil
}

func (r *redisConn) close() {
	r.stop()
	_ = r.nc.Close()
}

// do sends one command and returns the frame of its reply.
func (r *redisConn) do(args ...string) ([]byte, error) {
	_ = r.nc.SetDeadline(time.Now().Add(cmp.Or(r.patience, redisReplyTime)))
	if _, err := r.nc.Write(resp.AppendCommand(nil, args...)); err != nil {
		return nil, fmt.Errorf("send the command: %w", err)
	}
	var s resp.Scanner
	r.buf = r.buf[:0]
	for {
		n, err := s.Next(r.buf)
		if err != nil || n > 0 {
			return r.buf[:n], err
		}
		chunk := make([]byte, max(4096, s.Missing(len(r.buf))))
		got, err := r.nc.Read(chunk)
		r.buf = append(r.buf, chunk[:got]...)
		if got == 0 && err != nil {
			return nil, fmt.Errorf("read the reply: %w", err)
		}
	}
}

// must is do for commands whose reply is OK.
func (r *redisConn) must(args ...string) error {
	frame, err := r.do(args...)
	if err == nil && frame[0] == '-' {
		err = fmt.Errorf("%s", resp.Text(frame))
	}
	return err
}

func (r *redisConn) selectDB(db int) error {
	if db == r.db {
		return nil
	}
	if err := r.must("SELECT", strconv.Itoa(db)); err != nil {
		return fmt.Errorf("select database %d: %w", db, err)
	}
	r.db = db
	return nil
}

// replay sends a kept command. An error means that its outcome is not known.
func (r *redisConn) replay(c salvage.Command) (reply string, ok bool, err error) {
	if err := r.selectDB(c.DB); err != nil {
		return "", false, err
	}
	frame, err := r.do(c.Args...)
	if err != nil {
		return "", false, err
	}
	return show(frame), frame[0] != '-', nil
}

// show prints a reply on one line.
func show(frame []byte) string {
	switch frame[0] {
	case '+', '-', ':':
		return string(resp.Text(frame))
	case '*', '%', '~':
		return fmt.Sprintf("%d elements", len(resp.Elements(frame, nil)))
	}
	if text := resp.Text(frame); text != nil {
		return brief(string(text))
	}
	return "(nil)"
}

// describe says what a key holds: a string's value, and of anything else how much there is.
func (r *redisConn) describe(db int, key string) (string, error) {
	if err := r.selectDB(db); err != nil {
		return "", err
	}
	frame, err := r.do("TYPE", key)
	if err != nil {
		return "", err
	}
	kind := string(resp.Text(frame))
	sizes := map[string]string{"list": "LLEN", "set": "SCARD", "hash": "HLEN", "zset": "ZCARD", "stream": "XLEN"}
	switch size, known := sizes[kind]; {
	case frame[0] == '-':
		return kind, nil
	case kind == "none":
		return "(nothing)", nil
	case kind == "string":
		return r.beginning(key)
	case known:
		if frame, err = r.do(size, key); err != nil {
			return "", err
		}
		return fmt.Sprintf("a %s of %s", kind, show(frame)), nil
	}
	return "a " + kind, nil
}

// beginning is what a string begins with: it may be long.
func (r *redisConn) beginning(key string) (string, error) {
	frame, err := r.do("STRLEN", key)
	if err != nil {
		return "", err
	}
	length, _ := resp.Int(frame)
	if frame, err = r.do("GETRANGE", key, "0", strconv.Itoa(briefMax-1)); err != nil {
		return "", err
	}
	if length > briefMax {
		return fmt.Sprintf("%s… (%d bytes)", show(frame), length), nil
	}
	return show(frame), nil
}
