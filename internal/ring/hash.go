// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"crypto/md5"
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// hash is the value that twemproxy's function of this name has for a key that is not empty. Several of them are not what
// their names promise; the differences are stated at each.
func (r *Ring) hash(key []byte) uint32 {
	switch r.spec.Hash {
	case OneAtATime:
		return oneAtATime(key, r.sign)
	case MD5:
		sum := md5.Sum(key)
		return binary.LittleEndian.Uint32(sum[:])
	case CRC16:
		return crc16(key)
	case CRC32:
		return crc32.ChecksumIEEE(key) >> 16 & 0x7fff // 15 bits, as libmemcached has it
	case CRC32a:
		return crc32.ChecksumIEEE(key)
	case FNV1x64:
		return fnv1(key, fnvInit64, fnvPrime64, r.sign)
	case FNV1ax64:
		return fnv1a(key, fnvInit64, fnvPrime64, r.sign)
	case FNV1x32:
		return fnv1(key, fnvInit32, fnvPrime32, r.sign)
	case FNV1ax32:
		return fnv1a(key, fnvInit32, fnvPrime32, r.sign)
	case Hsieh:
		return hsieh(key, r.sign)
	case Murmur:
		return murmur(key)
	}
	return jenkins(key)
}

// extend widens a character as C does where characters have a sign (sign has all bits), or have none (sign is 255).
func extend(c byte, sign uint32) uint32 { return uint32(int32(int8(c))) & sign }

// The constants of FNV. Of the functions of 64 bits twemproxy keeps the lower 32, which depend on no others: they are the
// functions of 32 bits with the lower halves of the constants.
const (
	fnvInit32  = 2166136261
	fnvPrime32 = 16777619
	fnvInit64  = 0xcbf29ce484222325 & 0xffffffff
	fnvPrime64 = 0x100000001b3 & 0xffffffff
)

func fnv1(key []byte, h, prime, sign uint32) uint32 {
	for _, c := range key {
		h = h*prime ^ extend(c, sign)
	}
	return h
}

func fnv1a(key []byte, h, prime, sign uint32) uint32 {
	for _, c := range key {
		h = (h ^ extend(c, sign)) * prime
	}
	return h
}

func oneAtATime(key []byte, sign uint32) (h uint32) {
	for _, c := range key {
		h += extend(c, sign)
		h += h << 10
		h ^= h >> 6
	}
	h += h << 3
	h ^= h >> 11
	return h + h<<15
}

// crc16 is the CRC of Redis Cluster (XMODEM) in a register of 32 bits that is never cut: its upper half is what was
// shifted out of the lower.
func crc16(key []byte) (crc uint32) {
	for _, c := range key {
		crc = crc<<8 ^ uint32(crc16Step(byte(crc>>8)^c))
	}
	return crc
}

// crc16Step is what the polynomial 0x1021 makes of one byte.
func crc16Step(b byte) uint16 {
	x := uint16(b) ^ uint16(b)>>4
	return x<<12 ^ x<<5 ^ x
}

func hsieh(key []byte, sign uint32) (h uint32) {
	pair := func(i int) uint32 { return uint32(binary.LittleEndian.Uint16(key[i:])) }
	for ; len(key) >= 4; key = key[4:] {
		h += pair(0)
		h = h<<16 ^ pair(2)<<11 ^ h
		h += h >> 11
	}
	switch len(key) {
	case 3:
		h += pair(0)
		h ^= h << 16
		h ^= extend(key[2], sign) << 18
		h += h >> 11
	case 2:
		h += pair(0)
		h ^= h << 11
		h += h >> 17
	case 1:
		h += uint32(key[0])
		h ^= h << 10
		h += h >> 1
	}
	h ^= h << 3
	h += h >> 5
	h ^= h << 4
	h += h >> 17
	h ^= h << 25
	return h + h>>6
}

// murmur is MurmurHash2 of 32 bits, seeded by the key's length.
func murmur(key []byte) uint32 {
	const m, r = 0x5bd1e995, 24
	n := uint32(len(key))
	h := 0xdeadbeef*n ^ n
	for ; len(key) >= 4; key = key[4:] {
		k := binary.LittleEndian.Uint32(key) * m
		k ^= k >> r
		h = h*m ^ k*m
	}
	if len(key) > 0 {
		for i, c := range key {
			h ^= uint32(c) << (8 * i)
		}
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

// jenkins is the function hashlittle of Bob Jenkins' lookup3, with the initial value 13.
func jenkins(key []byte) uint32 {
	a := 0xdeadbeef + uint32(len(key)) + 13
	b, c := a, a
	for ; len(key) > 12; key = key[12:] {
		a += binary.LittleEndian.Uint32(key)
		b += binary.LittleEndian.Uint32(key[4:])
		c += binary.LittleEndian.Uint32(key[8:])
		a, b, c = jenkinsMix(a, b, c)
	}
	var last [12]byte
	copy(last[:], key)
	a += binary.LittleEndian.Uint32(last[:])
	b += binary.LittleEndian.Uint32(last[4:])
	c += binary.LittleEndian.Uint32(last[8:])

	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	return (c ^ b) - bits.RotateLeft32(b, 24)
}

func jenkinsMix(a, b, c uint32) (uint32, uint32, uint32) {
	a = (a - c) ^ bits.RotateLeft32(c, 4)
	c += b
	b = (b - a) ^ bits.RotateLeft32(a, 6)
	a += c
	c = (c - b) ^ bits.RotateLeft32(b, 8)
	b += a
	a = (a - c) ^ bits.RotateLeft32(c, 16)
	c += b
	b = (b - a) ^ bits.RotateLeft32(a, 19)
	a += c
	c = (c - b) ^ bits.RotateLeft32(b, 4)
	b += a
	return a, b, c
}
