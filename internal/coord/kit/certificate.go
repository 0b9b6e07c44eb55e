// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"
)

// Certificate says what to do about a connection that TLS does not allow; other errors are returned as they are. It goes by the words,
// because clients of stores pass on nothing else.
func Certificate(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, x := range []struct{ words, advice string }{
		{"remote error: tls: expired certificate", "the store says that this member's certificate has expired: renew store.tls.cert"},
		{"remote error: tls:", "the store refuses this member's certificate, or wants one: check store.tls.cert and store.tls.key"},
		{"certificate has expired", "the store's certificate has expired, or this machine's clock is wrong: renew it"},
		{"signed by unknown authority", "the store's certificate is of an authority that is not trusted here: check store.tls.ca"},
		{"wanted to match", "the store's certificate is for another name: check store.endpoints, or set store.tls.server-name"},
		{"doesn't contain any IP SANs", "the store's certificate is for another name: check store.endpoints, or set store.tls.server-name"},
		{"x509: certificate is valid for", "the store's certificate is for another name: check store.endpoints, or set store.tls.server-name"},
		{"ended in the handshake", "nobody speaks TLS there: write http:// in store.endpoints"},
		{"first record does not look like a TLS handshake", "nobody speaks TLS there: write http:// in store.endpoints"},
		{"HTTP response to HTTPS client", "nobody speaks TLS there: write http:// in store.endpoints"},
		{"HTTP request to an HTTPS server", "TLS is spoken there: write https:// in store.endpoints"},
		{"error reading server preface", "something else answers there, or TLS is spoken: check store.endpoints"},
	} {
		if strings.Contains(text, x.words) {
			return fmt.Errorf("%s: %w", x.advice, err)
		}
	}
	return err
}

// answerTime is how long Handshake waits for a refusal.
const answerTime = 300 * time.Millisecond

// Handshake makes a connection to a URL with https and ends it. Its error says why that is not to be had, which clients of stores do not
// always say. With TLS 1.3 a server refuses a certificate after the handshake only.
func Handshake(ctx context.Context, addr string, secure *tls.Config) error {
	u, err := url.Parse(addr)
	if err != nil || u.Scheme != "https" {
		return err
	}
	if secure == nil {
		secure = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	secure = secure.Clone()
	secure.NextProtos = []string{"h2"}
	conn, err := (&tls.Dialer{Config: secure}).DialContext(ctx, "tcp", u.Host)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the connection ended in the handshake: %w", err)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil && strings.Contains(err.Error(), "remote error:") {
		return err
	}
	return nil
}
