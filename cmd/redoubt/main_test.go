// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"redoubt/internal/cli"
	"redoubt/test/ports"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"redoubt": func() { os.Exit(cli.Main()) }})
}

func TestTheCommandLineTellsItsStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			base := ports.Block(t, 2000, 40, 200, 0, 1, 2, 10, 11, 12, 30, 31, 32, 40, 41, 42, 100, 101, 102, 20_000, 20_001, 20_002)
			e.Setenv("BASE", strconv.Itoa(base))
			e.Setenv("API", fmt.Sprintf("127.0.0.1:%d", base+30))
			e.Defer(func() { // a story that failed half-way must not leave its processes
				cli.Execute(context.Background(), []string{"down", "--dir", filepath.Join(e.WorkDir, "d")}, strings.NewReader(""), io.Discard, io.Discard)
			})
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "server" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			_, err := exec.LookPath("redis-server")
			return err == nil, nil
		},
	})
}
