// SPDX-License-Identifier: Apache-2.0

package route

import (
	"bytes"
	"slices"
	"strings"
)

// Class says how a command travels.
type Class uint8

// The classes of commands.
const (
	Read      Class = iota // shared upstream; may be sent again
	Write                  // shared upstream; never sent twice
	Multi                  // own upstream, from here …
	Exec                   // … to here
	Discard                //
	Watch                  // own upstream
	Unwatch                //
	Block                  // own upstream while it waits
	Wait                   // own upstream; speaks of the session's earlier writes
	Pubsub                 // own upstream for as long as there are subscriptions
	Monitor                // own upstream until RESET
	Tracking               // own upstream: CLIENT TRACKING and CLIENT CACHING
	Local                  // answered by the proxy
	Forbidden              // answered by the proxy with Verdict.Why
)

// Verdict is what is to be done with one command.
type Verdict struct {
	Row   *Row
	Class Class
	Why   string // Forbidden: the error, with its code
}

// Classify looks at a command; args is not empty. It allocates nothing, except for a refusal.
func (t *Table) Classify(args [][]byte) Verdict {
	row := t.Lookup(args[0])
	v := Verdict{Row: row, Class: row.Class}
	switch row.verb {
	case verbNone:
	case verbClient:
		v.Class = classifyClient(args)
	case verbConfig:
		v.Class, v.Why = classifyConfig(args)
	case verbDebug:
		v.Class, v.Why = classifyDebug(args)
	case verbCluster:
		v.Class = Local
	case verbStreamRead:
		if BlockIndex(row.Name, args) > 0 {
			v.Class = Block
		}
	case verbScript:
		if len(args) > 1 && Is(args[1], "DEBUG") {
			v.Class, v.Why = Forbidden, "ERR SCRIPT DEBUG needs a connection of its own; connect to the server directly"
		}
	case verbInfo:
		if len(args) == 1 || slices.ContainsFunc(args[1:], ownSection) {
			v.Class = Local
		}
	default:
		v.Class, v.Why = refusal(row)
	}
	return v
}

// ownSection reports whether INFO of this section includes the proxy's own.
func ownSection(section []byte) bool {
	return Is(section, "REDOUBT") || Is(section, "DEFAULT") || Is(section, "ALL") || Is(section, "EVERYTHING")
}

func refusal(row *Row) (Class, string) {
	switch row.verb {
	case verbReplicaof:
		return Forbidden, "ERR " + row.Name + " is refused: Redoubt decides who is primary; use 'redoubt switchover' to move it"
	case verbShutdown:
		return Forbidden, "ERR SHUTDOWN is refused: stop the member instead (SIGTERM), which hands the primary over and stops its server"
	case verbFailover:
		return Forbidden, "ERR FAILOVER is refused: use 'redoubt switchover' (planned) or 'redoubt failover'"
	case verbSync:
		return Forbidden, "ERR " + row.Name + " is refused: only nodes of the roster replicate"
	case verbSentinel:
		return Write, "" // the backend's error is what a client that probes for a Sentinel expects
	}
	return row.Class, ""
}

func classifyClient(args [][]byte) Class {
	if len(args) < 2 {
		return Read // the backend's error
	}
	switch a := args[1]; {
	case Is(a, "TRACKING"), Is(a, "CACHING"), Is(a, "TRACKINGINFO"):
		return Tracking
	case Is(a, "HELP"):
		return Write
	}
	return Local
}

// replicationSettings are those that Redoubt owns (SAFETY A10, A11, B2).
const replicationSettings = ` replicaof slaveof masterauth masteruser primaryauth primaryuser min-replicas-to-write min-slaves-to-write
 min-replicas-max-lag min-slaves-max-lag replica-read-only slave-read-only replica-ignore-maxmemory slave-ignore-maxmemory
 replica-ignore-disk-write-errors propagation-error-behavior repl-diskless-load repl-backlog-ttl replica-announce-ip
 replica-announce-port slave-announce-ip slave-announce-port replica-priority slave-priority port bind requirepass `

func classifyConfig(args [][]byte) (Class, string) {
	if len(args) < 2 {
		return Read, ""
	}
	switch {
	case Is(args[1], "GET"), Is(args[1], "HELP"):
		return Read, ""
	case Is(args[1], "REWRITE"):
		return Forbidden, "ERR CONFIG REWRITE is refused: it would write the present replication state into the file that the next start obeys; put settings into the deployment's configuration"
	case Is(args[1], "SET"):
		for i := 2; i < len(args); i += 2 {
			name := " " + strings.ToLower(string(args[i])) + " "
			ours := strings.HasPrefix(name, " cluster-") || strings.Contains(strings.ReplaceAll(replicationSettings, "\n", " "), name)
			if len(args[i]) < nameMax && ours {
				return Forbidden, "ERR CONFIG SET" + name + "is refused: Redoubt manages this setting; change the deployment's configuration"
			}
		}
	}
	return Write, ""
}

// ChangesSyncing reports whether the command changes what a server syncs to its disk, and when.
func ChangesSyncing(args [][]byte) bool {
	if len(args) < 4 || !Is(args[0], "CONFIG") || !Is(args[1], "SET") {
		return false
	}
	for i := 2; i < len(args); i += 2 {
		if Is(args[i], "APPENDONLY") || Is(args[i], "APPENDFSYNC") || Is(args[i], "NO-APPENDFSYNC-ON-REWRITE") {
			return true
		}
	}
	return false
}

