// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"redoubt/internal/api"
)

const (
	defaultDir = ".redoubt"
	defaultAPI = "127.0.0.1:7379"
)

// client returns the way to the members that the flags name, about the shard that they name.
func (e *env) client() (*api.Client, error) {
	c, err := e.anyClient()
	if err == nil {
		c.About(e.shard)
	}
	return c, err
}

func (e *env) anyClient() (*api.Client, error) {
	if e.api != "" {
		addrs := strings.Split(e.api, ",")
		for _, a := range addrs {
			if _, _, err := net.SplitHostPort(a); err != nil {
				return nil, fail(ExitUsage, "--api %q: write host:port, for example %s", a, defaultAPI)
			}
		}
		return api.NewClient(addrs...), nil
	}
	dir := e.dir
	if dir == "" {
		if _, err := os.Stat(filepath.Join(defaultDir, planFile)); err == nil {
			dir = defaultDir
		}
	}
	if dir == "" {
		return api.NewClient(defaultAPI), nil
	}
	p, err := readPlan(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(ExitUsage, "there is no deployment in %s: make one with `redoubt up --dir %s`, or name a member with --api", dir, dir)
	}
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, m := range p.Members {
		addrs = append(addrs, m.API)
	}
	return api.NewClient(addrs...), nil
}
