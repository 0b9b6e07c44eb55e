// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
)

const (
	weighSample = 5   // keys of a slot
	weighAtOnce = 256 // slots of one round
)

// WeighSlots estimates how many bytes each of these slots has at their primary, from some of its keys, and notes it in cost, by slot.
func WeighSlots(ctx context.Context, addr string, login [][]string, slots []int, cost []float64) error {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", addr, err)
	}
	l := &link{nc: nc, r: bufio.NewReaderSize(nc, 64<<10), addr: addr}
	defer l.close()
	for _, cmd := range login {
		l.add(cmd...)
	}
	if _, err := l.must(ctx); err != nil {
		return err
	}
	for len(slots) > 0 {
		n := min(len(slots), weighAtOnce)
		if err := weighSlots(ctx, l, slots[:n], cost); err != nil {
			return err
		}
		slots = slots[n:]
	}
	return nil
}

func weighSlots(ctx context.Context, l *link, slots []int, cost []float64) error {
	for _, s := range slots {
		l.add("CLUSTER", "COUNTKEYSINSLOT", strconv.Itoa(s))
		l.add("CLUSTER", "GETKEYSINSLOT", strconv.Itoa(s), strconv.Itoa(weighSample))
	}
	reps, err := l.must(ctx)
	if err != nil {
		return err
	}
	for i := range slots {
		for _, key := range bodies(reps[2*i+1].items) {
			l.addValues([]string{"MEMORY", "USAGE"}, key)
		}
	}
	sizes, err := l.must(ctx)
	if err != nil {
		return err
	}
	for i, s := range slots {
		sum, n := int64(0), len(reps[2*i+1].items)
		for range n {
			sum, sizes = sum+sizes[0].num, sizes[1:]
		}
		if n > 0 {
			cost[s] = float64(sum) / float64(n) * float64(reps[2*i].num)
		}
	}
	return nil
}
