// SPDX-License-Identifier: Apache-2.0

// Package slots is the words of cluster mode: the slot of a key, which shard has which slots, and what servers say and keep
// about the nodes of a cluster (CLUSTER NODES, nodes.conf). It is not for deciding who moves what, nor for a ring's placement (ring
// does that). Its invariant: a Map gives each slot to one shard, or to none, and never changes. No goroutines.
package slots
