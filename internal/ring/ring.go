// SPDX-License-Identifier: Apache-2.0

// Package ring says which shard a key belongs to when the shards are plain servers: by the arithmetic of twemproxy, and
// by that of Envoy's Redis proxy, bit for bit, so that data which one of them has placed are found. It is not for
// Cluster's slots, for health or for connections. Its invariant: a Ring never changes; the same Spec gives the same
// placement in every process and on every architecture. It has no goroutines; looking up a key allocates nothing.
package ring

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// None is the shard of every key when no node is left.
const None = -1

// Distribution says how a key's hash becomes a node. Each is named after what it matches.
type Distribution string

// The distributions. The first three are twemproxy's, under its names; the others are Envoy's load balancers RING_HASH and
// MAGLEV as its Redis proxy uses them.
const (
	Ketama      Distribution = "ketama"
	Modula      Distribution = "modula"
	Random      Distribution = "random"
	EnvoyRing   Distribution = "envoy-ring"
	EnvoyMaglev Distribution = "envoy-maglev"
)

// Hash is the name of a hash function.
type Hash string

// The hash functions: twemproxy's twelve for the keys of ketama, modula and random, and Envoy's two for the points of
// envoy-ring (Envoy hashes keys by murmur2 in any case).
const (
	OneAtATime Hash = "one_at_a_time"
	MD5        Hash = "md5"
	CRC16      Hash = "crc16"
	CRC32      Hash = "crc32"
	CRC32a     Hash = "crc32a"
	FNV1x64    Hash = "fnv1_64"
	FNV1ax64   Hash = "fnv1a_64"
	FNV1x32    Hash = "fnv1_32"
	FNV1ax32   Hash = "fnv1a_32"
	Hsieh      Hash = "hsieh"
	Murmur     Hash = "murmur"
	Jenkins    Hash = "jenkins"

	XXHash64 Hash = "xxhash64"
	Murmur2  Hash = "murmur2"
)

// Bounds of a Spec.
const (
	nodesMax = 4096
	nameMax  = 255 // twemproxy cuts longer ones
)

// Node is one shard as the distribution sees it.
type Node struct {
	Name   string // see NodeName for twemproxy; Envoy's is the resolved address "ip:port", or its hash_key or hostname
	Weight uint32 // 1 or more
}

// Spec is everything that placement depends on.
type Spec struct {
	Nodes        []Node
	Distribution Distribution
	Hash         Hash
	HashTag      string // "" or two bytes: only what stands between them is hashed. Envoy's enable_hashtagging is "{}"

	// UnsignedChars is for a twemproxy that ran on ARM, where C's characters have no sign: there, one_at_a_time, hsieh
	// and the fnv functions place keys with bytes above 127 differently.
	UnsignedChars bool

	MinRing, MaxRing uint64 // of envoy-ring: minimum_ring_size (0: 1024) and maximum_ring_size (0: 8 Mi)
	Table            uint64 // of envoy-maglev: table_size (0: 65537)
}

// Hashes returns the hash functions that a distribution can have; none if it has no choice or is unknown.
func Hashes(d Distribution) []Hash {
	switch d {
	case Ketama, Modula, Random:
		return []Hash{OneAtATime, MD5, CRC16, CRC32, CRC32a, FNV1x64, FNV1ax64, FNV1x32, FNV1ax32, Hsieh, Murmur, Jenkins}
	case EnvoyRing:
		return []Hash{XXHash64, Murmur2}
	}
	return nil
}

// NodeName returns what twemproxy takes for a server's name: the given one, else "host:port", with two peculiarities: the
// port 11211 (memcached's) is left out, and a Unix socket, which has no port, keeps the colon. The port is the text of
// the configuration: 06379 and 6379 are different names.
func NodeName(name, host, port string) string {
	switch {
	case name != "":
		return name
	case strings.TrimLeft(port, "0") == "11211":
		return host
	}
	return host + ":" + port
}

// Ring is a placement. It is safe for concurrent use.
type Ring struct {
	spec Spec
	out  []bool // per node: left out
	live []int  // the others, in the order of the distribution
	sign uint32 // what remains of a character's sign: see extend

	points continuum // ketama, envoy-ring
	sums   []uint32  // modula: per live node, the weights up to and including it
	table  []uint16  // envoy-maglev
}

// New builds the ring of all nodes.
func New(spec Spec) (*Ring, error) {
	spec.Nodes = slices.Clone(spec.Nodes)
	if err := spec.complete(); err != nil {
		return nil, err
	}
	return build(spec, make([]bool, len(spec.Nodes))), nil
}

// complete sets the defaults and says what is wrong.
func (s *Spec) complete() error {
	if !slices.Contains([]Distribution{Ketama, Modula, Random, EnvoyRing, EnvoyMaglev}, s.Distribution) {
		return fmt.Errorf("no distribution %q: use ketama, modula, random, envoy-ring or envoy-maglev", s.Distribution)
	}
	hashes := Hashes(s.Distribution)
	if s.Distribution == EnvoyMaglev && s.Hash != "" {
		return errors.New("envoy-maglev has no choice of a hash: leave it out")
	}
	if len(hashes) > 0 && !slices.Contains(hashes, s.Hash) {
		return fmt.Errorf("%s has no hash %q: use one of %v", s.Distribution, s.Hash, hashes)
	}
	if n := len(s.HashTag); n != 0 && n != 2 {
		return fmt.Errorf("hash tag %q: use two characters, for example {}", s.HashTag)
	}
	if err := s.completeSizes(); err != nil {
		return err
	}
	return s.checkNodes()
}

