// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"

	"github.com/hashicorp/raft"
)

// hangFactor times the election timeout is how long a leader's append may take before the others need another leader.
const hangFactor = 5

var errDiskHangs = errors.New("the disk of this member hangs: others shall lead")

// muteTransport is Raft's transport, which falls silent while an append to the own log hangs. Package raft keeps sending
// heartbeats then, from goroutines that need no disk, and so the others would follow a leader that can commit nothing.
type muteTransport struct {
	ballotTransport
	hangs func() bool
}

// AppendEntries implements raft.Transport: heartbeats come this way, too.
func (t muteTransport) AppendEntries(id raft.ServerID, to raft.ServerAddress, in *raft.AppendEntriesRequest, out *raft.AppendEntriesResponse) error {
	if t.hangs() {
		return errDiskHangs
	}
	return t.NetworkTransport.AppendEntries(id, to, in, out)
}

// AppendEntriesPipeline implements raft.Transport.
func (t muteTransport) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, to)
	return mutePipeline{p, t.hangs}, err
}

type mutePipeline struct {
	raft.AppendPipeline
	hangs func() bool
}

// AppendEntries implements raft.AppendPipeline.
func (p mutePipeline) AppendEntries(in *raft.AppendEntriesRequest, out *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.hangs() {
		return nil, errDiskHangs
	}
	return p.AppendPipeline.AppendEntries(in, out)
}
