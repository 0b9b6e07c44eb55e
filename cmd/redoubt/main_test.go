// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"redoubt/internal/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"redoubt": func() { os.Exit(cli.Main()) }})
}

func TestTheCommandLineTellsItsStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			base, err := freeBase()
			e.Setenv("BASE", strconv.Itoa(base))
			e.Setenv("API", fmt.Sprintf("127.0.0.1:%d", base+30))
			e.Defer(func() { // a story that failed half-way must not leave its processes
				cli.Execute(context.Background(), []string{"down", "--dir", filepath.Join(e.WorkDir, "d")}, strings.NewReader(""), io.Discard, io.Discard)
			})
			return err
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

// freeBase finds a base port whose neighbourhood is free, below the range that the kernel hands out.
func freeBase() (int, error) {
	for range 100 {
		base := 2000 + 200*rand.IntN(50)
		if free(base) {
			return base, nil
		}
	}
	return 0, fmt.Errorf("no free range of ports found")
}

func free(base int) bool {
	for _, from := range []int{0, 10, 30, 40, 100, 20_000} {
		for i := range 3 {
			ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+from+i))
			if err != nil {
				return false
			}
			ln.Close()
		}
	}
	return true
}
