// SPDX-License-Identifier: Apache-2.0

// Package deploy tests what is here for clusters: the chart and the manifests that were made of it, by Redoubt's own reader of
// configurations, by helm and by the real API server. It has no code of its own and no goroutines.
package deploy

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"redoubt/internal/config"
	"redoubt/test/kubeapi"
)

const manifest = "kubernetes/redoubt.yaml"

// object is one object of a manifest.
type object struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name string `yaml:"name"`
	} `yaml:"metadata"`
	Data map[string]string `yaml:"data"`
	Spec struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Args []string `yaml:"args"`
				} `yaml:"containers"`
			} `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

func objects(t *testing.T, text []byte) (all []object) {
	t.Helper()
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var o object
		if err := yaml.Unmarshal(doc, &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o.Kind != "" {
			all = append(all, o)
		}
	}
	return all
}

func read(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// checkConfigs lets the pods' own command fill in the configurations, with a password that is hard to quote, and reads them.
func checkConfigs(t *testing.T, text []byte) {
	t.Helper()
	files, commands := map[string]string{}, map[string]string{}
	for _, o := range objects(t, text) {
		for name, body := range o.Data {
			files[name] = body
		}
		if o.Kind == "StatefulSet" {
			commands[o.Metadata.Name] = o.Spec.Template.Spec.Containers[0].Args[0]
		}
	}
	if len(commands) == 0 || len(files) < 2 {
		t.Fatalf("%d commands, %d files", len(commands), len(files))
	}
	for set, command := range commands {
		dir := t.TempDir()
		for name, body := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out := filepath.Join(dir, "redoubt.yaml")
		command = strings.NewReplacer("/etc/redoubt/", dir+"/", "/run/redoubt/redoubt.yaml", out, "exec redoubt run", "true").Replace(command)
		cmd := exec.Command("sh", "-ec", command)
		const password = `it's "a\b"&/`
		cmd.Env = append(os.Environ(), "POD_NAME="+set+"-0", "POD_IP=10.244.0.9", "POD_NAMESPACE=here", "POD_PASSWORD="+password)
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", set, err, b)
		}
		c, err := config.Load(out)
		if err != nil {
			t.Fatalf("%s: %v", set, err)
		}
		d := c.Deployments[0]
		if c.Member.ID != set+"-0" || c.Member.Host != "10.244.0.9" || c.Kubernetes.Namespace != "here" || (d.Node != nil) == strings.HasSuffix(set, "-proxy") {
			t.Errorf("%s: %+v", set, c)
		}
		if body, _ := os.ReadFile(out); strings.Contains(string(body), "password:") && d.Password != password {
			t.Errorf("%s: the password became %q", set, d.Password)
		}
		if strings.HasSuffix(set, "-proxy") {
			continue
		}
		for i, u := range d.Units() {
			if n := u.Nodes[i%len(u.Nodes)]; u.Nodes[0].ID != c.Member.ID || u.Shard != "" && n.Priority != 0 {
				t.Errorf("%s: the nodes of shard %q are %+v", set, u.Shard, u.Nodes)
			}
		}
	}
}

func TestTheManifestsConfigurationsAreSound(t *testing.T) { checkConfigs(t, read(t)) }

// variants are values of the chart.
var variants = map[string][]string{
	"as it is": nil,
	"ring":     {"--set", "shards={s1,East.2,s3,s4},password.secret=pw,endpoints=true"},
	"sidecar":  {"--set", "sidecar.enabled=true,password.secret=pw"},
	"small":    {"--set", "proxies.replicas=0,nodes=2,endpoints=true,durability=async,persistence=none,networkPolicy=false,storage.className=fast,password.secret=pw"},
}

// helm runs the chart through helm; the test is skipped where that was not built.
func helm(t *testing.T, args ...string) []byte {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	found, _ := filepath.Glob(filepath.Join(cache, "redoubt", "helm-v[0-9.]*[0-9]"))
	if len(found) == 0 {
		t.Skip("no helm: make helm builds it, once")
	}
	cmd := exec.Command(found[len(found)-1], args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "KUBECONFIG=/dev/null")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm %v: %v\n%s%s", args, err, out, errs.String())
	}
	return out
}

func TestTheManifestsAreOfThisChart(t *testing.T) {
	want := helm(t, "template", "redoubt", "helm/redoubt", "-n", "default")
	if !bytes.HasSuffix(read(t), want) {
		t.Errorf("%s is not what the chart says: make manifests", manifest)
	}
	if out := helm(t, "lint", "--strict", "helm/redoubt"); !strings.Contains(string(out), "0 chart(s) failed") {
		t.Errorf("%s", out)
	}
}

func TestTheChartsConfigurationsAreSound(t *testing.T) {
	for name, args := range variants {
		t.Run(name, func(t *testing.T) {
			checkConfigs(t, helm(t, append([]string{"template", "redoubt", "helm/redoubt", "-n", "default"}, args...)...))
		})
	}
}

// TestTheAPIServerTakesTheManifests: by its own schema and all its checks, each variant; and the Role allows what members do, and no more.
func TestTheAPIServerTakesTheManifests(t *testing.T) {
	if testing.Short() {
		t.Skip("make show-kubernetes")
	}
	s := kubeapi.Real(t)
	for name, args := range variants {
		t.Run(name, func(t *testing.T) {
			text := helm(t, append([]string{"template", "redoubt", "helm/redoubt", "-n", "default"}, args...)...)
			if out, err := s.Kubectl(t, text, "apply", "--dry-run=server", "--validate=strict", "-f", "-"); err != nil || strings.Contains(out, "Warning") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	if out, err := s.Kubectl(t, read(t), "apply", "--validate=strict", "-f", "-"); err != nil || strings.Contains(out, "Warning") {
		t.Fatalf("%v\n%s", err, out)
	}
	for ask, want := range map[string]string{
		"get configmaps": "yes", "create configmaps": "yes", "update configmaps": "yes", "watch configmaps": "yes", "delete configmaps": "no",
		"patch pods": "yes", "delete pods": "no", "create pods": "no", "get secrets": "no", "update endpointslices.discovery.k8s.io": "yes", "create events.events.k8s.io": "yes",
		"update services": "no", "update statefulsets.apps": "no", "update leases.coordination.k8s.io": "no",
	} {
		out, _ := s.Kubectl(t, nil, append([]string{"auth", "can-i", "--as", "system:serviceaccount:default:redoubt"}, strings.Fields(ask)...)...)
		if strings.TrimSpace(out) != want {
			t.Errorf("may a member %s? %s, not %s", ask, out, want)
		}
	}
	out, err := s.Kubectl(t, nil, "get", "services", "-o", "json")
	var list struct{ Items []json.RawMessage }
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list.Items) < 4 {
		t.Errorf("%v\n%s", err, out)
	}
}
