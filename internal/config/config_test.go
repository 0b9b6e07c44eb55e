// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"redoubt/internal/topo"
)

func TestTheSampleDecodesAndValidates(t *testing.T) {
	c, err := Parse(Sample, "sample", "/srv")
	if err != nil {
		t.Fatalf("sample: %v", err)
	}
	d := c.Deployments[0]
	if c.Member.Dir != "/srv/data" || d.Node.Dir != "/srv/data/redis" || d.Durability != topo.Quorum || d.AckReplicas != 1 {
		t.Errorf("defaults were not completed: %+v %+v", c.Member, d)
	}
	spec := d.Spec()
	if errs := spec.Validate(); len(errs) > 0 {
		t.Errorf("spec: %v", errs)
	}
	if spec.Timing != topo.LANTiming() {
		t.Errorf("timing = %+v, want the lan profile", spec.Timing)
	}
	if c.Store.Listen != "10.0.0.1:7380" {
		t.Errorf("store.listen = %q, want this member's address", c.Store.Listen)
	}
}

// uncommented turns every "# key: value" line of the sample into a live one.
func uncommented(sample []byte) []byte {
	re := regexp.MustCompile(`(?m)^(\s*)# ([a-z-]+:)`)
	return re.ReplaceAll(sample, []byte("$1$2"))
}

func TestTheDefaultsThatTheSampleShowsAreTheDefaults(t *testing.T) {
	shown := regexp.MustCompile(`(?m)^\s*#? ?(ring|hash|distribution|hash-tag|eject-after|cluster|uid|rebalance|slots|bus-port|server-id|shards|weight|ring-name|join|password|maxmemory|directives|username|announce|clients|map|pid-file|binary|source|target|check|reload|mode|timeout|token|service|interface): .*$`)
	all := shown.ReplaceAll(uncommented(Sample), nil)
	got, err := Parse(all, "sample", "/srv")
	if err != nil {
		t.Fatalf("%v\n%s", err, all)
	}
	want, err := Parse(Sample, "sample", "/srv")
	if err != nil {
		t.Fatal(err)
	}
	if got.Deployments[0].Spec().Timing != want.Deployments[0].Spec().Timing {
		t.Errorf("timing: shown %+v, real %+v", got.Deployments[0].Spec().Timing, want.Deployments[0].Spec().Timing)
	}
	got.Deployments[0].Timing, want.Deployments[0].Timing = Timing{}, Timing{}
	got.Deployments[0].Node.Directives = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("shown %+v\nreal  %+v", got, want)
	}
}

func TestEverySettingIsExplainedInTheSample(t *testing.T) {
	lines := strings.Split(string(Sample), "\n")
	var check func(typ reflect.Type)
	check = func(typ reflect.Type) {
		for i := range typ.NumField() {
			key := typ.Field(i).Tag.Get("yaml")
			if key == "" {
				t.Errorf("%s.%s has no yaml key", typ.Name(), typ.Field(i).Name)
				continue
			}
			re := regexp.MustCompile(`^\s*(# |- )?` + key + `:.*#|^` + key + `:`)
			if !slices.ContainsFunc(lines, re.MatchString) {
				t.Errorf("the sample does not explain %s of %s", key, typ.Name())
			}
			f := typ.Field(i).Type
			for f.Kind() == reflect.Pointer || f.Kind() == reflect.Slice {
				f = f.Elem()
			}
			if f.Kind() == reflect.Struct {
				check(f)
			}
		}
	}
	check(reflect.TypeFor[Config]())
}

