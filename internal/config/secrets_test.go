// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const secretsFile = `member: {id: n1, host: 10.0.0.1}
%
deployments:
  - name: d
    nodes: [{id: n1, addr: "10.0.0.1:6379"}]
    node: {}
`

// TestSecretsAreReadFromFiles that begin where the configuration is, and what is wrong with them is said without the secret.
func TestSecretsAreReadFromFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"good": "hunter2\nmore\n", "windows": "hunter2\r\n", "empty": "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const etcd, consul = `store: {kind: etcd, endpoints: ["http://10.0.0.8:2379"], username: root, `, `store: {kind: consul, endpoints: ["http://10.0.0.8:8500"], `
	for text, want := range map[string]string{
		etcd + `password-file: good}`: "hunter2", etcd + `password-file: windows}`: "hunter2", etcd + `password: plain}`: "plain", consul + `token-file: good}`: "hunter2",
		etcd + `password-file: none}`: "! store.password-file: open", etcd + `password-file: empty}`: "! is empty", etcd + `password-file: good, password: x}`: "! given as a value, too",
		etcd + `token-file: good, password: x}`: "! store.token: is for consul", consul + `password-file: good}`: "! are for etcd",
		"store: {members: [{id: n1, addr: \"10.0.0.1:7380\"}]}\nconsul: {address: \"127.0.0.1:8500\", token-file: good}":                                "hunter2",
		"store: {members: [{id: n1, addr: \"10.0.0.1:7380\"}]}\nconsul: {address: \"127.0.0.1:8500\", token-file: none}":                                "! consul.token-file",
		"store: {members: [{id: n1, addr: \"10.0.0.1:7380\"}]}\nconsul: {address: \"127.0.0.1:8500\", tls: {ca: good}}":                                 "! consul.tls",
		"store: {members: [{id: n1, addr: \"10.0.0.1:7380\"}]}\nconsul: {address: \"https://127.0.0.1:8500\", tls: {ca: good}}":                         "! no certificate in PEM form",
		"store: {members: [{id: n1, addr: \"10.0.0.1:7380\"}]}\nconsul: {address: \"https://127.0.0.1:8500\", token-file: good, tls: {server-name: x}}": "hunter2",
	} {
		c, err := Parse([]byte(strings.Replace(secretsFile, "%", text, 1)), "f", dir)
		if wrong, bad := strings.CutPrefix(want, "! "); bad {
			if err == nil || !strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %v, not %q", text, err, wrong)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		password, token, err := c.Store.Secrets()
		announcer, bad := c.Consul.Secret()
		if got := password + token + announcer; err != nil || bad != nil || got != want {
			t.Errorf("%s: %q, %v, %v", text, got, err, bad)
		}
	}
}

// TestTheURLOfAStoreHasFiles and no secrets.
func TestTheURLOfAStoreHasFiles(t *testing.T) {
	s, err := ParseStoreURL("etcds://10.0.0.8:2379,10.0.0.9:2379/p?username=u&password-file=/s/pw&ca=/s/ca&cert=/s/c&key=/s/k&server-name=x")
	if err != nil || s.Prefix != "p" || len(s.Endpoints) != 2 || s.Username != "u" || s.PasswordFile != "/s/pw" || s.TLS != (StoreTLS{CA: "/s/ca", Cert: "/s/c", Key: "/s/k", ServerName: "x"}) {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := ParseStoreURL("consuls://10.0.0.8:8501?token-file=/s/t"); err != nil || s.TokenFile != "/s/t" || s.Prefix != "" || s.Endpoints[0] != "https://10.0.0.8:8501" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, wrong := range []string{"etcd://h:1?token=x", "etcd://h:1?password=x", "etcd://h:1?ca=relative", "etcd://h:1?ca=/a&ca=/b", "etcd://h:1?%"} {
		if _, err := ParseStoreURL(wrong); err == nil {
			t.Errorf("%s is taken", wrong)
		}
	}
}
