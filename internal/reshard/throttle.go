// SPDX-License-Identifier: Apache-2.0

package reshard

import "time"

// Rate bounds what a move takes from the servers' time. Zero is no bound.
type Rate struct {
	KeysPerSecond  float64
	BytesPerSecond float64
	// Stall is how long one request to a server may take. When requests take longer, the server is left alone for as long as
	// they took, so that clients get at least the half of its time.
	Stall time.Duration
}

// restMax bounds one rest, so that a single slow answer does not stop a move.
const restMax = time.Second

// Rest returns how long to leave the servers alone behind a request that copied so many keys and bytes and took so long.
func (r Rate) Rest(keys, bytes int64, took time.Duration) time.Duration {
	var least time.Duration
	if r.KeysPerSecond > 0 {
		least = time.Duration(float64(keys) / r.KeysPerSecond * float64(time.Second))
	}
	if r.BytesPerSecond > 0 {
		least = max(least, time.Duration(float64(bytes)/r.BytesPerSecond*float64(time.Second)))
	}
	rest := max(0, least-took)
	if r.Stall > 0 && took > r.Stall {
		rest = max(rest, min(took, restMax))
	}
	return rest
}
