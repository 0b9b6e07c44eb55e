// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// modeDefault is that of a target which did not exist.
const modeDefault fs.FileMode = 0o644

// owed is the file that is there while the target was written and not loaded.
func (k *keeper) owed() string { return filepath.Join(k.o.Dir, hashOf([]byte(k.Target))[:16]+".owed") }

// inPlace reports whether the target has this text, and was loaded with it.
func (k *keeper) inPlace(text []byte) bool {
	if _, err := os.Stat(k.owed()); err == nil {
		return false
	}
	b, err := os.ReadFile(k.Target)
	return err == nil && bytes.Equal(b, text)
}

// apply writes the text beside the target, has it checked, puts it in place and has it loaded.
func (k *keeper) apply(ctx context.Context, text []byte) error {
	target := k.Target
	if real, err := filepath.EvalSymlinks(target); err == nil {
		target = real // the file is replaced, not the link to it
	}
	if b, err := os.ReadFile(target); err != nil || !bytes.Equal(b, text) {
		if err := k.replace(ctx, target, text); err != nil {
			return err
		}
	}
	if err := k.command(ctx, "reload", k.Reload, target); err != nil {
		return err
	}
	if err := os.Remove(k.owed()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note that %s was loaded: %w", target, err)
	}
	return nil
}

// replace puts the text in place of the target, if the check accepts it.
func (k *keeper) replace(ctx context.Context, target string, text []byte) error {
	temp := filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+".redoubt") // one name: nothing piles up
	if err := k.write(temp, target, text); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", temp, err), remove(temp))
	}
	if err := k.command(ctx, "check", k.Check, temp); err != nil {
		return errors.Join(err, remove(temp))
	}
	if err := os.WriteFile(k.owed(), []byte(k.Target+"\n"), 0o600); err != nil {
		return errors.Join(fmt.Errorf("note that %s is to be loaded: %w", target, err), remove(temp))
	}
	if err := os.Rename(temp, target); err != nil {
		return errors.Join(fmt.Errorf("put the new text in place: %w", err), remove(temp))
	}
	if err := syncDir(filepath.Dir(target)); err != nil {
		return fmt.Errorf("put the new text in place: %w", err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// write writes a file with the owner and mode of another, and makes sure that it is on the disk.
func (k *keeper) write(path, like string, text []byte) (err error) {
	if err := remove(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(text); err != nil {
		return err
	}
	mode := modeDefault
	if old, err := os.Stat(like); err == nil {
		mode = old.Mode().Perm()
		if s, ok := old.Sys().(*syscall.Stat_t); ok && (int(s.Uid) != os.Geteuid() || int(s.Gid) != os.Getegid()) {
			if err := f.Chown(int(s.Uid), int(s.Gid)); err != nil {
				return fmt.Errorf("keep the owner: %w", err)
			}
		}
	}
	if k.Mode != 0 {
		mode = k.Mode
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// command runs a shell command about a file, in a process group of its own, which is killed when the time is over or ctx ends.
func (k *keeper) command(ctx context.Context, what, line, file string) error {
	if line == "" {
		return nil
	}
	// A file and no pipe: a daemon that the command starts may keep it open without anybody waiting for it.
	out, err := os.CreateTemp(k.o.Dir, "output-*")
	if err != nil {
		return fmt.Errorf("%s of %s: %w", what, k.Target, err)
	}
	defer out.Close()
	if err := os.Remove(out.Name()); err != nil {
		return fmt.Errorf("%s of %s: %w", what, k.Target, err)
	}
	limited, cancel := context.WithTimeout(ctx, k.Timeout)
	defer cancel()
	cmd := exec.CommandContext(limited, "/bin/sh", "-c", line)
	cmd.Env = append(os.Environ(), "FILE="+file)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	began := time.Now()
	err = cmd.Run()
	said := strings.TrimSpace(tail(out))
	k.o.Log.Debug("ran a command", "what", what, "file", file, "took", time.Since(began), "err", err, "output", said)
	switch {
	case err == nil:
		return nil
	case limited.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("the %s command did not end within %s: %s", what, k.Timeout, said)
	}
	return fmt.Errorf("the %s command: %w: %s", what, err, said)
}

// tail is the end of what was written.
func tail(f *os.File) string {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	b := make([]byte, min(size, outputMax))
	n, _ := f.ReadAt(b, max(0, size-outputMax))
	return string(b[:n])
}
