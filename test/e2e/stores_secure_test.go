// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"redoubt/test/outside"
)

// TestADeploymentOverASecuredConsul: certificates and a token are given by files, and appear nowhere else. With a token that Consul does
// not know the deployment does not begin, and says why.
func TestADeploymentOverASecuredConsul(t *testing.T) {
	const token = "11111111-2222-4333-8444-555555555555"
	a := outside.NewAuthority(t)
	cert, key := a.Issue(t, "member", time.Hour)
	c := outside.ConsulWithTLS(t, a, token)
	dir := t.TempDir()
	store := func(token string) string {
		file := filepath.Join(dir, token[:4])
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		q := url.Values{"token-file": {file}, "ca": {a.CA}, "cert": {cert}, "key": {key}}
		return strings.Replace(c.Endpoints[0], "https", "consuls", 1) + "/e2e?" + q.Encode()
	}
	d := up(t, "--store", store(token))
	d.waitHealthy(20 * time.Second)
	if out, err := exec.Command("grep", "-rl", token, d.dir).CombinedOutput(); err == nil {
		t.Errorf("the token is in\n%s", out)
	}
	wrong := &deployment{t: t, bin: d.bin, dir: t.TempDir(), base: freeBase(t)}
	t.Cleanup(func() {
		if out, err := exec.Command(d.bin, "down", "--dir", wrong.dir, "--yes").CombinedOutput(); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	})
	wrong.args = []string{"--wait", "2s", "--store", store("2222" + token[4:])}
	out, err := wrong.tryStart()
	if err == nil || !strings.Contains(out, "check store.token") {
		t.Errorf("up with a wrong token: %v\n%s", err, out)
	}
	wrong.until(10*time.Second, "status says what is wrong", func() (bool, string) {
		out, _ := exec.Command(d.bin, "status", "--dir", wrong.dir).CombinedOutput()
		return strings.Contains(string(out), "check store.token"), string(out)
	})
}
