// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/salvage"
	"redoubt/internal/topo"
)

// salvageTime bounds the reading of a file, which may be long.
const salvageTime = 2 * time.Minute

// passwordVariable is where redis-cli looks for the password, too.
const passwordVariable = "REDISCLI_AUTH"

// salvageFlags choose what is shown or sent.
type salvageFlags struct {
	keys   []string
	proxy  string
	last   int
	dryRun bool
}

func (e *env) salvage() *cobra.Command {
	c := &cobra.Command{
		Use: "salvage", Short: "Look at writes that a failover discarded, and send them again",
		Long: "When a failover leaves writes behind at the old primary, they are kept in a file at that member before the node follows\n" +
			"the new primary. Nothing is sent again by itself: the same keys may have been written since.\n\n" +
			"Where the deployment has a password, set " + passwordVariable + " to it.",
		RunE: needsVerb,
	}
	list := e.reads(&cobra.Command{
		Use: "list", Short: "List the files of all members", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return look(e, c, (*api.Client).Salvaged, e.printSalvaged) },
	})
	var f salvageFlags
	show := e.reads(&cobra.Command{
		Use: "show ID", Short: "Show the commands of a file, and what its keys hold now", Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return e.showSalvage(c.Context(), args[0], f) },
	})
	show.Flags().IntVarP(&f.last, "last", "n", 200, "how many of the last commands, and of the keys")
	replay := e.orders(&cobra.Command{
		Use: "replay ID", Short: "Send the commands of a file again", Args: usageArgs(cobra.ExactArgs(1)),
		Long: "Send the commands of a file again, in their order and each on its own, through the proxy. Commands without a key\n" +
			"(FLUSHALL and the like) are left out. What a command does now depends on what its keys hold now: look with\n" +
			"`redoubt salvage show` first. INCR, LPUSH and the like count again; SET and HSET overwrite what is newer.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, args []string) error { return e.replaySalvage(c.Context(), args[0], f) },
	})
	replay.Flags().BoolVar(&f.dryRun, "dry-run", false, "print what would be sent, and send nothing")
	for _, v := range []*cobra.Command{show, replay} {
		v.Flags().StringArrayVar(&f.keys, "key", nil, "only commands that touch this key; may be given several times")
		v.Flags().StringVar(&f.proxy, "proxy", "", "the proxy to use, host:port (default: one that the status names)")
	}
	c.AddCommand(list, show, replay)
	return c
}

func (e *env) printSalvaged(l api.SalvageList) {
	if len(l.Files) == 0 {
		fmt.Fprintln(e.err, "no member reports salvaged writes")
		return
	}
	rows := [][]cell{{{text: "ID"}, {text: "WHEN"}, {text: "NODE"}, {text: "EPOCH"}, {text: "COMMANDS"}, {text: "LOST"}, {text: "KEPT"}, {text: "MEMBER"}, {text: "REPLAYED"}}}
	for _, f := range l.Files {
		replayed := cell{"no", yellow}
		if r := f.Replayed; r != nil {
			replayed = cell{fmt.Sprintf("%s: %d sent, %d refused", since(r.AtMS), r.Sent, r.Failed), plain}
		}
		rows = append(rows, []cell{
			{text: f.ID}, {text: since(f.AtMS)}, {text: string(f.Node)}, {text: fmt.Sprint(f.Epoch)}, {text: count(f.Commands)},
			{text: count(f.Lost()) + " B"}, {text: count(f.Bytes) + " B"}, {text: f.Member}, replayed,
		})
	}
	table(e.out, coloured(e.out), rows)
}

// salvageFile is a file that was read, and the member that has it.
type salvageFile struct {
	api.SalvageFile
	Commands []salvage.Command
	member   *api.Client
}

// readSalvage finds the file with that id, whichever member has it, and reads the commands that touch keys; all without any.
// The caller closes member.
func (e *env) readSalvage(ctx context.Context, client *api.Client, id string, keys []string) (f salvageFile, err error) {
	l, err := client.Salvaged(ctx)
	if err != nil {
		return f, err
	}
	i := slices.IndexFunc(l.Files, func(f api.SalvageFile) bool { return f.ID == id })
	if i < 0 {
		return f, fail(ExitFailed, "no member reports a salvage file %q: see `redoubt salvage list`", id)
	}
	f.SalvageFile = l.Files[i]
	if f.API == "" {
		return f, fail(ExitNobody, "salvage %s lies at member %s, which does not report: start it", id, f.Member)
	}
	f.member = api.NewClient(f.API)
	err = f.member.SalvageFile(ctx, id, os.Getenv(passwordVariable), func(r io.Reader) error {
		head, all, err := salvage.Read(r)
		if err != nil {
			return err
		}
		head.Replayed = f.Replayed
		f.Salvage = head
		f.Commands = slices.DeleteFunc(all, func(c salvage.Command) bool { return len(keys) > 0 && !touches(c, keys) })
		return nil
	})
	if err != nil {
		f.member.Close()
	}
	return f, err
}

