// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	"redoubt/internal/converge"
	"redoubt/internal/topo"
)

// What durability quorum+disk asks of one server.

// noDisk names a server that cannot keep the promise about its disk. It takes no writes as a primary, so it counts as impaired.
const noDisk = "no-disk"

// noteDisk names in a report what keeps this server from saying what is on its disk, where that is asked.
func noteDisk(s *topo.Sighting, in converge.Input) {
	if in.Shard != nil && in.Shard.OnDisk() && s.Disk == topo.DiskUnable {
		s.Problems = append(s.Problems[:len(s.Problems):len(s.Problems)], noDisk+": "+s.NoDisk)
	}
}

// syncs makes sure that a server syncs every write before anybody may count on its word: a server that follows tells its primary
// what is on its disk, and one that syncs once a second may say so too early (SAFETY A12). Once for each process is enough,
// because configure looks again.
func (a *Agent) syncs(ctx context.Context, in converge.Input) error {
	if in.Shard == nil || !in.Shard.OnDisk() || in.Seen.RunID == a.synced {
		return nil
	}
	if err := a.o.Node.Configure(ctx, demands(in)); err != nil {
		return fmt.Errorf("have every write synced (durability quorum+disk): %w", err)
	}
	a.synced = in.Seen.RunID
	return nil
}
