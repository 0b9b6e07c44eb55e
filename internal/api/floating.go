// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"slices"
)

// AddressStatus is the floating address, as the member that answered knows it.
type AddressStatus struct {
	IP        string `json:"ip"` // with the length of its network
	Interface string `json:"interface"`
	Holder    string `json:"holder"` // member id; "" while nobody may hold it
	Epoch     uint64 `json:"epoch"`  // grows with every change
	Why       string `json:"why,omitempty"`
	Leaving   string `json:"leaving,omitempty"` // who has to let go of it before somebody else may hold it
	Stale     bool   `json:"stale,omitempty"`   // the store did not confirm it lately
}

// withAddress adds who holds the floating address, where there is one.
func (s *Server) withAddress(st Status) Status {
	if s.o.Address == nil {
		return st
	}
	if st.Address = s.o.Address(); st.Address == nil {
		return st
	}
	switch a := st.Address; {
	case a.Leaving != "":
		st.Problems = append(slices.Clone(st.Problems), fmt.Sprintf("nobody holds the address %s: %s has to let go of it first (%s)", a.IP, a.Leaving, a.Why))
	case a.Holder == "":
		st.Problems = append(slices.Clone(st.Problems), fmt.Sprintf("nobody holds the address %s: no member is fit to", a.IP))
	}
	return st
}
