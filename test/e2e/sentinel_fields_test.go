// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// shape reads one reply and says what it is made of: the types, and of names and values the names. Texts of errors and of simple strings are
// kept.
func shape(r *bufio.Reader) (kind, text string, err error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", "", err
	}
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", "", fmt.Errorf("an empty line is no reply")
	}
	n, _ := strconv.Atoi(line[1:])
	switch line[0] {
	case '$', '=':
		if n < 0 {
			return "null", "", nil
		}
		b := make([]byte, n+2)
		_, err := io.ReadFull(r, b)
		return map[byte]string{'$': "bulk", '=': "verbatim"}[line[0]], string(b[:max(n, 0)]), err
	case '*', '%', '~', '>':
		if n < 0 {
			return "nullarray", "", nil
		}
		if line[0] == '%' {
			n *= 2
		}
		var parts []string
		named := true
		for i := range n {
			k, t, err := shape(r)
			if err != nil {
				return "", "", err
			}
			named = named && (i%2 == 1 || k == "bulk" && t != "" && !strings.ContainsAny(t, " \r\n"))
			if i%2 == 0 && named {
				k = t
			}
			parts = append(parts, k)
		}
		return line[:1] + "(" + strings.Join(parts, " ") + ")", "", nil
	case '-', '+':
		return line, "", nil
	}
	return line[:1], "", nil
}

// shapes asks each command on one connection.
func shapes(t *testing.T, addr string, commands []string) []string {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	var out []string
	for _, cmd := range commands {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(c, "%s\r\n", cmd)
		kind, _, err := shape(r)
		if err != nil {
			t.Fatalf("%s: %v", cmd, err)
		}
		out = append(out, kind)
	}
	return out
}

// compared are commands whose replies have to be made like a Sentinel's: same names in the same order, same types, same words of errors.
var compared = [...]string{
	"HELLO 2", "PING", "PING x", "ROLE", "CLIENT ID", "CLIENT GETNAME", "CLIENT SETNAME x", "CLIENT GETNAME", "CLIENT INFO", "CLIENT LIST", "CLIENT TRACKINGINFO",
	"CLIENT UNPAUSE", "CLIENT NO-EVICT on", "CLIENT REPLY ON", "CLIENT NONSENSE", "CLIENT KILL ID 99999", "CLIENT GETREDIR",
	"INFO", "INFO sentinel", "ACL WHOAMI", "ACL USERS", "ACL LIST", "COMMAND COUNT", "COMMAND INFO ping", "COMMAND INFO auth nope", "COMMAND NONSENSE",
	"AUTH x", "AUTH default x", "AUTH nobody x", "GET k", "SELECT 0", "MULTI", "PUBLISH a b", "SUBSCRIBE",
	"SENTINEL", "SENTINEL NONSENSE", "SENTINEL MYID", "SENTINEL MYID x", "SENTINEL MASTERS", "SENTINEL MASTERS x", "SENTINEL MASTER", "SENTINEL MASTER mymaster", "SENTINEL MASTER nope",
	"SENTINEL REPLICAS mymaster", "SENTINEL SLAVES mymaster", "SENTINEL SLAVES nope", "SENTINEL SENTINELS mymaster", "SENTINEL SENTINELS nope", "SENTINEL SENTINELS",
	"SENTINEL GET-MASTER-ADDR-BY-NAME mymaster", "SENTINEL GET-MASTER-ADDR-BY-NAME nope", "SENTINEL GET-MASTER-ADDR-BY-NAME", "SENTINEL CKQUORUM mymaster", "SENTINEL CKQUORUM nope",
	"SENTINEL IS-MASTER-DOWN-BY-ADDR 127.0.0.1 1 0 *", "SENTINEL IS-MASTER-DOWN-BY-ADDR x", "SENTINEL CONFIG GET *", "SENTINEL CONFIG GET announce*", "SENTINEL CONFIG GET nope",
	"SENTINEL CONFIG", "SENTINEL CONFIG GET", "SENTINEL CONFIG SET nope 1", "SENTINEL DEBUG", "SENTINEL DEBUG nope 1", "SENTINEL PENDING-SCRIPTS", "SENTINEL FLUSHCONFIG",
	"SENTINEL RESET nope", "SENTINEL REMOVE nope", "SENTINEL REMOVE", "SENTINEL SET nope quorum 1", "SENTINEL SET mymaster nonsense 1", "SENTINEL SET mymaster",
	"SENTINEL SET mymaster quorum 2", "SENTINEL MONITOR mymaster 127.0.0.1 1 1", "SENTINEL MONITOR x", "SENTINEL FAILOVER nope", "SENTINEL FAILOVER", "SENTINEL SIMULATE-FAILURE HELP",
	"SENTINEL SIMULATE-FAILURE nonsense", "SENTINEL SIMULATE-FAILURE", "SENTINEL INFO-CACHE", "SENTINEL INFO-CACHE nope", "SENTINEL INFO-CACHE mymaster",
}

// TestTheFaceAnswersAsASentinelDoes asks real Sentinels and, at the same addresses, the members that took over from them.
func TestTheFaceAnswersAsASentinelDoes(t *testing.T) {
	t.Parallel()
	w := newWatchedSetup(t, "", "")
	ask := map[string][]string{"RESP2": compared[:], "RESP3": append([]string{"HELLO 3"}, compared[1:]...)}
	real := map[string][]string{}
	for proto, commands := range ask {
		real[proto] = shapes(t, w.sentinels()[1], commands)
	}
	w.plan()
	w.redoubt("adopt", "--take-over", "--out", w.out(), "--yes")
	same := 0
	for proto, commands := range ask {
		ours := shapes(t, w.sentinels()[1], commands)
		for i, cmd := range commands {
			if ours[i] == real[proto][i] {
				same++
				continue
			}
			t.Errorf("%s, %s:\n a Sentinel says %s\n a member says   %s", proto, cmd, real[proto][i], ours[i])
		}
	}
	t.Logf("%d of %d replies are made like a Sentinel's", same, len(compared)*2)
}