func TestAllProblemsAreReportedAtOnceWithTheirLines(t *testing.T) {
	file := `member:
  id: m 1
  hots: 10.0.0.1
store:
  members:
    - {id: m1, addr: "10.0.0.1:7380"}
    - {id: m2, addr: "10.0.0.2"}
deployments:
  - name: mymaster
    durability: always
    timing:
      lease: 250
      beat: 200ms
    nodes:
      - {id: n1, addr: "10.0.0.1:6479"}
      - {id: n1, addr: "0.0.0.0:6479"}
    node: {id: n9, directives: {replicaof: 10.0.0.1 6379}}
proxy:
  listen: 0.0.0.0:6379
  park-bytes: many
  clients: few
api: {listen: "127.0.0.1:6379"}
log: [debug]
`
	_, err := Parse([]byte(file), "f.yaml", "/")
	var ps Problems
	if !errors.As(err, &ps) {
		t.Fatalf("error %T %v, want Problems", err, err)
	}
	for _, want := range []string{
		`f.yaml:2: member.id: "m 1"`,
		`f.yaml:3: member.hots: no such setting: did you mean host?`,
		`f.yaml:5: store.members: 2 members survive no more failures than 1`,
		`f.yaml:7: store.members[1].addr: "10.0.0.2" is not host:port`,
		`f.yaml:10: deployments[0].durability: "always": use quorum or quorum+disk or async`,
		`f.yaml:12: deployments[0].timing.lease: "250" is not a duration`,
		`f.yaml:16: deployments[0].nodes[1].id: id n1 is already used by deployments[0].nodes[0].id`,
		`f.yaml:16: deployments[0].nodes[1].addr: "0.0.0.0:6479": nobody can connect`,
		`f.yaml:17: deployments[0].node.id: "n9" is not in nodes`,
		`f.yaml:17: deployments[0].node.directives.replicaof: cannot be set here: a server boots frozen`,
		`f.yaml:20: proxy.park-bytes: "many" is not a size`,
		`f.yaml:21: proxy.clients: "few" is not a whole number`,
		`f.yaml:22: api.listen: port 6379 is already used by proxy.listen`,
		`f.yaml:23: log: must be a block of settings: level, format`,
	} {
		if !slices.ContainsFunc(ps, func(p Problem) bool { return strings.HasPrefix(p.String(), want) }) {
			t.Errorf("missing problem %q in:\n%v", want, err)
		}
	}
}

func TestTimingInequalitiesAreRefusedWithTheirLine(t *testing.T) {
	file := strings.Replace(string(Sample), "    # password: secret       # of the servers", "    timing: {beat: 500ms}\n    # password: secret       # of the servers", 1)
	_, err := Parse([]byte(file), "f.yaml", "/")
	if err == nil || !strings.Contains(err.Error(), "deployments[0].timing.lease: 800ms < 3 × beat 500ms") || !strings.Contains(err.Error(), "f.yaml:") {
		t.Errorf("error %v", err)
	}
}

func TestModesAndTheNumberOfDeploymentsAreChecked(t *testing.T) {
	file := strings.Replace(string(Sample), "# mode: single ", "mode: sharded ", 1)
	if _, err := Parse([]byte(file), "f", "/"); err == nil || !strings.Contains(err.Error(), `"sharded": use single or ring or cluster`) {
		t.Errorf("error %v", err)
	}
	if _, err := Parse([]byte("member: {id: m1}\nstore: {join: \"h:1\", listen: \":2\"}\n"), "f", "/"); err == nil || !strings.Contains(err.Error(), "0 deployments: this version runs exactly one") {
		t.Errorf("error %v", err)
	}
}

func TestWhatIsNotYAMLIsReportedOnceWithItsLine(t *testing.T) {
	for _, file := range []string{"member:\n  id: [m1\n", "", "member: {id: a}\nmember: {id: b}\n"} {
		_, err := Parse([]byte(file), "f.yaml", "/")
		var ps Problems
		if !errors.As(err, &ps) || len(ps) != 1 {
			t.Errorf("%q: %v", file, err)
		}
	}
}

func TestAFileIsReadWithPathsRelativeToIt(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "redoubt.yaml")
	if err := os.WriteFile(path, Sample, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil || c.Member.Dir != filepath.Join(dir, "data") {
		t.Errorf("dir %q, error %v", c.Member.Dir, err)
	}
	if _, err := Load(filepath.Join(dir, "absent.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
}

func TestProfilesAndOverridesMakeTheTiming(t *testing.T) {
	lease := topo.Duration(5 * time.Second)
	got := Timing{Profile: "wan", Lease: &lease}.resolve()
	want := topo.WANTiming()
	want.Lease = lease
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Sample)
	f.Add(uncommented(Sample))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Parse(data, "f", "/") // must not panic or hang
	})
}

