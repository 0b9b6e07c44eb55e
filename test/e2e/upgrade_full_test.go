// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestUpgradeOfAFullMember: as many clients as a member may have by default, the most of them idle.
func TestUpgradeOfAFullMember(t *testing.T) {
	if !*everyone {
		t.Skip("make show-upgrade runs it")
	}
	d := up(t)
	d.set("proxy", "clients: 11000")
	epoch := d.waitHealthy(20 * time.Second).epoch()
	began := time.Now()
	var crowds []*crowd
	for i, idle := range []int{10_000, 10, 10} {
		crowds = append(crowds, gather(t, d.proxyAddr(i), fmt.Sprintf("n%d", i+1), idle))
	}
	t.Logf("everybody is there after %s", time.Since(began).Round(time.Millisecond))
	pub, _ := dialPlain(t, "127.0.0.1:"+strconv.Itoa(d.base+100+primaryIndex(t, d)))
	stopNews := publish(t, pub, crowds)
	for range roundsOr(1) {
		upgradeOne(t, d, "n1", 0, crowds)
	}
	stopNews()
	settle(t, pub, crowds)
	if now := d.waitHealthy(20 * time.Second); now.epoch() != epoch {
		t.Errorf("epoch %d, was %d: an upgrade must not fail over", now.epoch(), epoch)
	}
	log, err := os.ReadFile(filepath.Join(d.dir, "member-1", "redoubt.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if _, told, ok := strings.Cut(line, `msg="clients were handed over" `); ok {
			t.Log(strings.TrimSpace(told))
		}
	}
}

// memberPID reads the record in the member's directory.
func memberPID(t *testing.T, d *deployment, m string) int {
	t.Helper()
	rest, file := "", filepath.Join(d.dir, "member-"+strings.TrimPrefix(m, "n"), "data", "redoubt-member.json")
	d.until(5*time.Second, "the member's record is whole", func() (bool, string) { // it is written in place
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var whole bool
		_, rest, whole = strings.Cut(string(b), `"pid":`)
		return whole && strings.Contains(rest, "}"), string(b)
	})
	pid, err := strconv.Atoi(strings.TrimSpace(strings.FieldsFunc(rest, func(r rune) bool { return r == ',' || r == '}' })[0]))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}
