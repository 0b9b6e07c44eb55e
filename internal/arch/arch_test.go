// SPDX-License-Identifier: Apache-2.0

// Package arch enforces the layers of docs/ARCHITECTURE.md: who may import whom, what pure code may not touch, who may
// use which module, how large things may be. It holds tests only and has no goroutines.
package arch

import (
	"bufio"
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "redoubt/"

// layers is the table: each package stands once. A package may import its own layer only where the table says so.
var layers = map[int][]string{
	0: {"internal/invariant", "internal/topo", "internal/resp", "internal/slots", "internal/topk"},
	1: {"internal/failover", "internal/converge", "internal/route", "internal/ring", "internal/reshard", "internal/muster"},
	2: {"internal/clock", "internal/coord", "internal/redis", "internal/event"},
	3: {"internal/coord/kit", "internal/coord/memstore", "internal/coord/raftstore", "internal/coord/seat", "internal/coord/etcdstore", "internal/coord/consulstore", "internal/coord/kubestore", "internal/kube", "internal/coord/scope", "internal/redisd", "internal/view", "internal/salvage", "internal/mover"},
	4: {"internal/accord", "internal/agent", "internal/controller", "internal/proxy", "internal/front", "internal/sentinel", "internal/api", "internal/nameserver", "internal/render", "internal/consul", "internal/address", "internal/kubereg"},
	5: {"internal/config", "internal/app", "internal/cli", "cmd/redoubt"},
	9: {"internal/sim", "internal/arch", "internal/coord/coordtest", "internal/redis/redistest", "internal/consul/consultest", "internal/looptest", "internal/storytest", "test/chaos", "test/outside", "test/kubeapi", "test/netns", "test/ports", "test/clients", "test/traffic", "test/redis", "deploy"},
}

// mayImport says, for each layer, which layers its packages may import.
var mayImport = map[int][]int{
	0: {0}, 1: {0}, 2: {0}, 3: {0, 2}, 4: {0, 1, 2}, 5: {0, 1, 2, 3, 4, 5}, 9: {0, 1, 2, 3, 4, 5, 9},
}

// extra are the exceptions, each with its reason.
var extra = map[string][]string{
	"internal/accord":            {"internal/view"}, // the one process-local copy of the document
	"internal/agent":             {"internal/view"},
	"internal/proxy":             {"internal/view"},
	"internal/sentinel":          {"internal/view"},
	"internal/api":               {"internal/view"},
	"internal/mover":             {"internal/reshard"},   // carries out what is decided there, step by step
	"internal/coord/raftstore":   {"internal/coord/kit"}, // the parts that stores of talking members share
	"internal/coord/etcdstore":   {"internal/coord/kit"},
	"internal/coord/consulstore": {"internal/coord/kit"},
	"internal/coord/seat":        {"internal/coord/kit"},
	"internal/coord/memstore":    {"internal/coord/kit"},
	"internal/topo":              {},
	"internal/coord/kubestore":   {"internal/kube"}, // speaks to the API server
	"internal/kubereg":           {"internal/kube", "internal/view"},
	"internal/nameserver":        {"internal/view"},
	"internal/render":            {"internal/view"},
	"internal/consul":            {"internal/view"},
}

// modules are the third-party modules, each with the packages that may use it.
var modules = map[string][]string{
	"github.com/hashicorp/raft":      {"internal/coord/raftstore"},   // embedded consensus
	"github.com/hashicorp/go-hclog":  {"internal/coord/raftstore"},   // raft's logger
	"go.etcd.io/etcd":                {"internal/coord/etcdstore"},   // its own client
	"google.golang.org/grpc":         {"internal/coord/etcdstore"},   // the codes in the errors of etcd's client
	"go.uber.org/zap":                {"internal/coord/etcdstore"},   // the logger of etcd's client
	"github.com/hashicorp/consul":    {"internal/coord/consulstore"}, // its own client
	"golang.org/x/sys":               {"internal/clock", "internal/redisd", "internal/coord/raftstore", "internal/cli", "internal/app", "internal/proxy", "internal/agent", "internal/address"},
	"github.com/goccy/go-yaml":       {"internal/config", "internal/cli"},
	"github.com/spf13/cobra":         {"internal/cli"},
	"github.com/cespare/xxhash/v2":   {"internal/ring"},  // Envoy's hash
	"github.com/pires/go-proxyproto": {"internal/proxy"}, // the PROXY protocol's header

	"github.com/miekg/dns": {"internal/nameserver"}, // the wire format, its transports and truncation
	"golang.org/x/net":     {"internal/nameserver"}, // netutil.LimitListener

	"github.com/vishvananda/netlink": {"internal/address"}, // addresses of interfaces
}

// pureBans are imports that values and decisions must not have.
var pureBans = []string{"net", "os", "sync", "context", "log", "log/slog", "math/rand", "math/rand/v2", "io/fs", "os/exec", "sync/atomic", "net/http"}

func layerOf(pkg string) (int, bool) {
	for l, pkgs := range layers {
		if slices.Contains(pkgs, pkg) {
			return l, true
		}
	}
	return 0, false
}

type file struct {
	path, pkg string
	ast       *ast.File
	src       []byte
	fset      *token.FileSet
}

func sources(t *testing.T) []file {
	t.Helper()
	root := filepath.Join("..", "..")
	var out []file
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if name := d.Name(); name == "testdata" || name == "node_modules" || name == "tools" || strings.HasPrefix(name, ".") && rel != "." {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && rel != "." {
				return filepath.SkipDir // a module of its own
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, path, src, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out, file{rel, filepath.ToSlash(filepath.Dir(rel)), parsed, src, fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLayers: imports go downwards, third-party modules stay in their adapter.
func TestLayers(t *testing.T) {
	for _, f := range sources(t) {
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		layer, known := layerOf(f.pkg)
		if !known {
			t.Errorf("%s: package is in no layer; add it to the table in internal/arch", f.path)
			continue
		}
		for _, imp := range f.ast.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			checkImport(t, f, layer, path)
		}
	}
}

func checkImport(t *testing.T, f file, layer int, path string) {
	t.Helper()
	if own, ok := strings.CutPrefix(path, module); ok {
		target, known := layerOf(own)
		if !known {
			t.Errorf("%s imports %s, which is in no layer", f.path, own)
			return
		}
		if own != f.pkg && !slices.Contains(mayImport[layer], target) && !slices.Contains(extra[f.pkg], own) {
			t.Errorf("%s (layer %d) imports %s (layer %d): not allowed", f.path, layer, own, target)
		}
		return
	}
	if layer <= 1 && slices.Contains(pureBans, path) && f.pkg != "internal/invariant" {
		t.Errorf("%s is pure and imports %q: pass it in as a value", f.path, path)
	}
	if !strings.Contains(strings.Split(path, "/")[0], ".") || layer == 9 {
		return
	}
	for m, users := range modules {
		if path == m || strings.HasPrefix(path, m+"/") {
			if !slices.Contains(users, f.pkg) {
				t.Errorf("%s uses %s, which belongs to %v", f.path, m, users)
			}
			return
		}
	}
	t.Errorf("%s uses the module of %s, which is not in the table of internal/arch: add it there with its reason, and an ADR", f.path, path)
}

// TestPureCodeHasNoGoroutinesAndNoClock: values and decisions are functions.
func TestPureCodeHasNoGoroutinesAndNoClock(t *testing.T) {
	for _, f := range sources(t) {
		layer, _ := layerOf(f.pkg)
		if layer > 1 || strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch x := n.(type) {
			case *ast.GoStmt, *ast.SelectStmt, *ast.ChanType:
				t.Errorf("%s: goroutine, select or channel in pure code", f.fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if id, ok := x.X.(*ast.Ident); ok && id.Name == "time" && slices.Contains([]string{"Now", "Sleep", "After", "NewTimer", "NewTicker", "Since", "Tick"}, x.Sel.Name) {
					t.Errorf("%s: time.%s in pure code: time arrives as an argument", f.fset.Position(n.Pos()), x.Sel.Name)
				}
			}
			return true
		})
	}
}

// Sizes that a reader can take in. Exceptions carry their reason.
const (
	fileLinesMax = 600
	funcLinesMax = 90
)

var longFiles = map[string]string{}

var longFuncs = map[string]string{}

// TestSizes: a file fits in a sitting, a function on a screen.
func TestSizes(t *testing.T) {
	for _, f := range sources(t) {
		lines := bytes.Count(f.src, []byte("\n"))
		if lines > fileLinesMax && longFiles[f.path] == "" {
			t.Errorf("%s has %d lines (limit %d): split it by responsibility, or give the reason in internal/arch", f.path, lines, fileLinesMax)
		}
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line
			if n > funcLinesMax && longFuncs[f.path+":"+fn.Name.Name] == "" {
				t.Errorf("%s: %s has %d lines (limit %d)", f.path, fn.Name.Name, n, funcLinesMax)
			}
		}
	}
}

// TestPackagesAreDocumented: each package says what it is for; each file carries its licence.
func TestPackagesAreDocumented(t *testing.T) {
	doc := map[string]bool{}
	for _, f := range sources(t) {
		if first, _, _ := bufio.NewReader(bytes.NewReader(f.src)).ReadLine(); string(first) != "// SPDX-License-Identifier: Apache-2.0" {
			t.Errorf("%s does not begin with the licence line", f.path)
		}
		doc[f.pkg] = doc[f.pkg] || f.ast.Doc != nil && len(f.ast.Doc.Text()) > 60
	}
	for pkg, ok := range doc {
		if !ok {
			t.Errorf("%s has no package comment: what it is for, what it is not for, its invariant, its goroutines", pkg)
		}
	}
}

// TestNobodySleeps: waiting is for a condition, with a bound.
func TestNobodySleeps(t *testing.T) {
	for _, f := range sources(t) {
		if strings.HasPrefix(f.path, "test/") {
			continue
		}
		if bytes.Contains(f.src, []byte("time.Sleep"+"(")) {
			t.Errorf("%s calls time.Sleep", f.path)
		}
	}
}