func (s *Spec) completeSizes() error {
	s.MinRing, s.MaxRing, s.Table = cmp.Or(s.MinRing, envoyMinRing), cmp.Or(s.MaxRing, envoyMaxRing), cmp.Or(s.Table, envoyTable)
	switch {
	case s.MaxRing > envoyMaxRing:
		return fmt.Errorf("maximum ring size %d: use %d at most", s.MaxRing, envoyMaxRing)
	case s.MinRing > s.MaxRing:
		return fmt.Errorf("minimum ring size %d is above the maximum, %d", s.MinRing, s.MaxRing)
	case s.Table > envoyTableMax || !isPrime(s.Table):
		return fmt.Errorf("table size %d: use a prime number of %d at most", s.Table, envoyTableMax)
	}
	return nil
}

func (s *Spec) checkNodes() error {
	if n := len(s.Nodes); n == 0 || n > nodesMax {
		return fmt.Errorf("%d nodes: give between 1 and %d", n, nodesMax)
	}
	total, names := uint64(0), make(map[string]bool, len(s.Nodes))
	for i, n := range s.Nodes {
		switch {
		case n.Name == "" || len(n.Name) > nameMax:
			return fmt.Errorf("node %d: its name has %d bytes: give it between 1 and %d", i, len(n.Name), nameMax)
		case names[n.Name]:
			return fmt.Errorf("two nodes are named %q: give each a name of its own", n.Name)
		case n.Weight == 0:
			return fmt.Errorf("node %q has no weight: give it 1 or more", n.Name)
		}
		names[n.Name] = true
		total += uint64(n.Weight)
	}
	if total >= 1<<31 {
		return fmt.Errorf("the weights add up to %d: keep them below %d", total, 1<<31)
	}
	return nil
}

func build(spec Spec, out []bool) *Ring {
	r := &Ring{spec: spec, out: out, sign: ^uint32(0)}
	if spec.UnsignedChars {
		r.sign = 0xff
	}
	for i := range spec.Nodes {
		if !out[i] {
			r.live = append(r.live, i)
		}
	}
	if len(r.live) == 0 {
		return r
	}
	switch spec.Distribution {
	case EnvoyRing:
		r.points = newContinuum(envoyPoints(spec, r.live))
		return r
	case EnvoyMaglev:
		r.table = maglevTable(spec, r.live)
		return r
	}
	// Twemproxy sorts its servers by name, shorter ones first; their order in the file does not matter.
	slices.SortFunc(r.live, func(a, b int) int {
		x, y := spec.Nodes[a].Name, spec.Nodes[b].Name
		return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
	})
	switch spec.Distribution {
	case Ketama:
		r.points = newContinuum(ketamaPoints(spec.Nodes, r.live))
	case Modula:
		sum := uint32(0)
		for _, i := range r.live {
			sum += spec.Nodes[i].Weight
			r.sums = append(r.sums, sum)
		}
	}
	return r
}

// Without returns the ring as it is while these nodes, too, are ejected: what the others get is what twemproxy with
// auto_eject_hosts, or Envoy, gives them. The indices of the nodes stay. To re-admit a node, start from the full ring.
func (r *Ring) Without(nodes ...int) *Ring {
	out := slices.Clone(r.out)
	for _, i := range nodes {
		out[i] = true
	}
	if slices.Equal(out, r.out) {
		return r
	}
	return build(r.spec, out)
}

// Nodes returns the nodes, in the order of the Spec.
func (r *Ring) Nodes() []Node { return slices.Clone(r.spec.Nodes) }

// Live returns how many nodes are not left out.
func (r *Ring) Live() int { return len(r.live) }

// Shard returns the index of the node that a key belongs to, in the order of the Spec, or None when all are left out.
// draw is a number that the caller draws anew for each key; only the distribution random uses it.
func (r *Ring) Shard(key []byte, draw uint32) int {
	switch len(r.live) {
	case 0:
		return None
	case 1:
		return r.live[0]
	}
	key = r.tagged(key)
	switch r.spec.Distribution {
	case Random:
		return r.live[draw%uint32(len(r.live))] // whatever the weights: twemproxy does the same
	case EnvoyRing:
		return r.points.owner(murmur2x64(key))
	case EnvoyMaglev:
		return int(r.table[murmur2x64(key)%uint64(len(r.table))])
	}
	h := uint32(0) // of an empty key, whatever the function
	if len(key) > 0 {
		h = r.hash(key)
	}
	if r.spec.Distribution == Modula {
		i, _ := slices.BinarySearch(r.sums, h%r.sums[len(r.sums)-1]+1)
		return r.live[i]
	}
	return r.points.owner(uint64(h) << 32)
}

// tagged returns the part of a key that is hashed: what stands between the tag's first character and the next second one,
// if both are there and something is between them; else all of it.
func (r *Ring) tagged(key []byte) []byte {
	if r.spec.HashTag == "" {
		return key
	}
	begin := bytes.IndexByte(key, r.spec.HashTag[0]) + 1
	if begin == 0 {
		return key
	}
	if n := bytes.IndexByte(key[begin:], r.spec.HashTag[1]); n > 0 {
		return key[begin : begin+n]
	}
	return key
}
