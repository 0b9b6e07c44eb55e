// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ending is why a process ended, as far as its log and the kernel tell.
type ending struct {
	pid        int
	line       string // the telling line of its log, else the last one
	unreadable bool   // it ended while loading, because it cannot read its append-only file
}

// lineMax bounds what is repeated of a log.
const lineMax = 400

// telling are words of the lines in which a server says why it ends. What follows them may be a long report.
func telling() []string {
	return []string{"Guru Meditation", "ASSERTION FAILED", "crashed by signal", "Fatal error", "FATAL CONFIG FILE ERROR", "Out Of Memory", "reading the append only file", "Exiting", "aborting", "Aborting"}
}

// unreadableWords are those of an append-only file that no start will be able to read. Redis 6.2 to 8, Valkey 7.2 to 8. Not
// meant are those that name a version, a module or a missing right: there the file is sound.
func unreadableWords() []string {
	return []string{"Bad file format reading the append only file", "Unexpected end of file reading the append only file", "FATAL AOF MANIFEST FILE ERROR", "the truncated file is not the last file"}
}

func containsAny(line string, words []string) bool {
	for _, w := range words {
		if strings.Contains(line, w) {
			return true
		}
	}
	return false
}

// endingBytes is how much of the end of a log is read: the report of a crash is shorter. A failover may be waiting.
const endingBytes = 256 << 10

// readEnding reads the end of the log of a process that began to write at offset.
func readEnding(path string, offset int64) ending {
	offset = max(offset, fileSize(path)-endingBytes)
	var e ending
	last, ready := "", false
	eachLogLine(path, offset, func(line string) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			return
		case strings.Contains(line, "eady to accept connections"):
			ready = true
		case containsAny(line, unreadableWords()):
			e.unreadable, e.line = true, line
		case containsAny(line, telling()) && !e.unreadable:
			e.line = line
		}
		last = line
	})
	switch {
	case e.line == "":
		e.line = last
	case strings.Contains(e.line, "FILE ERROR") && last != e.line: // the reason stands in the lines after it
		e.line += " " + last
	}
	e.unreadable = e.unreadable && !ready
	if len(e.line) > lineMax {
		e.line = e.line[:lineMax] + " …"
	}
	return e
}

// ending tells why a process that exited did so. The log is read once.
func (m *managed) ending(p *process) ending {
	m.mu.Lock()
	e, offset := m.end, m.srv.LogOffset
	m.mu.Unlock()
	if e.pid == p.pid {
		return e
	}
	e = readEnding(filepath.Join(m.o.Dir, serverLog), offset)
	e.pid = p.pid
	m.mu.Lock()
	m.end = e
	m.mu.Unlock()
	return e
}

// why is one sentence about the end of a process.
func (m *managed) why(p *process) string {
	e := m.ending(p)
	m.mu.Lock()
	s := m.waited
	m.mu.Unlock()
	text := "the process exited"
	switch {
	case s.pid != p.pid:
	case s.status.Signaled():
		text += fmt.Sprintf(" by signal %d (%s)", int(s.status.Signal()), s.status.Signal())
	case s.status.Exited():
		text += fmt.Sprintf(" with status %d", s.status.ExitStatus())
	}
	if e.line != "" {
		text += "; its log says: " + e.line
	}
	return text
}

// waited is what the kernel told about the end of a child.
type waited struct {
	pid    int
	status unix.WaitStatus
}
