// SPDX-License-Identifier: Apache-2.0

package config

import (
	"reflect"
	"strings"
)

func keysOf(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		keys = append(keys, t.Field(i).Tag.Get("yaml"))
	}
	return keys
}

func fieldOf(t reflect.Type, key string) int {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("yaml") == key {
			return i
		}
	}
	return -1
}

// suggest names the known key that was probably meant, or all of them.
func suggest(key string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if n := edits(strings.ToLower(strings.ReplaceAll(key, "_", "-")), k); n < distance {
			best, distance = k, n
		}
	}
	if best != "" {
		return ": did you mean " + best + "?"
	}
	return "; there are: " + strings.Join(known, ", ")
}

// edits is the Levenshtein distance of two short words.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
