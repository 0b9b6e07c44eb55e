// SPDX-License-Identifier: Apache-2.0

// Package slots is the words of cluster mode: sets of slots, and what servers say and keep about the nodes of a cluster
// (CLUSTER NODES, nodes.conf). It is not for decisions and touches nothing. No goroutines.
package slots