func classifyDebug(args [][]byte) (Class, string) {
	if len(args) > 1 {
		for _, ok := range [...]string{"OBJECT", "DIGEST", "DIGEST-VALUE", "SLEEP", "JMAP", "SDSLEN", "LISTPACK", "ZIPLIST", "QUICKLIST",
			"STRINGMATCH-LEN", "SET-ACTIVE-EXPIRE", "QUICKLIST-PACKED-THRESHOLD", "PROTOCOL", "LOG", "HELP", "HTSTATS", "HTSTATS-KEY"} {
			if Is(args[1], ok) {
				return Write, ""
			}
		}
	}
	return Forbidden, "ERR this DEBUG subcommand is refused through the proxy: it can end or alter a server behind Redoubt's back"
}

// IsEverywhere reports whether a command whose row has care Everywhere changes something that servers do not replicate.
func IsEverywhere(args [][]byte) bool {
	if len(args) < 2 {
		return false
	}
	switch sub := args[1]; {
	case Is(args[0], "CONFIG"):
		return Is(sub, "SET") && len(args) > 3
	case Is(args[0], "ACL"):
		return Is(sub, "SETUSER") || Is(sub, "DELUSER")
	case Is(args[0], "SCRIPT"):
		return Is(sub, "LOAD") && len(args) == 3 || Is(sub, "FLUSH")
	}
	return false
}

// Is compares an argument with an upper-case word, whatever the argument's case.
func Is(arg []byte, word string) bool {
	if len(arg) != len(word) {
		return false
	}
	for i, c := range arg {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != word[i] {
			return false
		}
	}
	return true
}

// BlockIndex returns the index of the argument that holds a blocking command's timeout; 0 when it has none. The unit is
// milliseconds for XREAD, XREADGROUP, WAIT and WAITAOF, seconds (a decimal fraction) for the others.
func BlockIndex(name string, args [][]byte) int {
	switch name {
	case "BLPOP", "BRPOP", "BZPOPMIN", "BZPOPMAX", "BRPOPLPUSH", "BLMOVE", "WAIT", "WAITAOF":
		return max(len(args)-1, 0)
	case "BLMPOP", "BZMPOP":
		return min(1, len(args)-1)
	case "XREAD", "XREADGROUP":
		for i := 1; i+1 < len(args); i++ {
			switch {
			case Is(args[i], "STREAMS"):
				return 0
			case Is(args[i], "BLOCK"):
				return i + 1
			case Is(args[i], "COUNT"):
				i++
			case Is(args[i], "GROUP"):
				i += 2
			}
		}
	}
	return 0
}

// BlocksInMilliseconds reports the unit of a blocking command's timeout.
func BlocksInMilliseconds(name string) bool {
	return name == "XREAD" || name == "XREADGROUP" || name == "WAIT" || name == "WAITAOF"
}

// Fate is what a backend's reply says about the command that it answers.
type Fate uint8

// The fates.
const (
	Deliver     Fate = iota // the command ran, or was refused for a reason of its own: the client gets the reply
	NotExecuted             // it did not run because this server is not a (complete) primary: try again on the present one
	NotYet                  // it did not run because replicas are missing: try again here a little later
	Unknown                 // it may have run
)

// ClassifyReply looks at one reply. The prefixes are those of server.c and replication.c, Redis 6.2–7.4 and Valkey 8.
// A reply READONLY to EVAL comes from inside the script only on a replica, where nothing was changed.
func ClassifyReply(reply []byte) Fate {
	if len(reply) < 5 || reply[0] != '-' {
		return Deliver
	}
	text := reply[1:]
	switch text[0] {
	case 'R':
		if hasPrefix(text, "READONLY ") {
			return NotExecuted
		}
	case 'L':
		if hasPrefix(text, "LOADING ") {
			return NotExecuted
		}
	case 'M':
		if hasPrefix(text, "MASTERDOWN ") {
			return NotExecuted
		}
	case 'N':
		if hasPrefix(text, "NOMASTERLINK ") {
			return NotExecuted
		}
		if hasPrefix(text, "NOREPLICAS ") {
			return NotYet
		}
	case 'U':
		if hasPrefix(text, "UNBLOCKED ") {
			return NotExecuted
		}
	case 'E':
		if hasPrefix(text, "EXECABORT Transaction discarded because of: READONLY ") || hasPrefix(text, "EXECABORT Transaction discarded because of: LOADING ") {
			return NotExecuted
		}
	}
	return Deliver
}

// ClassifyRedirect looks at one reply of a cluster's server. Moved: it is not this server's business, or not any more; Down: nobody
// serves that slot at the moment, or this server does not know yet who does. Neither was carried out.
func ClassifyRedirect(reply []byte) (moved, down bool) {
	if len(reply) < 5 || reply[0] != '-' {
		return false, false
	}
	return hasPrefix(reply[1:], "MOVED "), hasPrefix(reply[1:], "CLUSTERDOWN ")
}

func hasPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && bytes.Equal(b[:len(prefix)], []byte(prefix))
}
