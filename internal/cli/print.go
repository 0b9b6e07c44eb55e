// SPDX-License-Identifier: Apache-2.0

// The rules of output. The result of a verb goes to standard output, and nothing else does: progress, questions,
// warnings and errors go to standard error. --json prints one JSON value and nothing else. Colour appears only on a
// terminal, never when NO_COLOR is set, and never carries what the words do not say.

package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// colour is an SGR code.
type colour string

const (
	plain  colour = ""
	bold   colour = "1"
	dim    colour = "2"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
)

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func coloured(w io.Writer) bool { return isTerminal(w) && os.Getenv("NO_COLOR") == "" }

func paint(on bool, c colour, s string) string {
	if !on || c == plain {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// cell is a text with a colour, so that columns are aligned by what is seen.
type cell struct {
	text string
	c    colour
}

// table prints rows in aligned columns; the first row is the heading.
func table(w io.Writer, on bool, rows [][]cell) {
	var widths []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(c.text)))
		}
	}
	for n, r := range rows {
		var b strings.Builder
		for i, c := range r {
			colour := c.c
			if n == 0 {
				colour = dim
			}
			b.WriteString(paint(on, colour, c.text))
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-len([]rune(c.text))+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// confirm prints the plan and asks. Without a terminal to answer on, --yes is needed.
func (e *env) confirm(plan string) error {
	if e.yes {
		return nil
	}
	fmt.Fprintln(e.err, plan)
	if f, ok := e.in.(*os.File); ok && !isTerminal(f) {
		return fail(ExitUsage, "this asks before it acts, and there is no terminal to answer on: add --yes")
	}
	fmt.Fprint(e.err, "Go on? [y/N] ")
	line, _ := bufio.NewReader(e.in).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return fail(ExitDeclined, "nothing was done")
}

func since(ms int64) string {
	return time.UnixMilli(ms).Format("2006-01-02 15:04:05.000")
}

func count(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
