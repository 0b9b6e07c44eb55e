// SPDX-License-Identifier: Apache-2.0

package redisd

import "fmt"

// dialect is how any of our processes, agent or guard, asks a server what it is, and fences it. What follows from the
// answers is the same for a server by itself and for a member of a cluster: info speaks of both in the same words.
type dialect interface {
	look(section ...string) [][]string // the commands that show what the server is; a section of INFO is enough for the role
	read(reps []reply) info            // the replies to them, none of which is an error
	fence() [][]string
	fenced(reps []reply) (info, error)
}

// single is the dialect of a server by itself.
type single struct{}

func (single) look(section ...string) [][]string {
	return [][]string{append([]string{"INFO"}, section...)}
}

func (single) read(reps []reply) info { return parseInfo(reps[0].text) }

// read notes what a look says beyond itself.
func (n *Node) read(reps []reply) info {
	m := n.d.read(reps)
	if n.cluster != nil {
		n.noteBar(m)
	}
	return m
}

// fence is the one fence (SAFETY A5, B1): freeze, and cut everybody who could still write or read, in one step.
func (single) fence() [][]string {
	return [][]string{
		{"MULTI"},
		{"REPLICAOF", deadHost, deadPort},
		{"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"},
		{"CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"},
		{"EXEC"},
		{"INFO"},
	}
}

// fenced judges the replies to fence, and returns what the server said of itself at the end. One that is loading refuses
// REPLICAOF; it counts when it is frozen.
func (single) fenced(reps []reply) (info, error) {
	if err := reps[5].err(); err != nil {
		return nil, err
	}
	m := parseInfo(reps[5].text)
	exec := reps[4]
	switch {
	case isCode(reps[1].err(), "LOADING") && m.frozen():
		return m, nil
	case exec.err() != nil:
		if err := firstError(reps); err != nil {
			return nil, err
		}
	case firstError(exec.items) != nil:
		return nil, firstError(exec.items)
	}
	if !m.frozen() {
		return nil, fmt.Errorf("after the fence the server says that it is %s following %q", m.role(), m.following())
	}
	return m, nil
}
