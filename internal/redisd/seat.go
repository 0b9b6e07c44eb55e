// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Our own small files in a node's directory. None of them is a configuration file.
const (
	seatFile     = "redoubt-seat.json"
	serverFile   = "redoubt-server.json"
	bootFile     = "redoubt-boot.json"
	adminFile    = "redoubt-admin.json"
	promotedFile = "redoubt-promoted.json"
	guardFile    = "redoubt-guard.json"
	secretFile   = "redoubt-secret.json"
	guardLog     = "redoubt-guard.log"
	serverLog    = "server.log"
)

const (
	logBytesMax  = 16 << 20 // a larger server log is set aside at the next start
	scanBytesMax = 64 << 20 // a longer log of one run is not read; the seat then counts as not kept
)

// seatRecord is the identity marker of a data directory: what the newest process was started with. It tells the next
// start whether everything that the seat ever held is still in its append-only file.
type seatRecord struct {
	BootID    string `json:"boot_id"`          // kernel that the newest process was started under
	AOF       bool   `json:"aof"`              // that process had its append-only file on all the time
	LogOffset int64  `json:"log_offset"`       // where that process's part of the server log begins
	Failed    bool   `json:"failed,omitempty"` // a write to it failed, and no rewrite that began later has ended well
	// Lacking: that process began without something that the seat once had, and was neither elected nor given everything by
	// a primary since. It goes from start to start: a second start on what is left has not kept everything either.
	Lacking bool `json:"lacking,omitempty"`
}

// serverRecord is our pid file: enough to find the process again, and only it.
type serverRecord struct {
	PID       int    `json:"pid"`
	Start     uint64 `json:"start"` // field 22 of /proc/PID/stat
	BootID    string `json:"boot_id"`
	Addr      string `json:"addr"`
	Kept      bool   `json:"kept"`    // before the log of this start was read
	Checked   bool   `json:"checked"` // the log was read, and Kept is final
	LogOffset int64  `json:"log_offset"`
	Admin     bool   `json:"admin"`            // it was started with our own user
	Member    bool   `json:"member,omitempty"` // of a cluster
}

// secretRecord is the password of our own user. It is as good as the server's data, which lies beside it.
type secretRecord struct {
	Secret string `json:"secret"`
}

type bootRecord struct {
	RunID string `json:"run_id"`
}

type guardRecord struct {
	PID        int    `json:"pid"`
	Start      uint64 `json:"start"`
	AgentPID   int    `json:"agent_pid"`
	AgentStart uint64 `json:"agent_start"`
	ServerPID  int    `json:"server_pid"`
}

// saveJSON replaces a file atomically. It is not synced: these files matter only while the machine stays up.
func saveJSON(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return replaceFile(dir, name, append(b, '\n'))
}

// replaceFile replaces a file atomically; it is not synced.
func replaceFile(dir, name string, content []byte) error {
	tmp := filepath.Join(dir, name+".tmp")
	if err := os.WriteFile(tmp, content, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// recordBytes is the fixed size of a file that is overwritten in place.
const recordBytes = 512

// overwriteJSON replaces a small file's content in place. Replacing it by rename would make some file systems (ext4) write
// to the disk at once, which costs milliseconds in the middle of a failover. A reader that meets half of it sees an error.
func overwriteJSON(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	if len(b) >= recordBytes {
		return fmt.Errorf("encode %s: %d bytes do not fit into %d", name, len(b), recordBytes)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	padded := append(b, strings.Repeat("\n", recordBytes-len(b))...)
	if _, err := f.WriteAt(padded, 0); err != nil {
		return fmt.Errorf("write %s: %w", name, errors.Join(err, f.Close()))
	}
	return f.Close()
}

// loadJSON reads such a file; v is unchanged when there is none, or when nothing is in it: that is what a loss of power leaves of a
// file that was not synced, and what it said does not matter after that.
func loadJSON(dir, name string, v any) error {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if len(bytes.Trim(b, "\x00")) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s in %s: %w; remove it if this directory is to start afresh", name, dir, err)
	}
	return nil
}

// aofPresent tells whether dir holds an append-only file: a directory of parts (Redis 7.0 and later) or one file.
func aofPresent(dir string) bool {
	for _, pattern := range []string{"appendonlydir/*.manifest", "*.aof"} {
		if m, _ := filepath.Glob(filepath.Join(dir, pattern)); len(m) > 0 {
			return true
		}
	}
	return false
}

func fileSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// eachLogLine calls f for each line of the server log from offset on. It tells whether the whole part was read.
func eachLogLine(path string, offset int64, f func(line string)) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	if size := fileSize(path); size < offset || size-offset > scanBytesMax {
		return false
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return false
	}
	sc := bufio.NewScanner(io.LimitReader(file, scanBytesMax))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		f(sc.Text())
	}
	return sc.Err() == nil
}

// story is what the log of a process that ended tells about its append-only file.
type story struct {
	ready  bool // it had loaded, and may have taken something in
	covers bool // the file holds all that the process held
	anew   bool // and that is a full sync: what the seat had before it does not matter any more
}

// readStory reads it: after a full sync the append-only file on disk is the one from before the sync until a rewrite has
// ended (SAFETY A1). The texts are those of Redis 6.2 to 7.4 and Valkey 7.2 to 8: "Ready to accept connections", and without a port
// "The server is now ready to accept connections at" its socket.
func readStory(path string, offset int64) (s story) {
	covered, synced := true, false
	var w aofWatch
	whole := eachLogLine(path, offset, func(line string) {
		w.read(line)
		switch {
		case strings.Contains(line, "ull resync from"), strings.Contains(line, "sync: Flushing old data"), strings.Contains(line, "sync: Loading DB in memory"):
			covered, synced = false, true
		case strings.Contains(line, "AOF rewrite finished successfully"):
			covered = true
		case strings.Contains(line, "eady to accept connections"):
			s.ready = true
		}
	})
	s.covers = whole && covered && s.ready && !w.suspect
	s.anew = s.covers && synced
	return s
}

// aofTruncated reads the log of a start: aof-load-truncated drops a torn tail with only a note there (SAFETY A9).
func aofTruncated(path string, offset int64) bool {
	truncated := false
	whole := eachLogLine(path, offset, func(line string) {
		if strings.Contains(line, "short read while loading the AOF") || strings.Contains(line, "runcating the AOF") || strings.Contains(line, "AOF loaded anyway") {
			truncated = true
		}
	})
	return truncated || !whole
}
