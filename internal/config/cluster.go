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

// busAbove is how far the port of a server's bus is above its own, unless the file says something else: as servers have it.
const busAbove = 10_000

func (d *Deployment) completeCluster() {
	d.Cluster.UID = cmp.Or(d.Cluster.UID, d.Name)
	for i := range d.Shards {
		for j := range d.Shards[i].Nodes {
			n := &d.Shards[i].Nodes[j]
			if _, port, err := net.SplitHostPort(n.Addr); err == nil && n.BusPort == 0 {
				if p, err := strconv.Atoi(port); err == nil && p+busAbove <= 65535 {
					n.BusPort = p + busAbove
				}
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
	if d.Node != nil && d.Node.Kind == "attached" {
		f.add(path+".node.kind", "attached servers are not in this version of mode cluster: use managed")
	}
	if d.Durability != topo.Async {
		f.add(path+".durability", "%s is not in this version of mode cluster: use async", d.Durability)
	}
	if d.MaxLoss != (MaxLoss{}) { // what measures it does not reach replicas through a cluster's PUBLISH
		f.add(path+".max-loss", "is not in this version of mode cluster: remove it")
	}
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
				f.add(at+".bus-port", "is missing: %s + %d is no port", port, busAbove)
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

func validateNoBus(f *findings, path string, nodes []Node) {
	for i, n := range nodes {
		if n.BusPort != 0 {
			f.add(fmt.Sprintf("%s.nodes[%d].bus-port", path, i), "belongs to mode cluster")
		}
	}
}
