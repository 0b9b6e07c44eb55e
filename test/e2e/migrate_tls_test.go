// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// certificate makes one for 127.0.0.1 that is its own authority.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, key, pool = write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", raw), x509.NewCertPool()
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	return cert, key, pool
}

// TestMigrateByTLS: a source that speaks TLS alone, and whose certificate is checked.
func TestMigrateByTLS(t *testing.T) {
	t.Parallel()
	cert, key, pool := certificate(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	from := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(from)
	server := exec.Command("redis-server", "--port", "0", "--tls-port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--logfile", "log",
		"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no", "--requirepass", "word")
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- server.Wait() }()
	t.Cleanup(func() { _ = server.Process.Kill(); <-exited })
	old := redis.NewClient(&redis.Options{Addr: from, Password: "word", TLSConfig: &tls.Config{RootCAs: pool}})
	t.Cleanup(func() { old.Close() })
	for end := time.Now().Add(10 * time.Second); old.Ping(t.Context()).Err() != nil; wait(20 * time.Millisecond) {
		if len(exited) > 0 {
			exited <- nil
			t.Skip("this server was built without TLS")
		}
		if time.Now().After(end) {
			t.Fatal(old.Ping(t.Context()).Err())
		}
	}
	keys := furnish(t, old, 50)
	d := up(t, "--replicas", "1")
	d.waitHealthy(30 * time.Second)
	run := func(env ...string) (string, error) {
		cmd := exec.Command(d.bin, "migrate", "--from", "rediss://"+from, "--to", d.dir, "--cut-over", "--verify", "all", "--yes")
		cmd.Env = append(os.Environ(), append(env, "REDOUBT_SOURCE_PASSWORD=word")...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err == nil || !strings.Contains(out, "by TLS") {
		t.Errorf("a certificate that nobody vouches for: %v\n%s", err, out)
	}
	if out, err := run("SSL_CERT_FILE=" + cert); err != nil || !strings.Contains(out, fmt.Sprintf("compared: %d keys", len(keys))) {
		t.Fatalf("%v\n%s", err, out)
	}
	sameContent(t, old, client(t, d.proxyAddr(0), 0), keys)
}
