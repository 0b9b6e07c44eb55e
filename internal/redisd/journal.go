// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"redoubt/internal/redis"
)

// Journal reads the append-only file: see redis.Node. A frozen server does not write to it. Since Redis 7.0 what came after
// the last rewrite is in files of its own, which a manifest names; before, in the one file, behind a snapshot if that is how
// it was rewritten: such a file does not begin with a command.
func (n *Node) Journal(ctx context.Context, limit int64, w io.Writer) (int64, error) {
	files, err := n.journalFiles(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the append-only file of %s: %w", n.addr, err)
	}
	var size int64
	for _, path := range files {
		info, err := os.Stat(path)
		if err != nil {
			return 0, fmt.Errorf("read the append-only file of %s: %w: %w", n.addr, redis.ErrNoTail, err)
		}
		size += info.Size()
	}
	if size == 0 || size > limit {
		return 0, fmt.Errorf("%w: its append-only file got %d bytes since the last rewrite, and the limit is %d", redis.ErrNoTail, size, limit)
	}
	var done int64
	for _, path := range files {
		got, err := copyFile(ctx, path, limit-done, w)
		if done += got; err != nil {
			return done, fmt.Errorf("read the append-only file of %s: %w", n.addr, err)
		}
	}
	return done, nil
}

func copyFile(ctx context.Context, path string, limit int64, w io.Writer) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var done int64
	for {
		if ctx.Err() != nil {
			return done, ctx.Err()
		}
		got, err := io.CopyN(w, f, min(1<<20, limit-done))
		done += got
		if errors.Is(err, io.EOF) || err == nil && done == limit {
			return done, nil
		}
		if err != nil {
			return done, err
		}
	}
}

// journalFiles names the files that hold what was appended since the last rewrite, in order.
func (n *Node) journalFiles(ctx context.Context) ([]string, error) {
	if n.managed == nil {
		return nil, fmt.Errorf("%w: its append-only file belongs to another supervisor", redis.ErrNoTail)
	}
	c, err := n.ready(ctx)
	if err != nil {
		return nil, err
	}
	reps, err := c.do(ctx, append(configGets([]string{"dir", "appendonly", "appendfilename", "appenddirname"}), n.d.look("replication")...)...)
	if err != nil {
		return nil, err
	}
	cfg, err := mergeConfig(reps[:4])
	if err != nil {
		return nil, err
	}
	if err := firstError(reps[4:]); err != nil {
		return nil, err
	}
	switch {
	case !n.read(reps[4:]).frozen():
		return nil, fmt.Errorf("%w: it is not frozen", redis.ErrRefused)
	case cfg["appendonly"] != "yes":
		return nil, fmt.Errorf("%w: it has no append-only file", redis.ErrNoTail)
	case cfg["appenddirname"] == "": // before Redis 7.0
		return []string{filepath.Join(cfg["dir"], cfg["appendfilename"])}, nil
	}
	dir := filepath.Join(cfg["dir"], cfg["appenddirname"])
	manifest, err := os.ReadFile(filepath.Join(dir, cfg["appendfilename"]+".manifest"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: it has no append-only file at %s", redis.ErrNoTail, dir)
	}
	if err != nil {
		return nil, err
	}
	return increments(dir, string(manifest)), nil
}

// increments reads a manifest: "file appendonly.aof.2.incr.aof seq 2 type i" on each line (aof.c, Redis 7.0).
func increments(dir, manifest string) (files []string) {
	for line := range strings.Lines(manifest) {
		f := strings.Fields(line)
		for i := 0; i+1 < len(f); i += 2 {
			if f[i] == "type" && f[i+1] == "i" && f[0] == "file" {
				files = append(files, filepath.Join(dir, filepath.Base(f[1])))
			}
		}
	}
	return files
}
