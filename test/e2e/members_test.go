// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// membersNow asks any member for the membership; the string says who is alive, as "n1 n2 (n3)".
func (c *crew) membersNow() (string, error) {
	out, err := c.d.run("member", "list", "--json")
	if err != nil {
		return "", err
	}
	var l struct {
		Members []struct {
			ID    string `json:"id"`
			Alive bool   `json:"alive"`
		} `json:"members"`
	}
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		return "", err
	}
	var ids []string
	for _, m := range l.Members {
		if m.Alive {
			ids = append(ids, m.ID)
		} else {
			ids = append(ids, "("+m.ID+")")
		}
	}
	return strings.Join(ids, " "), nil
}

func (c *crew) awaitMembers(want string) {
	c.t.Helper()
	c.d.until(10*time.Second, "the members are "+want, func() (bool, string) {
		now, err := c.membersNow()
		return err == nil && now == want, now + errText(err)
	})
}

// write requires that a write through some living member's proxy succeeds within the time.
func (c *crew) write(through int, key string, within time.Duration) {
	c.t.Helper()
	r := c.d.client(through - 1)
	begun := time.Now()
	c.d.until(within, "a write succeeds through member "+fmt.Sprint(through), func() (bool, string) {
		err := r.Set(c.t.Context(), key, "v", 0).Err()
		return err == nil, errText(err)
	})
	c.t.Logf("%s written after %.0f ms", key, ms(time.Since(begun)))
}

// managedCrew is three members with managed servers.
func managedCrew(t *testing.T, nodes int) *crew {
	t.Helper()
	c := newCrew(t)
	c.nodes = nodes
	for _, id := range []string{"n1", "n2", "n3"} {
		c.start(id, "")
	}
	c.d.waitHealthy(20 * time.Second)
	return c
}

// TestMembersJoinByOneAddressAndAreRemoved: two of five may die, and what was agreed about members survives everything.
func TestMembersJoinByOneAddressAndAreRemoved(t *testing.T) {
	c := managedCrew(t, 2) // n3 is an arbiter
	c.start("n4", c.at(40, 2))
	c.awaitMembers("n1 n2 n3 n4")
	c.start("n5", c.at(40, 4)) // through one that joined itself
	c.awaitMembers("n1 n2 n3 n4 n5")
	c.write(5, "through:joined", 5*time.Second)

	if out, err := c.d.run("member", "remove", "n1", "--yes"); err == nil || !strings.Contains(err.Error(), "would lose its agent") {
		t.Errorf("a member with a running data node was removed: %s %v", out, err)
	}
	if out, err := c.d.run("member", "remove", "n9", "--yes"); err == nil || !strings.Contains(err.Error(), "there is no member") {
		t.Errorf("a stranger was removed: %s %v", out, err)
	}
	if out, err := c.d.run("member", "remove", "n3"); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("removed without asking: %s %v", out, err)
	}
	c.kill("n3") // an arbiter of the first three, and one that joined: the data nodes' members are two of the three left
	c.kill("n4")
	c.write(1, "two:of:five:dead", 5*time.Second)
	c.awaitMembers("n1 n2 (n3) (n4) n5")

	if out, err := c.d.run("member", "remove", "n3", "--yes"); err != nil || !strings.Contains(out, "3 of 4") {
		t.Errorf("remove the dead n3: %s %v", out, err)
	}
	c.awaitMembers("n1 n2 (n4) n5")
	c.start("n4", c.at(40, 2)) // its directory is intact: it comes back as what it was
	c.awaitMembers("n1 n2 n4 n5")

	for id := range maps.Clone(c.members) {
		c.kill(id)
	}
	for _, id := range []string{"n1", "n2"} {
		c.start(id, "")
	}
	for _, id := range []string{"n4", "n5"} {
		c.start(id, c.at(40, 1))
	}
	c.awaitMembers("n1 n2 n4 n5")
	c.d.waitHealthy(20 * time.Second)
	c.write(2, "after:cold:start", 5*time.Second)
}

func TestARemovedMemberStopsAndSaysWhy(t *testing.T) {
	c := managedCrew(t, 2)
	c.start("n4", c.at(40, 1))
	c.awaitMembers("n1 n2 n3 n4")
	if out, err := c.d.run("member", "remove", "n4", "--yes"); err != nil {
		t.Fatalf("%s %v", out, err)
	}
	ended := make(chan error, 1)
	gone := c.members["n4"]
	delete(c.members, "n4")
	go func() { ended <- gone.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Errorf("the removed member ended with success")
		}
	case <-time.After(10 * time.Second):
		_ = gone.Process.Kill()
		t.Errorf("the removed member still runs (%v)", <-ended)
	}
	c.d.until(time.Second, "its log says why", func() (bool, string) {
		text := c.log("n4")
		return strings.Contains(text, "was removed") && strings.Contains(text, "join"), text
	})
	c.awaitMembers("n1 n2 n3")
	c.write(3, "k", 5*time.Second)
}

// TestALostMemberWithDataNodeComesBackByJoin: its directory is gone, with its part of the agreed state.
func TestALostMemberWithDataNodeComesBackByJoin(t *testing.T) {
	c := managedCrew(t, 3)
	c.write(1, "kept", 5*time.Second)
	s, err := c.d.status()
	if err != nil {
		t.Fatal(err)
	}
	lost := replicaOf(s).ID
	c.kill(lost)
	c.endManaged(lost)
	c.erase(lost)
	var rest []string
	for _, id := range []string{"n1", "n2", "n3"} {
		if id != lost {
			rest = append(rest, id)
		}
	}
	c.d.until(10*time.Second, "its death is known", func() (bool, string) {
		now, err := c.membersNow()
		return err == nil && strings.Contains(now, "("+lost+")"), now + errText(err)
	})
	c.d.until(10*time.Second, "it is removed", func() (bool, string) { // a new controller hears from the members within a second
		out, err := c.d.run("member", "remove", lost, "--yes")
		return err == nil, out + errText(err)
	})
	c.start(lost, c.at(40, number(t, rest[0])))
	all := append(slices.Clone(rest), lost)
	slices.Sort(all)
	c.awaitMembers(strings.Join(all, " "))
	now := c.d.waitHealthy(20 * time.Second)
	c.everywhere(now, 1)
}
