// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strings"
	"testing"
)

const kubernetesFile = `member: {id: n1, host: 10.0.0.1}
store: {kind: kubernetes}
kubernetes: {%}
deployments:
  - name: d
    nodes: [{id: n1, addr: "n1.redis:6379"}]
    node: {}
`

func TestKubernetesNeedsNothingInAPodAndSaysWhatIsWrong(t *testing.T) {
	for settings, want := range map[string]string{
		``: "", `service: db`: "", `api: "https://10.0.0.1:6443", namespace: x, token-file: t, ca: c`: "",
		`api: "10.0.0.1:6443"`: "kubernetes.api", `api: "https://10.0.0.1:6443/path"`: "kubernetes.api", `service: "Not_a_name"`: "kubernetes.service",
		`service: "` + strings.Repeat("a", 51) + `"`: "kubernetes.service", `service: "-a"`: "kubernetes.service", `unknown: 1`: "kubernetes.unknown",
	} {
		c, err := Parse([]byte(strings.Replace(kubernetesFile, "%", settings, 1)), "test", "/srv")
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("{%s}: %v, want %q", settings, err, want)
		}
		if strings.Contains(settings, "token-file") && (c.Kubernetes.TokenFile != "/srv/t" || c.Kubernetes.CA != "/srv/c") {
			t.Errorf("files: %+v", c.Kubernetes)
		}
		if err == nil && c.Store.Listen != "0.0.0.0:7380" {
			t.Errorf("the store listens at %q", c.Store.Listen)
		}
	}
	for _, more := range []string{"store: {kind: kubernetes, endpoints: [http://10.0.0.1:1]}", "store: {kind: kubernetes, username: u, password: p}", "store: {kind: kubernetes, members: [{id: n1, addr: \"10.0.0.1:1\"}]}"} {
		text := strings.Replace(strings.Replace(kubernetesFile, "%", "", 1), "store: {kind: kubernetes}", more, 1)
		if _, err := Parse([]byte(text), "test", "/srv"); err == nil {
			t.Errorf("%s is taken", more)
		}
	}
}

func TestTheURLOfAnAPIServer(t *testing.T) {
	s, k, err := ParseKubernetesURL("kubernetes://10.0.0.1:6443/a/b?namespace=n&token-file=/t&ca=/c&service=db&endpoints=true")
	if want := (Kubernetes{Endpoints: true, API: "https://10.0.0.1:6443", Namespace: "n", TokenFile: "/t", CA: "/c", Service: "db"}); err != nil || k != want || s.Kind != StoreKubernetes || s.Prefix != "a/b" {
		t.Errorf("%+v %+v %v", s, k, err)
	}
	if s, err := ParseStoreURL("kubernetes:///p"); err != nil || s.Kind != StoreKubernetes || s.Prefix != "p" {
		t.Errorf("in a pod: %+v %v", s, err)
	}
	for _, wrong := range []string{"kubernetes://h/p?what=x", "kubernetes://h/p?ca=a&ca=b", "kubernetes://h/p?endpoints=maybe", "kubernetess://h"} {
		if _, err := ParseStoreURL(wrong); err == nil {
			t.Errorf("%s is taken", wrong)
		}
	}
}

// TestShardsHaveServices: their names go into those of services.
func TestShardsHaveServices(t *testing.T) {
	for names, want := range map[string]string{
		"a b": "", "East.1 b": "", "a.b a-b": "service db-a-b", "a_ b": "end with a letter or digit", strings.Repeat("x", 48) + " b": "up to 50 letters",
	} {
		text := strings.Replace(kubernetesFile, "%", "service: db", 1)
		shards := "    mode: ring\n    shards:\n"
		for i, name := range strings.Fields(names) {
			shards += fmt.Sprintf("      - {name: %q, nodes: [{id: n1, addr: \"n1.redis:%d\"}]}\n", name, 6390+i)
		}
		text = strings.Replace(text, "    nodes: [{id: n1, addr: \"n1.redis:6379\"}]\n", shards, 1)
		if _, err := Parse([]byte(text), "test", "/srv"); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", names, err, want)
		}
	}
}
