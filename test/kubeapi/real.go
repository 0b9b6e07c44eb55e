// SPDX-License-Identifier: Apache-2.0

package kubeapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/kube"
	"redoubt/test/outside"
)

// EnvServer names the program of the real API server; `make kube-apiserver` builds it.
const EnvServer = "REDOUBT_TEST_KUBE_APISERVER"

// startTime bounds how long the real one may take to serve.
const startTime = 60 * time.Second

// process is the real API server.
type process struct {
	t     testing.TB
	argv  []string
	log   string
	cmd   *exec.Cmd
	ended chan struct{}
}

// Program is the real API server, if there is one.
func Program() (string, bool) {
	bin := os.Getenv(EnvServer)
	if bin == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", false
		}
		found, err := filepath.Glob(filepath.Join(cache, "redoubt", "kube-apiserver-v[0-9.]*[0-9]"))
		if err != nil || len(found) == 0 {
			return "", false
		}
		bin = found[len(found)-1]
	}
	_, err := exec.LookPath(bin)
	return bin, err == nil
}

// Real starts the real API server over an etcd of its own; the test is skipped where it was not built. Its Access is that of an
// administrator.
func Real(t testing.TB) *Server {
	t.Helper()
	bin, ok := Program()
	if !ok {
		t.Skip("no kube-apiserver: make kube-apiserver builds it (about 6 minutes, once), or name one in " + EnvServer)
	}
	etcd := outside.Etcd(t, 1)
	dir, port := t.TempDir(), outside.Ports(t, 1)[0]
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "sa.key"), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	write(t, filepath.Join(dir, "tokens.csv"), []byte(token+",admin,1,system:masters\n"+memberToken+",system:serviceaccount:default:redoubt,2,\"system:serviceaccounts,system:authenticated\"\n"))
	write(t, filepath.Join(dir, "token"), []byte(token))
	write(t, filepath.Join(dir, "member-token"), []byte(memberToken))
	url := fmt.Sprintf("https://127.0.0.1:%d", port)
	p := &process{t: t, log: filepath.Join(dir, "apiserver.log"), argv: []string{bin, "--etcd-servers", etcd.Endpoints[0], "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
		"--secure-port", fmt.Sprint(port), "--cert-dir", filepath.Join(dir, "pki"), "--service-account-issuer", url, "--service-account-key-file", filepath.Join(dir, "sa.key"),
		"--service-account-signing-key-file", filepath.Join(dir, "sa.key"), "--token-auth-file", filepath.Join(dir, "tokens.csv"), "--authorization-mode", "RBAC",
		"--service-cluster-ip-range", "10.96.0.0/16", "--disable-admission-plugins", "ServiceAccount"}}
	s := &Server{Access: kube.Options{URL: url, Namespace: "default", TokenFile: filepath.Join(dir, "token"), CA: filepath.Join(dir, "pki", "apiserver.crt")}, real: p}
	t.Cleanup(func() {
		p.kill()
		if log, err := os.ReadFile(p.log); err == nil && t.Failed() {
			t.Logf("--- kube-apiserver\n%s", log[max(0, len(log)-3000):])
		}
	})
	p.start()
	s.await(t)
	return s
}

// memberToken is that of the service account redoubt.
const memberToken = "a-token-of-members"

// Member is the access of the service account redoubt, which has no rights but those of a Role.
func (s *Server) Member() kube.Options {
	o := s.Access
	if s.real != nil {
		o.TokenFile = filepath.Join(filepath.Dir(o.TokenFile), "member-token")
	}
	return o
}

func (p *process) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
}

func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.ended
	p.cmd = nil
}

// await waits until it is ready and has its namespace.
func (s *Server) await(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := kube.Open(s.Access); err == nil { // its certificate is there after its start
			err = c.Do(ctx, http.MethodGet, c.Path("", "configmaps"), nil, "", nil, nil)
			if err == nil {
				err = c.Do(ctx, http.MethodGet, "/api/v1/namespaces/default", nil, "", nil, nil)
			}
			c.Close()
			if err == nil {
				return
			}
		}
		select {
		case <-tick.C:
		case <-s.real.ended:
			t.Fatal("kube-apiserver ended")
		case <-ctx.Done():
			t.Fatalf("kube-apiserver does not serve within %s", startTime)
		}
	}
}

// Kill ends the real one as a power cut would; Start begins it again and waits.
func (s *Server) Kill() { s.real.kill() }

// Start starts it again and waits until it serves.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.real.start()
	s.await(t)
}

// Stop freezes it; the kernel still takes what is sent to it. Continue lets it go on.
func (s *Server) Stop() { s.real.signal(syscall.SIGSTOP) }

// Continue lets it go on.
func (s *Server) Continue() { s.real.signal(syscall.SIGCONT) }

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// Pod makes a pod, or gives one that exists another address, as a kubelet would.
func (s *Server) Pod(t testing.TB, name, ip string) {
	t.Helper()
	c := s.Open(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	pod := map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name, "labels": map[string]string{"app": "redoubt"}},
		"spec": map[string]any{"containers": []any{map[string]any{"name": "redoubt", "image": "redoubt"}}}}
	if err := c.Do(ctx, http.MethodPost, c.Path("", "pods"), nil, kube.JSON, pod, nil); err != nil && !kube.Is(err, http.StatusConflict) {
		t.Fatal(err)
	}
	status := map[string]any{"status": map[string]any{"phase": "Running", "podIP": ip, "podIPs": []any{map[string]string{"ip": ip}}}}
	if err := c.Do(ctx, http.MethodPatch, c.Path("", "pods", name)+"/status", nil, kube.Merge, status, nil); err != nil {
		t.Fatal(err)
	}
}

// Kubectl runs kubectl as the administrator; the test is skipped where it is not installed.
func (s *Server) Kubectl(t testing.TB, in []byte, args ...string) (string, error) {
	t.Helper()
	bin, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("kubectl is not installed")
	}
	cmd := exec.Command(bin, append([]string{"--server", s.Access.URL, "--certificate-authority", s.Access.CA, "--token", token, "-n", s.Access.Namespace}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG=/dev/null", "HOME="+t.TempDir())
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
