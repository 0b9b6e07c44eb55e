// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"redoubt/internal/reshard"
	"redoubt/internal/topk"
)

// Survey is what a server's keys weigh.
type Survey struct {
	Addr  string      `json:"addr"`
	Keys  int64       `json:"keys"`  // that were weighed
	Total int64       `json:"total"` // that it has
	Bytes int64       `json:"bytes"` // of those that were weighed
	Big   []topk.Size `json:"big"`
}

const surveyKept = 256

// Weigh goes through the keys of one server, a replica if possible, and asks how much memory each takes: at most so many keys, and no faster than
// rate allows.
func Weigh(ctx context.Context, at Endpoint, most int64, rate reshard.Rate) (Survey, error) {
	l, err := at.any(ctx, "redoubt-bigkeys")
	if err != nil {
		return Survey{}, err
	}
	defer l.close()
	s := Survey{Addr: l.addr}
	if _, err := l.ask(ctx, "READONLY"); err != nil { // for a replica of a cluster; others do not know it
		var refused serverError
		if !errors.As(err, &refused) {
			return s, err
		}
	}
	rep, err := l.ask(ctx, "INFO", "keyspace")
	if err != nil {
		return s, err
	}
	dbs := keyspace(rep.body)
	for _, n := range dbs {
		s.Total += n
	}
	big := topk.NewSizes(surveyKept)
	for db := range dbs {
		for cursor := "0"; s.Keys < most; {
			began := time.Now()
			keys, next, err := scanPage(ctx, l, db, cursor)
			if err != nil {
				return s, err
			}
			keys = keys[:min(int64(len(keys)), most-s.Keys)]
			bytes, err := weighPage(ctx, l, db, keys, big)
			if err != nil {
				return s, err
			}
			s.Keys, s.Bytes = s.Keys+int64(len(keys)), s.Bytes+bytes
			if cursor = next; next == "0" {
				break
			}
			if err := rest(ctx, rate.Rest(int64(len(keys)), 0, time.Since(began))); err != nil {
				return s, err
			}
		}
	}
	s.Big = big.Top(surveyKept)
	return s, nil
}

// weighPage weighs some keys of one database, in parts that a server answers at once. What is among the largest is named by its type.
func weighPage(ctx context.Context, l *link, db int, keys []string, big *topk.Sizes) (sum int64, err error) {
	for part := range slices.Chunk(keys, batchKeys) {
		for _, k := range part {
			l.add("MEMORY", "USAGE", k)
		}
		reps, err := l.must(ctx)
		if err != nil {
			return sum, err
		}
		for i, k := range part {
			if reps[i].null {
				continue // it is gone
			}
			sum += reps[i].num
			if reps[i].num <= big.Floor() {
				continue
			}
			kind, err := l.ask(ctx, "TYPE", k)
			if err != nil {
				return sum, err
			}
			what := string(kind.body)
			if db != 0 {
				what += fmt.Sprintf(", database %s", strconv.Itoa(db))
			}
			big.Add([]byte(k), reps[i].num, what)
		}
	}
	return sum, nil
}
