// SPDX-License-Identifier: Apache-2.0

package etcdstore

import (
	"context"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"redoubt/internal/coord"
)

// CompactForTest throws away etcd's history up to a revision.
func CompactForTest(t *testing.T, s *Store, upTo coord.Rev) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := s.All()[0].Client.use(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(ctx, int64(upTo)); err != nil {
		t.Fatal(err)
	}
}

// EnableAuthForTest gives an etcd one user, who may do everything, and asks for a login from then on.
func EnableAuthForTest(t *testing.T, endpoint, user, password string) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := c.UserAdd(ctx, user, password); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RoleAdd(ctx, "root"); err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	if _, err := c.UserGrantRole(ctx, user, "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
}
