// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"math"
	"testing"

	"redoubt/internal/reshard"
)

// TestRatesOfSlotsFitIntoARequest: rates come back to a part in 65535 of the greatest, in less than a request may have.
func TestRatesOfSlotsFitIntoARequest(t *testing.T) {
	rates := make([]float64, reshard.SlotCount)
	for s := range rates {
		rates[s] = float64(s*s%1000) * 12.5
	}
	body, err := json.Marshal(ReshardRequest{Rates: NewSlotRates(rates)})
	if err != nil || len(body) > bodyMax*9/10 {
		t.Fatalf("%d bytes, %v", len(body), err)
	}
	var back ReshardRequest
	if err := json.Unmarshal(body, &back); err != nil {
		t.Fatal(err)
	}
	got := back.Rates.All()
	for s, want := range rates {
		if math.Abs(got[s]-want) > 999*12.5/math.MaxUint16 {
			t.Fatalf("slot %d: %v, was %v", s, got[s], want)
		}
	}
	if all := NewSlotRates(make([]float64, reshard.SlotCount)).All(); len(all) != reshard.SlotCount || all[7] != 0 {
		t.Error("no rates at all")
	}
	if (&SlotRates{Unit: 1, Parts: []byte{1}}).All() != nil || (*SlotRates)(nil).All() != nil {
		t.Error("what is no rate of all slots was taken for that")
	}
}
