// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const startedFile = "started"

// incarnation numbers the agent's start: by the wall clock, but always above the start before it. The controller takes what
// has a lower number for late news (SAFETY A6), and the clock may have been set back since. The number counts even if it
// could not be written, which matters to the next start alone.
func incarnation(dir string, now time.Time) (int64, error) {
	path, start := filepath.Join(dir, startedFile), now.UnixNano()
	if b, err := os.ReadFile(path); err == nil {
		if last, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
			start = max(start, last+1)
		}
	}
	if err := os.WriteFile(path+".tmp", strconv.AppendInt(nil, start, 10), 0o600); err != nil {
		return start, err
	}
	return start, os.Rename(path+".tmp", path)
}
