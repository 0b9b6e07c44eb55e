// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Problem is one thing that is wrong with a file.
type Problem struct {
	File string `json:"file"`
	Line int    `json:"line"` // 1 is the first line; 0: the file as a whole
	Path string `json:"path"` // like deployments[0].nodes[1].addr
	Text string `json:"text"` // what is wrong and what to do
}

// String returns file:line: path: text.
func (p Problem) String() string {
	s := p.File
	if p.Line > 0 {
		s += ":" + strconv.Itoa(p.Line)
	}
	if p.Path != "" {
		s += ": " + p.Path
	}
	return s + ": " + p.Text
}

// Problems is everything that is wrong with a file, in the order of its lines.
type Problems []Problem

// Error lists all problems, one per line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Bytes is a size that is written with its unit: 64mb, 512kb, 1gb.
type Bytes int64

// UnmarshalText reads a size with its unit; units are powers of 1024, as in redis.conf.
func (b *Bytes) UnmarshalText(text []byte) error {
	s := strings.ToLower(strings.TrimSpace(string(text)))
	unit := int64(1)
	for _, u := range []struct {
		suffix string
		size   int64
	}{{"kb", 1 << 10}, {"mb", 1 << 20}, {"gb", 1 << 30}, {"b", 1}} {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, unit = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf("%q is not a size: write for example 64mb, 512kb or 1gb", text)
	}
	*b = Bytes(n * unit)
	return nil
}

// MarshalText writes the size in bytes.
func (b Bytes) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(b), 10), nil }

// decoder walks a parsed file beside a Go value. Unlike a plain strict decoder it goes on after a problem, so that all
// of them are reported at once, and it remembers the line of each setting for the problems that Validate finds later.
type decoder struct {
	problems []Problem
	lines    map[string]int
	fatal    bool // not even YAML: nothing else is worth saying
}

func (d *decoder) problem(line int, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{Line: line, Path: path, Text: fmt.Sprintf(format, args...)})
}

// line returns the line of the setting at path, or of the nearest one around it.
func (d *decoder) line(path string) int {
	for path != "" {
		if n, ok := d.lines[path]; ok {
			return n
		}
		path = path[:max(strings.LastIndexByte(path, '.'), strings.LastIndexByte(path, '['), 0)]
	}
	return 0
}

// covered tells whether the setting at path, or one around it, could not even be decoded: what Validate says of its
// default is noise then.
func covered(decoded []Problem, path string) bool {
	for _, p := range decoded {
		if p.Path != "" && (p.Path == path || strings.HasPrefix(path, p.Path+".") || strings.HasPrefix(path, p.Path+"[")) {
			return true
		}
	}
	return false
}

func (d *decoder) file(data []byte, into any) {
	if body := d.document(data, "start from `redoubt config sample`"); body != nil {
		d.value(body, reflect.ValueOf(into).Elem(), "")
	}
}

// document returns the one YAML document of a file, or nil after saying what is wrong. hint says what to do about an empty one.
func (d *decoder) document(data []byte, hint string) ast.Node {
	f, err := parser.ParseBytes(data, 0)
	if err != nil {
		d.fatal = true
		var se yaml.Error
		if errors.As(err, &se) && se.GetToken() != nil {
			d.problem(se.GetToken().Position.Line, "", "not valid YAML: %s", se.GetMessage())
			return nil
		}
		d.problem(0, "", "not valid YAML: %s", strings.TrimSpace(err.Error()))
		return nil
	}
	var body ast.Node
	for _, doc := range f.Docs {
		if doc.Body == nil {
			continue
		}
		if body != nil {
			d.problem(doc.Body.GetToken().Position.Line, "", "a second YAML document: keep everything in one")
			continue
		}
		body = doc.Body
	}
	if body == nil {
		d.fatal = true
		d.problem(0, "", "the file is empty: %s", hint)
	}
	return body
}

func lineOf(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 0
}

func (d *decoder) value(n ast.Node, v reflect.Value, path string) {
	if path != "" {
		d.lines[path] = lineOf(n)
	}
	switch n.(type) {
	case *ast.AliasNode, *ast.AnchorNode, *ast.MergeKeyNode, *ast.TagNode:
		d.problem(lineOf(n), path, "anchors, aliases and tags are not supported here: write the value out")
		return
	case *ast.NullNode:
		return // "key:" with nothing behind it keeps the default
	}
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		d.value(n, p.Elem(), path)
		v.Set(p)
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(n, u, path)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Slice:
		d.list(n, v, path)
	case reflect.Map:
		d.dictionary(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

func (d *decoder) text(n ast.Node, u encoding.TextUnmarshaler, path string) {
	s, ok := scalarText(n)
	if !ok {
		d.problem(lineOf(n), path, "must be one value, not a list or a block")
		return
	}
	if err := u.UnmarshalText([]byte(s)); err != nil {
		msg := strings.TrimPrefix(err.Error(), "time: ")
		if strings.Contains(msg, "duration") {
			msg = fmt.Sprintf("%q is not a duration: write it with its unit, for example 700ms, 5s or 2m", s)
		}
		d.problem(lineOf(n), path, "%s", msg)
	}
}

// mapping returns the entries of a block.
func mapping(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch m := n.(type) {
	case *ast.MappingNode:
		return m.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{m}, true
	}
	return nil, false
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (d *decoder) structure(n ast.Node, v reflect.Value, path string) {
	entries, ok := mapping(n)
	if !ok {
		d.problem(lineOf(n), path, "must be a block of settings: %s", strings.Join(keysOf(v.Type()), ", "))
		return
	}
	for _, e := range entries {
		key := e.Key.GetToken().Value
		at := join(path, key)
		i := fieldOf(v.Type(), key)
		if i < 0 {
			d.problem(lineOf(e.Key), at, "no such setting%s", suggest(key, keysOf(v.Type())))
			continue
		}
		d.value(e.Value, v.Field(i), at)
		d.lines[at] = lineOf(e.Key)
	}
}

func (d *decoder) list(n ast.Node, v reflect.Value, path string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.problem(lineOf(n), path, "must be a list: start each entry with \"- \"")
		return
	}
	s := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, e := range seq.Values {
		d.value(e, s.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(s)
}

func (d *decoder) dictionary(n ast.Node, v reflect.Value, path string) {
	entries, ok := mapping(n)
	if !ok {
		d.problem(lineOf(n), path, "must be a block of \"name: value\" lines")
		return
	}
	m := reflect.MakeMap(v.Type())
	for _, e := range entries {
		key := e.Key.GetToken().Value
		at := join(path, key)
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(e.Value, item, at)
		d.lines[at] = lineOf(e.Key)
		m.SetMapIndex(reflect.ValueOf(key), item)
	}
	v.Set(m)
}

func scalarText(n ast.Node) (string, bool) {
	switch s := n.(type) {
	case *ast.StringNode:
		return s.Value, true
	case *ast.LiteralNode:
		return s.Value.Value, true
	case ast.ScalarNode:
		return n.GetToken().Value, true
	}
	return "", false
}

func (d *decoder) scalar(n ast.Node, v reflect.Value, path string) {
	s, ok := scalarText(n)
	if !ok {
		d.problem(lineOf(n), path, "must be one value, not a list or a block")
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			d.problem(lineOf(n), path, "%q is not true or false", s)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			d.problem(lineOf(n), path, "%q is not a whole number", s)
		}
		v.SetInt(i)
	default:
		panic("config: no decoder for " + v.Type().String()) // a new kind of field needs a case here
	}
}
