// SPDX-License-Identifier: Apache-2.0

package raftstore

import "github.com/hashicorp/raft"

// ballotTransport is Raft's transport, whose candidates are elected by members that have not heard of their vote. Raft (§6 of the
// paper: "a server always uses the latest configuration in its log"; who asks for a vote does not have to be in it) needs that: when
// a vote was given and only the controller, now lost, and the new voter itself have that in their logs, nobody else's log is long enough.
// Package raft (1.7.3, requestVote and requestPreVote) refuses candidates that have no vote by its own list of members, and all would wait
// for the lost one. What makes that safe is all that a removed member meets as well: its log, and who has a controller.
type ballotTransport struct {
	*raft.NetworkTransport
	voters func() []raft.Server // by the own list
}

// RequestVote implements raft.Transport. A request without an id is one of an older version of package raft, whose candidate is taken
// for a voter; its address says who it is.
func (t ballotTransport) RequestVote(id raft.ServerID, to raft.ServerAddress, in *raft.RequestVoteRequest, out *raft.RequestVoteResponse) error {
	anonymous := *in // the other members are asked with the same one
	anonymous.ID = nil
	return t.NetworkTransport.RequestVote(id, to, &anonymous, out)
}

// RequestPreVote implements raft.WithPreVote. Here the id must be that of a voter: the own first, then any that the other one may know.
func (t ballotTransport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, in *raft.RequestPreVoteRequest, out *raft.RequestPreVoteResponse) error {
	err := t.NetworkTransport.RequestPreVote(id, to, in, out)
	for _, voter := range t.voters() {
		if err != nil || out.Granted || out.Term > in.Term {
			break
		}
		if voter.ID == raft.ServerID(in.ID) {
			continue
		}
		named := *in
		named.ID, *out = []byte(voter.ID), raft.RequestPreVoteResponse{}
		err = t.NetworkTransport.RequestPreVote(id, to, &named, out)
	}
	return err
}
