// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Encode returns the document's stored form.
func (s Shard) Encode() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("encode shard %s: %v", s.ID, err)) // plain data always encodes
	}
	return b
}

// DecodeShard reads a stored document and refuses one that this program must not act on.
func DecodeShard(b []byte) (Shard, error) {
	var s Shard
	if err := json.Unmarshal(b, &s); err != nil {
		return Shard{}, fmt.Errorf("decode shard document: %w", err)
	}
	if s.Format != Format {
		return Shard{}, fmt.Errorf("shard document %q has format %d; this program understands %d: upgrade the older members", s.ID, s.Format, Format)
	}
	return s, errors.Join(s.Validate()...)
}

// Validate returns everything that is wrong with the document; nil when it is sound.
func (s Shard) Validate() []error {
	errs := s.Spec.Validate()
	a := s.Assigned
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	switch a.Phase {
	case PhaseNew:
		need(a.Epoch == 0, "phase new at epoch %d", a.Epoch)
	case PhaseServing, PhaseDraining:
		e, ok := a.Latest()
		need(ok && e.Epoch <= a.Epoch, "phase %s without a history entry up to epoch %d", a.Phase, a.Epoch)
		need(a.Primary != "", "phase %s without a primary", a.Phase)
	case PhasePromoting:
		need(a.Elected != nil, "phase promoting without an elected node")
		need(a.Elected == nil || a.Elected.Node == a.Primary, "phase promoting: elected is not the node that may write")
	case PhaseFencing:
	default:
		need(false, "unknown phase %q", a.Phase)
	}
	if a.Change != nil {
		if err := a.Change.Validate(s.Spec); err != nil {
			errs = append(errs, fmt.Errorf("change %s: %w", a.Change, err))
		}
	}
	need(len(a.History) <= HistoryMax, "%d histories, more than %d", len(a.History), HistoryMax)
	need(slices.IsSortedFunc(a.History, func(x, y HistoryEntry) int { return int(int64(x.Epoch) - int64(y.Epoch)) }), "histories are not in order of epoch")
	return errs
}

// Validate returns everything that is wrong with the specification; nil when it is sound.
func (s Spec) Validate() []error {
	var errs []error
	if len(s.Nodes) == 0 {
		errs = append(errs, errors.New("a shard needs at least one node"))
	}
	for i := 1; i < len(s.Nodes); i++ { // strictly: a node that is listed twice would vote twice
		if s.Nodes[i-1].ID >= s.Nodes[i].ID {
			errs = append(errs, errors.New("nodes must be sorted by id, each id once"))
			break
		}
	}
	for _, n := range s.Nodes {
		if n.ID == "" || n.Addr == "" {
			errs = append(errs, fmt.Errorf("node %q at %q needs an id and an address", n.ID, n.Addr))
		}
	}
	switch s.Durability {
	case Async:
	case Quorum, QuorumDisk:
		if s.AckReplicas < 1 || s.AckReplicas >= len(s.Nodes) {
			errs = append(errs, fmt.Errorf("durability %s with %d nodes needs 1 to %d acknowledging replicas, not %d", s.Durability, len(s.Nodes), len(s.Nodes)-1, s.AckReplicas))
		}
	default:
		errs = append(errs, fmt.Errorf("durability %q: use quorum, quorum+disk or async", s.Durability))
	}
	if err := s.MaxLoss.Validate(s.Durability); err != nil {
		errs = append(errs, err)
	}
	if s.MinCopies < 0 || s.MinCopies > 2 {
		errs = append(errs, fmt.Errorf("min-copies %d: use 1 (the primary of two nodes may go on alone) or 2", s.MinCopies))
	}
	return append(errs, s.Timing.Validate()...)
}

// Validate returns what is wrong with the bounds under that durability; nil when they are sound.
func (l Loss) Validate(d Durability) error {
	switch {
	case l == Loss{}:
		return nil
	case d.Waits():
		return fmt.Errorf("max-loss is for durability async: with %s nothing acknowledged is lost; remove it", d)
	case l.Time < 0 || l.Time > 0 && l.Time < Duration(10*time.Millisecond):
		return fmt.Errorf("max-loss.time %s < 10ms: a replica's answer can take that long; raise it", l.Time)
	case l.Bytes < 0 || l.Bytes > 0 && l.Bytes < 64<<10:
		return fmt.Errorf("max-loss.bytes %d < 64kb: less than one pipeline of a busy client; raise it", l.Bytes)
	}
	return nil
}
