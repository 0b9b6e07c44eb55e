// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"

	"redoubt/internal/reshard"
	"redoubt/internal/topo"
)

// Operations of slots are measured while somebody asks, by the members' proxies (see LoadReport). A plan carries what it was made of, so that what
// was shown is what is carried out.

const lookDefault = 5 * time.Second

// SlotRates are the operations per second of each slot, small enough for a request.
type SlotRates struct {
	Unit  float64 `json:"unit"`  // of the parts
	Parts []byte  `json:"parts"` // two bytes for each slot, the higher one first
}

// NewSlotRates keeps rates, by slot.
func NewSlotRates(rates []float64) *SlotRates {
	most := 0.0
	for _, r := range rates {
		most = max(most, r)
	}
	k := &SlotRates{Unit: most / math.MaxUint16, Parts: make([]byte, 0, 2*len(rates))}
	for _, r := range rates {
		part := 0.0
		if most > 0 {
			part = math.Round(r / k.Unit)
		}
		k.Parts = binary.BigEndian.AppendUint16(k.Parts, uint16(part))
	}
	return k
}

// All returns the rates, by slot; nil: that is not what they are.
func (k *SlotRates) All() []float64 {
	if k == nil || len(k.Parts) != 2*reshard.SlotCount || k.Unit < 0 || math.IsNaN(k.Unit) || math.IsInf(k.Unit, 0) {
		return nil
	}
	all := make([]float64, reshard.SlotCount)
	for s := range all {
		all[s] = k.Unit * float64(binary.BigEndian.Uint16(k.Parts[2*s:]))
	}
	return all
}

// measure completes a request that is to balance operations without saying what they are. note says how they were measured.
func (s *Server) measure(ctx context.Context, r *ReshardRequest) (note string, err error) {
	if r.Measure != reshard.ByOperations || r.Rates != nil {
		return "", nil
	}
	d := cmp.Or(r.Look.D(), lookDefault)
	if d < 0 || d > waitMax {
		return "", refuse("bad-request", "look %s: use a time of at most %s", d, waitMax)
	}
	rates, seen := make([]float64, reshard.SlotCount), 0.0
	rep := joinLoads(s.loads(ctx, d, ""))
	for _, sh := range rep.Shards {
		for slot, n := range sh.Slots {
			if slot < len(rates) && sh.MS > 0 {
				rates[slot] += float64(n) * 1000 / float64(sh.MS)
				seen += float64(n)
			}
		}
	}
	switch {
	case len(rep.Members) == 0:
		return "", &Error{503, "no-load", "nobody could measure: " + strings.Join(rep.Missing, "; ")}
	case seen == 0:
		return "", refuse("no-load", "no command about a key came by the proxies within %s: there is nothing to balance by; measure when there is load", d)
	}
	r.Rates, r.Look = NewSlotRates(rates), topo.Duration(d)
	note = fmt.Sprintf("operations as %s saw them within %s", strings.Join(rep.Members, ", "), d)
	if len(rep.Missing) > 0 {
		note += "; not those of " + strings.Join(rep.Missing, "; ")
	}
	return note, nil
}
