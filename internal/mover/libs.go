// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// functions gives the target the libraries of the source. Those of the same name are replaced.
func (w *Whole) functions(ctx context.Context) error {
	w.libs.Store(false)
	for _, g := range w.legs {
		dump, err := g.src.ask(ctx, "FUNCTION", "DUMP")
		var refused serverError
		if errors.As(err, &refused) && strings.HasPrefix(string(refused), "ERR unknown command") {
			continue // a server before 7.0 has none
		}
		if err != nil {
			return fmt.Errorf("read the libraries of functions: %w", err)
		}
		list, err := g.src.ask(ctx, "FUNCTION", "LIST")
		if err != nil {
			return fmt.Errorf("read the libraries of functions: %w", err)
		}
		if len(list.items) == 0 {
			continue
		}
		w.tgt.addValues([]string{"FUNCTION", "RESTORE"}, dump.body, []byte("REPLACE"))
		if _, err := w.tgt.must(ctx); err != nil {
			return fmt.Errorf("give the target %d libraries of functions: %w", len(list.items), err)
		}
		w.o.Note(fmt.Sprintf("%d libraries of functions were copied", len(list.items)))
	}
	return nil
}
