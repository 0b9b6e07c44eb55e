// SPDX-License-Identifier: Apache-2.0

package salvage

import (
	"slices"
	"strconv"
	"strings"
)

// keysOf names the keys of a command as it stands in a replication stream. What is not listed here has one key, its first
// argument, as almost all writes have. Positions are those of COMMAND in Redis 7.0 and Valkey 8.
func keysOf(args []string) []string {
	name, rest := strings.ToUpper(args[0]), args[1:]
	switch name {
	case "FLUSHALL", "FLUSHDB", "SWAPDB", "SCRIPT", "FUNCTION", "ACL", "CONFIG", "DEBUG", "SPUBLISH":
		return nil
	case "DEL", "UNLINK", "PFMERGE", "SINTERSTORE", "SUNIONSTORE", "SDIFFSTORE", "TOUCH":
		return rest
	case "MSET", "MSETNX":
		return everySecond(rest)
	case "RENAME", "RENAMENX", "SMOVE", "COPY", "LMOVE", "RPOPLPUSH", "ZRANGESTORE", "GEOSEARCHSTORE", "BLMOVE", "BRPOPLPUSH":
		return first(rest, 2)
	case "BITOP", "XGROUP":
		return afterFirst(name, rest)
	case "ZUNIONSTORE", "ZINTERSTORE", "ZDIFFSTORE":
		return append(slices.Clone(first(rest, 1)), counted(rest, 1)...)
	case "LMPOP", "ZMPOP":
		return counted(rest, 0)
	case "EVAL", "EVALSHA", "FCALL":
		return counted(rest, 1)
	case "SORT", "GEORADIUS", "GEORADIUSBYMEMBER":
		return withStore(rest)
	}
	return first(rest, 1)
}

func first(args []string, n int) []string { return args[:min(n, len(args))] }

func everySecond(args []string) (keys []string) {
	for i := 0; i < len(args); i += 2 {
		keys = append(keys, args[i])
	}
	return keys
}

// afterFirst: the first argument is a subcommand or an operation. XGROUP has one key, BITOP the rest.
func afterFirst(name string, args []string) []string {
	if len(args) < 2 {
		return nil
	}
	if name == "XGROUP" {
		return args[1:2]
	}
	return args[1:]
}

// counted: the argument at is the number of keys that follow it.
func counted(args []string, at int) []string {
	if len(args) <= at {
		return nil
	}
	n, err := strconv.Atoi(args[at])
	if err != nil || n < 0 {
		return nil
	}
	return first(args[at+1:], n)
}

// withStore: the source, and behind STORE or STOREDIST the destination.
func withStore(args []string) []string {
	keys := slices.Clone(first(args, 1))
	for i := 1; i+1 < len(args); i++ {
		if w := strings.ToUpper(args[i]); w == "STORE" || w == "STOREDIST" {
			keys = append(keys, args[i+1])
		}
	}
	return keys
}
