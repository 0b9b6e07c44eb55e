// SPDX-License-Identifier: Apache-2.0

package api

import (
	"strings"
	"testing"
)

// TestTheStatusSaysWhoHoldsTheAddress, and what a person should know when nobody does.
func TestTheStatusSaysWhoHoldsTheAddress(t *testing.T) {
	for want, a := range map[string]*AddressStatus{
		"": {IP: "10.0.0.9/24", Holder: "n2"}, "n1 has to let go of it first (n1 is ill)": {IP: "10.0.0.9/24", Leaving: "n1", Why: "n1 is ill"}, "no member is fit to": {IP: "10.0.0.9/24"},
	} {
		s := &Server{o: Options{Address: func() *AddressStatus { return a }}}
		st := s.withAddress(Status{Problems: []string{"other"}})
		if all := strings.Join(st.Problems, "; "); st.Address != a || !strings.HasPrefix(all, "other") || !strings.Contains(all, want) || (want == "") != (len(st.Problems) == 1) {
			t.Errorf("%+v: %q, want %q", a, all, want)
		}
	}
	none := &Server{o: Options{Address: func() *AddressStatus { return nil }}}
	if st := none.withAddress(Status{}); st.Address != nil || len(st.Problems) > 0 {
		t.Errorf("without an address: %+v", st)
	}
}
