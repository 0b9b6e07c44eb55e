// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLog passes the log of package raft on. What it calls an error is a peer out of reach, which is a warning here; its
// information is for those who debug Raft.
type raftLog struct {
	to   *slog.Logger
	name string
	args []any
}

var _ hclog.Logger = raftLog{}

func (l raftLog) level(level hclog.Level) slog.Level {
	if level >= hclog.Warn {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// Log implements hclog.Logger, and so do the methods below.
func (l raftLog) Log(level hclog.Level, msg string, args ...any) {
	if l.IsAt(level) {
		l.to.Log(context.Background(), l.level(level), "raft: "+msg, args...)
	}
}

// IsAt reports whether a line of that level would be written.
func (l raftLog) IsAt(level hclog.Level) bool {
	return level > hclog.Debug && l.to.Enabled(context.Background(), l.level(level))
}

func (l raftLog) Trace(string, ...any)          {}
func (l raftLog) Debug(string, ...any)          {}
func (l raftLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l raftLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l raftLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }
func (l raftLog) IsTrace() bool                 { return false }
func (l raftLog) IsDebug() bool                 { return false }
func (l raftLog) IsInfo() bool                  { return l.IsAt(hclog.Info) }
func (l raftLog) IsWarn() bool                  { return l.IsAt(hclog.Warn) }
func (l raftLog) IsError() bool                 { return l.IsAt(hclog.Error) }
func (l raftLog) ImpliedArgs() []any            { return l.args }
func (l raftLog) Name() string                  { return l.name }
func (l raftLog) SetLevel(hclog.Level)          {}
func (l raftLog) GetLevel() hclog.Level         { return hclog.Info }

func (l raftLog) With(args ...any) hclog.Logger {
	return raftLog{l.to.With(args...), l.name, append(append([]any(nil), l.args...), args...)}
}

func (l raftLog) Named(name string) hclog.Logger      { return raftLog{l.to, l.name + name, l.args} }
func (l raftLog) ResetNamed(name string) hclog.Logger { return raftLog{l.to, name, l.args} }

func (l raftLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.to.Handler(), slog.LevelWarn)
}

func (l raftLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return io.Discard }