func TestThePortsOfAProxyMayBeUnixSockets(t *testing.T) {
	file := func(change string) string {
		old, with, _ := strings.Cut(change, " => ")
		if !strings.Contains(string(Sample), old) {
			t.Fatalf("the sample has no %q", old)
		}
		return strings.Replace(string(Sample), old, with, 1)
	}
	for change, want := range map[string]string{
		"readonly-listen: 0.0.0.0:6389 => readonly-listen: unix:/run/ro.sock": "",
		"readonly-listen: 0.0.0.0:6389 => readonly-listen: \"[::]:6389\"":     "",
		"# socket-mode: 0700 => socket-mode: 0660":                            "",
		"# proxy-protocol: off => proxy-protocol: required":                   "",
		"# idle: 0s => idle: 5m":                                              "",
		"readonly-listen: 0.0.0.0:6389 => readonly-listen: unix:run/ro.sock":  `proxy.readonly-listen: "unix:run/ro.sock": write unix: and an absolute path`,
		"listen: 0.0.0.0:6379 => listen: unix:/run/rw.sock":                   "sentinel.addresses: proxy cannot be a Unix socket",
		"# socket-mode: 0700 => socket-mode: \"rwx\"":                         `proxy.socket-mode: "rwx": write permissions in octal`,
		"# socket-mode: 0700 => socket-mode: 01777":                           "proxy.socket-mode",
		"# proxy-protocol: off => proxy-protocol: yes":                        `proxy.proxy-protocol: "yes": use off or optional or required`,
		"# idle: 0s => idle: -5m":                                             "proxy.idle: must not be negative",
		"# idle: 0s => idle: 5":                                               "proxy.idle",
		"# output-soft-bytes: 0  => output-soft-bytes: 1gb":                   "proxy.output-soft-bytes: is more than output-bytes",
		"# query-bytes: 1gb => query-bytes: 0":                                "proxy.query-bytes: must be more than 0",
	} {
		_, err := Parse([]byte(file(change)), "f", "/")
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "f:")) {
			t.Errorf("%s: %v", change, err)
		}
	}
}

func TestExactRetryIsRefusedWhereItCannotHold(t *testing.T) {
	file := `member: {id: m1}
store: {members: [{id: m1, addr: "10.0.0.1:7380"}]}
deployments:
  - name: mymaster
    durability: %s
    retry: %s
    nodes:
      - {id: m1, addr: "10.0.0.1:6479"}
      - {id: m2, addr: "10.0.0.2:6479"}
    node:
      id: m1
      directives:
        maxmemory: 1gb
        maxmemory-policy: %s
`
	for _, c := range []struct{ durability, retry, policy, want string }{
		{"quorum", "exact", "noeviction", ""},
		{"quorum", "exact", "volatile-lru", ""},
		{"quorum", "none", "allkeys-lru", ""},
		{"async", "none", "allkeys-lru", ""},
		{"quorum", "exact", "allkeys-lru", "f.yaml:14: deployments[0].node.directives.maxmemory-policy: allkeys-lru evicts the markers"},
		{"async", "exact", "noeviction", "f.yaml:6: deployments[0].retry: exact needs durability quorum"},
		{"quorum", "twice", "noeviction", `f.yaml:6: deployments[0].retry: "twice": use none or exact`},
	} {
		_, err := Parse([]byte(fmt.Sprintf(file, c.durability, c.retry, c.policy)), "f.yaml", "/")
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s, %s, %s: %v, want %q", c.durability, c.retry, c.policy, err, c.want)
		}
	}
}

func TestAPromiseAboutDisksNeedsFilesThatAreSynced(t *testing.T) {
	const file = `
member: {id: m1, host: 10.0.0.1}
store: {members: [{id: m1, addr: "10.0.0.1:7380"}]}
deployments:
  - name: mymaster
    durability: %s
    retry: exact
    nodes:
      - {id: m1, addr: "10.0.0.1:6479"}
      - {id: m2, addr: "10.0.0.2:6479"}
    node:
      id: m1
      persistence: %s
      directives:
        appendfsync: %s
        no-appendfsync-on-rewrite: "%s"
`
	for _, c := range []struct{ durability, persistence, sync, rewrite, want string }{
		{"quorum+disk", "aof", "always", "no", ""},
		{"quorum", "aof", "everysec", "yes", ""},
		{"quorum+disk", "rdb", "always", "no", "f.yaml:13: deployments[0].node.persistence: durability quorum+disk needs an append-only file on every node"},
		{"quorum+disk", "aof", "everysec", "no", "f.yaml:15: deployments[0].node.directives.appendfsync: durability quorum+disk needs always"},
		{"quorum+disk", "aof", "always", "yes", "f.yaml:16: deployments[0].node.directives.no-appendfsync-on-rewrite: durability quorum+disk needs no"},
	} {
		d, err := Parse([]byte(fmt.Sprintf(file, c.durability, c.persistence, c.sync, c.rewrite)), "f.yaml", "/")
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v: %v, want %q", c, err, c.want)
		}
		if c.want == "" && d.Deployments[0].AckReplicas != 1 {
			t.Errorf("%v: %d acknowledging replicas", c, d.Deployments[0].AckReplicas)
		}
	}
}
