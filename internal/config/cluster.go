// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"net"
	"strconv"

	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

func (d *Deployment) completeCluster() {
	d.Cluster.UID, d.Cluster.Rebalance = cmp.Or(d.Cluster.UID, d.Name), cmp.Or(d.Cluster.Rebalance, "manual")
	for i := range d.Shards {
		for j := range d.Shards[i].Nodes {
			n := &d.Shards[i].Nodes[j]
			if n.BusPort == 0 {
				n.BusPort = topo.Node{Addr: n.Addr}.Bus()
			}
		}
	}
}

// SlotMap is which shard has which slots when the cluster is created. Later the agreed map holds.
func (d Deployment) SlotMap() (*slots.Map, error) {
	var ids []string
	var ranges [][]slots.Range
	given := 0
	for i, u := range d.Units() {
		ids = append(ids, u.ID())
		rs, err := slots.ParseRanges(d.Shards[i].Slots)
		if err != nil {
			return nil, fmt.Errorf("shard %s: %w", u.Shard, err)
		}
		if d.Shards[i].Slots != "" {
			given++
		}
		ranges = append(ranges, rs)
	}
	switch given {
	case 0:
		return slots.Even(ids...), nil
	case len(ids):
	default:
		return nil, fmt.Errorf("%d of %d shards say which slots they have: let all say it, or none", given, len(ids))
	}
	m, err := slots.New(ids, ranges)
	if err != nil {
		return nil, err
	}
	if missing := m.Missing(); missing != nil {
		return nil, fmt.Errorf("no shard has the slots %s: give each of the %d slots to one", slots.Text(missing), slots.Count)
	}
	return m, nil
}

// validateCluster refuses what mode cluster does not do in this version. addrs are those of all nodes.
func (d Deployment) validateCluster(f *findings, path string, addrs map[string]string) {
	if d.Ring != (Ring{}) {
		f.add(path+".ring", "belongs to mode ring: a cluster places keys by slot")
	}
	f.id(path+".cluster.uid", d.Cluster.UID)
	if d.Node != nil && d.Node.Kind == "attached" && d.Node.PIDFile != "" {
		f.add(path+".node.pid-file", "there may be several servers here in mode cluster, which are asked for their process: remove it")
	}
	if r := d.Cluster.Rebalance; r != "manual" && r != "auto" {
		f.add(path+".cluster.rebalance", "%q: use manual or auto", r)
	}
	d.validateServerIDs(f, path)
	for i, s := range d.Shards {
		at := fmt.Sprintf("%s.shards[%d]", path, i)
		if s.Weight != 0 || s.RingName != "" {
			f.add(at+".weight", "weight and ring-name belong to mode ring: use slots")
		}
		for j, n := range s.Nodes {
			at := fmt.Sprintf("%s.nodes[%d]", at, j)
			host, port, err := net.SplitHostPort(n.Addr)
			if err != nil {
				continue // has been said
			}
			if net.ParseIP(host) == nil {
				f.add(at+".addr", "%q: servers of a cluster tell each other IP addresses, so it has to be one", host)
			}
			switch bus := strconv.Itoa(n.BusPort); {
			case n.BusPort == 0:
				f.add(at+".bus-port", "is missing: %s + %d is no port", port, topo.BusAbove)
			case n.BusPort < 1 || n.BusPort > 65535:
				f.add(at+".bus-port", "%d: the port must be a number from 1 to 65535", n.BusPort)
			default:
				f.unique(addrs, at+".bus-port", "address "+net.JoinHostPort(host, bus))
			}
		}
	}
	if len(d.Shards) == 0 {
		return
	}
	if _, err := d.SlotMap(); err != nil {
		f.add(path+".shards", "%s", err)
	}
}

// validateServerIDs: a server that was there before keeps its id, and one that Redoubt founds has an id that follows from its names.
func (d Deployment) validateServerIDs(f *findings, path string) {
	ids := map[string]string{}
	for i, s := range d.Shards {
		for j, n := range s.Nodes {
			at := fmt.Sprintf("%s.shards[%d].nodes[%d].server-id", path, i, j)
			here := d.Node != nil && d.Node.ID == n.ID
			switch {
			case n.ServerID != "" && !slots.IsID(n.ServerID):
				f.add(at, "%q: must be 40 hexadecimal digits, as CLUSTER MYID says", n.ServerID)
			case here && d.Node.Kind == "attached" && n.ServerID == "":
				f.add(at, "is missing: an attached server of a cluster has an id of its own (CLUSTER MYID); redoubt adopt --cluster writes it")
			case here && d.Node.Kind == "managed" && n.ServerID != "":
				f.add(at, "belongs to an attached server: remove it, or use kind: attached")
			}
			if n.ServerID != "" {
				f.unique(ids, at, "server-id "+n.ServerID)
			}
		}
	}
}

func validateNoBus(f *findings, path string, nodes []Node) {
	for i, n := range nodes {
		if n.BusPort != 0 {
			f.add(fmt.Sprintf("%s.nodes[%d].bus-port", path, i), "belongs to mode cluster")
		}
		if n.ServerID != "" {
			f.add(fmt.Sprintf("%s.nodes[%d].server-id", path, i), "belongs to mode cluster")
		}
	}
}
