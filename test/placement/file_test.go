// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"redoubt/internal/config"
)

// TestTheReaderAcceptsWhatNutcrackerAccepts: each setting with each of many values, judged by both.
func TestTheReaderAcceptsWhatNutcrackerAccepts(t *testing.T) {
	path, err := exec.LookPath("nutcracker")
	if err != nil {
		t.Skip("nutcracker is not installed")
	}
	values := []string{"true", "false", "\"true\"", "True", "yes", "0", "1", "00", "010", "-1", "+1", "1.5", "0x10", "1_000", "2147483647", "x", "\"{}\"", "$$", "\"{\"", "äö", "ä",
		"md5", "fnv1a_64", "crc16", "modula", "random", "ketama", "127.0.0.1:1", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:01", "/tmp/s", "/tmp/s 0600", "/tmp/s 888", "/tmp/s 1000", "\"\""}
	keys := []string{"listen", "hash", "hash_tag", "distribution", "timeout", "backlog", "client_connections", "redis", "redis_auth", "redis_db", "preconnect", "tcpkeepalive",
		"auto_eject_hosts", "server_connections", "server_retry_timeout", "server_failure_limit", "no_such"}
	var files []string
	for _, key := range keys {
		for _, value := range values {
			listen, redis := "  listen: 127.0.0.1:9\n", "  redis: true\n"
			switch key {
			case "listen":
				listen = ""
			case "redis":
				redis = ""
			}
			files = append(files, fmt.Sprintf("p:\n%s%s  %s: %s\n  servers:\n  - 127.0.0.1:6379:1\n", listen, redis, key, value))
		}
	}
	for _, server := range []string{"h:1:1", "h:1:1 n", "h:1:1 n m", "h:1:0", "h:0:1", "h:1", "h", "::1:6379:5", "/s:1", "/s:1 n", "/s", "/a:b:1", "h:1:1:n", "\"h:1:1 \"", "h:65536:1", "h:01:01",
		"h:1:x", "h:x:1", "127.0.0.1:6379:9", "b:1:1 127.0.0.1:6379", "h:11211:1", "h:1:2147483647"} {
		files = append(files, "p:\n  listen: 127.0.0.1:9\n  redis: true\n  servers:\n  - 127.0.0.1:6379:1\n  - "+server+"\n")
	}
	const whole = "  listen: 127.0.0.1:9\n  redis: true\n  servers:\n  - 127.0.0.1:6379:1\n"
	files = append(files, "p:\n"+whole, "p:\n"+whole+"q:\n"+whole, "p:\n"+whole+"p:\n"+strings.Replace(whole, ":9", ":8", 1), "p:\n"+whole+"  redis: true\n",
		"p:\n  redis: true\n", "p:\n  listen: 127.0.0.1:9\n", "p:\n  listen: 127.0.0.1:9\n  redis_auth: x\n  servers:\n  - h:1:1\n", "p: 1\n", "- p\n", "p:\n"+whole+"  timeout:\n")
	accepted, dir := 0, t.TempDir()
	stricter := regexp.MustCompile(`/tmp/s 888|"h:1:1 "`) // it takes the one for no permissions, the other for an empty name
	for i, text := range files {
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		theirs := exec.Command(path, "-t", "-c", file, "-o", filepath.Join(dir, "log")).Run()
		_, ours := config.ParseTwemproxy([]byte(text), "f")
		if (theirs == nil) != (ours == nil) && !(ours != nil && stricter.MatchString(text)) {
			t.Errorf("nutcracker: %v, we: %v\n%s", theirs, ours, text)
		}
		if theirs == nil {
			accepted++
		}
	}
	t.Logf("%d files, %d of them accepted", len(files), accepted)
	if accepted < 50 || accepted > len(files)-50 {
		t.Errorf("nutcracker accepts %d files of %d: they show nothing", accepted, len(files))
	}
}

// readBack compares what the reader makes of a file with the rings that its pools were written from.
func readBack(t *testing.T, file string, pools []*pool) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	read, err := config.ParseTwemproxy(data, file)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range pools {
		if got := read[i].Ring(); !reflect.DeepEqual(got, p.spec) {
			t.Errorf("%s is read back as %+v, expected %+v", p.title, got, p.spec)
		}
	}
}