func touches(c salvage.Command, keys []string) bool {
	return slices.ContainsFunc(c.Keys, func(k string) bool { return slices.Contains(keys, k) })
}

// place is a key in its database.
type place struct {
	db  int
	key string
}

// places lists the keys of commands in the order of their first appearance, and how many commands touch each.
func places(cmds []salvage.Command) (order []place, counts map[place]int) {
	counts = map[place]int{}
	for _, c := range cmds {
		for _, k := range c.Keys {
			p := place{c.DB, k}
			if counts[p] == 0 {
				order = append(order, p)
			}
			counts[p]++
		}
	}
	return order, counts
}

// keyNow is one key in the answer of `salvage show --json`.
type keyNow struct {
	DB       int    `json:"db"`
	Key      string `json:"key"`
	Commands int    `json:"commands"`
	Now      string `json:"now"`
}

func (e *env) showSalvage(ctx context.Context, id string, flags salvageFlags) error {
	if flags.last < 1 {
		return fail(ExitUsage, "--last %d: use 1 or more", flags.last)
	}
	client, err := e.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, salvageTime)
	defer cancel()
	f, err := e.readSalvage(ctx, client, id, flags.keys)
	if err != nil {
		return err
	}
	defer f.member.Close()
	order, counts := places(f.Commands)
	order = order[max(0, len(order)-flags.last):]
	now, err := e.presentValues(ctx, client, flags.proxy, order)
	if err != nil { // the file can be looked at nevertheless
		fmt.Fprintf(e.err, "what the keys hold now could not be read: %v\n", err)
	}
	var keys []keyNow
	for i, p := range order {
		k := keyNow{DB: p.db, Key: p.key, Commands: counts[p], Now: "?"}
		if err == nil {
			k.Now = now[i]
		}
		keys = append(keys, k)
	}
	if e.json {
		return printJSON(e.out, map[string]any{"file": f.SalvageFile, "commands": f.Commands, "keys": keys})
	}
	e.printSalvage(f, keys, flags.last)
	return nil
}

func (e *env) printSalvage(f salvageFile, keys []keyNow, last int) {
	on := coloured(e.out)
	fmt.Fprintf(e.out, "%s: kept %s at member %s\n%s had %s bytes behind offset %d that epoch %d does not have", f.ID, since(f.AtMS), f.Member, f.Node, count(f.Lost()), f.From, f.Epoch)
	if f.Truncated {
		fmt.Fprintf(e.out, "; %s of them are kept, the rest is lost", count(f.Bytes))
	}
	fmt.Fprint(e.out, "\n\n")
	from := max(0, len(f.Commands)-last)
	if from > 0 {
		fmt.Fprintf(e.out, "(the first %d of %d commands are not shown: --last)\n", from, len(f.Commands))
	}
	rows := [][]cell{{{text: "NO"}, {text: "DB"}, {text: "COMMAND"}}}
	for i, c := range f.Commands[from:] {
		rows = append(rows, []cell{{text: fmt.Sprint(from + i + 1)}, {text: fmt.Sprint(c.DB)}, {text: words(c.Args)}})
	}
	table(e.out, on, rows)
	rows = [][]cell{{{text: "KEY"}, {text: "DB"}, {text: "COMMANDS"}, {text: "HOLDS NOW"}}}
	for _, k := range keys {
		rows = append(rows, []cell{{text: brief(k.Key)}, {text: fmt.Sprint(k.DB)}, {text: fmt.Sprint(k.Commands)}, {text: k.Now}})
	}
	fmt.Fprintln(e.out)
	table(e.out, on, rows)
	if r := f.Replayed; r != nil {
		fmt.Fprintf(e.out, "\nreplayed %s by %s: %d commands sent, %d refused\n", since(r.AtMS), orDash(r.By), r.Sent, r.Failed)
	}
}

// briefMax bounds one word of a command where it is printed.
const briefMax = 60

// brief prints any bytes on one line.
func brief(s string) string {
	cut := ""
	if len(s) > briefMax {
		cut = fmt.Sprintf("… (%d bytes)", len(s))
		s = s[:briefMax]
	}
	q := fmt.Sprintf("%q", s)
	if cut == "" && s != "" && len(q) == len(s)+2 && !strings.ContainsAny(s, " ") {
		return s
	}
	return q + cut
}

// wordsMax bounds how many words of a command are printed.
const wordsMax = 12

func words(args []string) string {
	var out []string
	for _, a := range args[:min(len(args), wordsMax)] {
		out = append(out, brief(a))
	}
	if len(args) > wordsMax {
		out = append(out, fmt.Sprintf("… (%d arguments)", len(args)-1))
	}
	return strings.Join(out, " ")
}

