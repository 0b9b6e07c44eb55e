// SPDX-License-Identifier: Apache-2.0

package redis

// AckChannel is where the marker of a server by itself is published.
const AckChannel = "__redoubt:ack"

// NoFunctions is what FUNCTION DUMP says of a server without functions: the format's version (10, of Redis 7.0) and a checksum. Newer
// servers take older versions.
const NoFunctions = "\n\x00]\x9b\\@\x0f\x7f\xa2\xda"

// Marker is a command that always moves a primary's offset, whatever it was before, and touches no key, so that a WAIT behind it covers
// everything before it (SAFETY A4). A server by itself sends PUBLISH to its replicas. A cluster's servers do not, they tell each other by
// their bus; there it is FUNCTION RESTORE of nothing, which adds no function, and belongs to no slot.
func Marker(cluster bool) []string {
	if cluster {
		return []string{"FUNCTION", "RESTORE", NoFunctions}
	}
	return []string{"PUBLISH", AckChannel, "1"}
}

// FullMarker is a marker for a cluster's server that has no memory left and therefore refuses Marker, but not what frees some: a key of
// that slot comes and goes in one step.
func FullMarker(tag string) []string {
	return []string{"EVAL", "#!lua flags=allow-oom\nredis.call('SET',KEYS[1],'')\nredis.call('DEL',KEYS[1])\nreturn redis.status_reply('OK')", "1", AckChannel + ":{" + tag + "}"}
}
