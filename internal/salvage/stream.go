// SPDX-License-Identifier: Apache-2.0

package salvage

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"

	"redoubt/internal/redis"
	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// Command is one kept command that changes data.
type Command struct {
	DB   int      `json:"db"`   // the database that it is for
	Args []string `json:"args"` // as the server sent it to its replicas
	Keys []string `json:"keys"` // that it touches; none for FLUSHALL and the like
}

// errBoundary: the bytes are not commands, so that the place where the histories part is not where a command begins.
var errBoundary = errors.New("the stream does not begin with a command")

// noData are commands of a replication stream that change no data of users. rest is what follows the name.
func noData[T string | []byte](name string, rest []T) bool {
	switch name {
	case "SET":
		return len(rest) > 0 && string(rest[0]) == topo.MarkKey
	case "FUNCTION": // a marker of a cluster's server
		last := ""
		if len(rest) > 1 {
			last = string(rest[len(rest)-1])
		}
		return last == redis.NoFunctions || strings.HasPrefix(last, topo.MarkLibraryHead)
	case "PING", "REPLCONF", "SELECT", "MULTI", "EXEC", "PUBLISH", "SPUBLISH":
		return true
	}
	return false
}

// body passes on whole commands only, and counts them. It keeps one incomplete command, which is bounded by what may be read.
type body struct {
	w        io.Writer
	hash     hash.Hash
	parser   resp.Parser
	rest     []byte
	whole    int64 // bytes passed on
	commands int64
}

func newBody(w io.Writer) *body { return &body{w: w, hash: sha256.New()} }

// Write takes the next bytes of the stream.
func (b *body) Write(p []byte) (int, error) {
	b.rest = append(b.rest, p...)
	done := 0
	for done < len(b.rest) {
		n, err := b.parser.Next(b.rest[done:], resp.Limits{})
		if err != nil || n > 0 && b.parser.Inline {
			return 0, errors.Join(errBoundary, err)
		}
		if n == 0 {
			break
		}
		done += n
		if len(b.parser.Args) > 0 && !noData(strings.ToUpper(string(b.parser.Args[0])), b.parser.Args[1:]) {
			b.commands++
		}
	}
	if _, err := b.w.Write(b.rest[:done]); err != nil {
		return 0, err
	}
	b.hash.Write(b.rest[:done])
	b.whole += int64(done)
	b.rest = append(b.rest[:0], b.rest[done:]...)
	return len(p), nil
}

func (b *body) sum() string { return hex.EncodeToString(b.hash.Sum(nil)) }

// Read reads a whole file: its description and its commands. It is an error when the checksum does not hold.
func Read(r io.Reader) (topo.Salvage, []Command, error) {
	head, err := parseHead(r)
	if err != nil {
		return head, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, head.Bytes+1))
	if err != nil {
		return head, nil, fmt.Errorf("read salvage %s: %w", head.ID, err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != head.SHA256 {
		return head, nil, fmt.Errorf("salvage %s is damaged: its checksum does not hold", head.ID)
	}
	var p resp.Parser
	var out []Command
	db := 0
	for len(data) > 0 {
		n, err := p.Next(data, resp.Limits{})
		if err != nil || n == 0 {
			return head, nil, fmt.Errorf("salvage %s is damaged: %w", head.ID, errors.Join(errBoundary, err))
		}
		args := make([]string, 0, len(p.Args))
		for _, a := range p.Args {
			args = append(args, string(a))
		}
		data = data[n:]
		if len(args) == 0 {
			continue
		}
		name := strings.ToUpper(args[0])
		if name == "SELECT" && len(args) == 2 {
			if db, err = strconv.Atoi(args[1]); err != nil {
				return head, nil, fmt.Errorf("salvage %s is damaged: SELECT %.20q", head.ID, args[1])
			}
		}
		if !noData(name, args[1:]) {
			out = append(out, Command{DB: db, Args: args, Keys: keysOf(args)})
		}
	}
	return head, out, nil
}