// proxyAddr is the proxy to read and write through.
func proxyAddr(ctx context.Context, client *api.Client, given string) (string, error) {
	if given != "" {
		return given, nil
	}
	st, err := client.Status(ctx)
	if err != nil {
		return "", err
	}
	for _, d := range st.Deployments {
		for _, p := range d.Proxies {
			if p.Addr != "" {
				return p.Addr, nil
			}
		}
	}
	return "", errors.New("no member reports a proxy: name one with --proxy")
}

// presentValues asks what keys hold now.
func (e *env) presentValues(ctx context.Context, client *api.Client, given string, keys []place) ([]string, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	addr, err := proxyAddr(ctx, client, given)
	if err != nil {
		return nil, err
	}
	r, err := dialRedis(ctx, addr, os.Getenv(passwordVariable))
	if err != nil {
		return nil, err
	}
	defer r.close()
	out := make([]string, 0, len(keys))
	for _, k := range keys {
		v, err := r.describe(k.db, k.key)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// outcome is what became of one command in the answer of `salvage replay --json`.
type outcome struct {
	No      int      `json:"no"`
	DB      int      `json:"db"`
	Command []string `json:"command"`
	Reply   string   `json:"reply,omitempty"`
	OK      bool     `json:"ok"`
}

func (e *env) replaySalvage(ctx context.Context, id string, flags salvageFlags) error {
	client, err := e.client()
	if err != nil {
		return err
	}
	defer client.Close()
	read, cancel := context.WithTimeout(ctx, salvageTime)
	defer cancel()
	f, err := e.readSalvage(read, client, id, flags.keys)
	if err != nil {
		return err
	}
	defer f.member.Close()
	send := slices.DeleteFunc(slices.Clone(f.Commands), func(c salvage.Command) bool { return len(c.Keys) == 0 })
	if len(send) == 0 {
		return fail(ExitFailed, "salvage %s has no command to send for these keys: see `redoubt salvage show %s`", id, id)
	}
	addr, err := proxyAddr(read, client, flags.proxy)
	if err != nil {
		return err
	}
	keys, _ := places(send)
	plan := fmt.Sprintf("Send %d commands that touch %d keys through the proxy at %s.", len(send), len(keys), addr)
	if left := len(f.Commands) - len(send); left > 0 {
		plan += fmt.Sprintf(" %d without a key are left out.", left)
	}
	if r := f.Replayed; r != nil {
		plan += fmt.Sprintf("\nTHIS FILE WAS REPLAYED %s by %s: what counts would count twice.", since(r.AtMS), orDash(r.By))
	}
	if flags.dryRun {
		return e.dryRun(plan, send)
	}
	if err := e.confirm(plan); err != nil {
		return err
	}
	return e.sendSalvage(ctx, f, addr, send, len(flags.keys))
}

func (e *env) dryRun(plan string, send []salvage.Command) error {
	if e.json {
		return printJSON(e.out, map[string]any{"would_send": send})
	}
	fmt.Fprintln(e.err, plan+" Nothing is sent: --dry-run.")
	for i, c := range send {
		fmt.Fprintf(e.out, "%d  db %d  %s\n", i+1, c.DB, words(c.Args))
	}
	return nil
}

// sendSalvage sends the commands, tells the outcome of each, and notes the replay beside the file.
func (e *env) sendSalvage(ctx context.Context, f salvageFile, addr string, send []salvage.Command, keys int) error {
	r, err := dialRedis(ctx, addr, os.Getenv(passwordVariable))
	if err != nil {
		return err
	}
	defer r.close()
	note := topo.Replay{By: whoami(), Keys: keys}
	all := []outcome{}
	for i, c := range send {
		o := outcome{No: i + 1, DB: c.DB, Command: c.Args}
		if o.Reply, o.OK, err = r.replay(c); err != nil {
			err = fail(ExitUnknown, "command %d (%s) has no reply, so that it is not known whether it was carried out; the ones behind it were not sent: %w", i+1, words(c.Args), err)
			break
		}
		note.Sent++
		if !o.OK {
			note.Failed++
		}
		all = append(all, o)
		if !e.json {
			fmt.Fprintf(e.out, "%d  db %d  %s: %s\n", o.No, o.DB, words(c.Args), o.Reply)
		}
	}
	note.AtMS = time.Now().UnixMilli()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if noteErr := f.member.Replayed(ctx, f.ID, note); noteErr != nil {
		fmt.Fprintf(e.err, "the replay was not noted at member %s: %v\n", f.Member, noteErr)
	}
	if e.json {
		if jsonErr := printJSON(e.out, map[string]any{"id": f.ID, "sent": note.Sent, "refused": note.Failed, "outcomes": all}); jsonErr != nil {
			return jsonErr
		}
	}
	switch {
	case err != nil:
		return err
	case note.Failed > 0:
		return fail(ExitFailed, "%d of %d commands were answered with an error", note.Failed, note.Sent)
	}
	if !e.json {
		fmt.Fprintf(e.out, "%d commands were sent\n", note.Sent)
	}
	return nil
}
