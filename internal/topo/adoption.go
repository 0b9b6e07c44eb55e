// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"encoding/json"
	"fmt"
)

// AdoptionState says who keeps the servers of a deployment that begins on order.
type AdoptionState string

// The states of an adoption.
const (
	AdoptionWaiting  AdoptionState = "waiting"  // somebody else does; no agent runs
	AdoptionArmed    AdoptionState = "armed"    // Redoubt does
	AdoptionReleased AdoptionState = "released" // somebody else does again; the agents have let go, or are about to
)

// Adoption is the document that all members of such a deployment obey. Without one the state is AdoptionWaiting.
type Adoption struct {
	State AdoptionState `json:"state"`
	By    string        `json:"by,omitempty"`
}

// DecodeAdoption reads the document.
func DecodeAdoption(b []byte) (Adoption, error) {
	var a Adoption
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("decode an adoption: %w", err)
	}
	switch a.State {
	case AdoptionWaiting, AdoptionArmed, AdoptionReleased:
		return a, nil
	}
	return a, fmt.Errorf("decode an adoption: unknown state %q", a.State)
}

// Encode writes the document.
func (a Adoption) Encode() []byte {
	b, err := json.Marshal(a)
	if err != nil {
		panic("topo: an adoption cannot be encoded: " + err.Error()) // two strings always can
	}
	return b
}

// Found is a primary as it was found serving.
type Found struct {
	Node   NodeID `json:"node"`
	RunID  string `json:"run_id"`
	ReplID string `json:"replid"`
}

// Adopt returns the tenure of a primary that serves already: under a new epoch, it alone is enrolled, and what it writes is the only
// history that is known. Replicas are enrolled as always, once they are seen to be in sync. What was agreed before, if anything, is of
// no use: others have decided since.
func (a Assigned) Adopt(p Found) Assigned {
	epoch := a.Epoch + 1
	return Assigned{
		Term: a.Term, Epoch: epoch, Phase: PhaseServing, Primary: p.Node, RunID: p.RunID, Reason: "adopted",
		Why:      fmt.Sprintf("%s was found serving", p.Node),
		History:  []HistoryEntry{{Epoch: epoch, ReplID: p.ReplID, Node: p.Node}},
		Enrolled: map[NodeID]string{p.Node: p.RunID},
		Rule:     a.Rule,
	}
}
