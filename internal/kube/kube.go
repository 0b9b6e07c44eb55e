// SPDX-License-Identifier: Apache-2.0

// Package kube speaks to the API server of a Kubernetes cluster: one request and its answer, and watches. Just so much of it as
// Redoubt's store and its announcer need, on net/http; ADR 0044 says why it is not client-go.
//
// It does not repeat a request, does not cache and knows nothing of Redoubt. Its invariants: an error says whether the request
// was sent at all (NotSent), and an answer of the API server is told as such (Status). A request that takes too long costs
// its connection, so that the next one may reach another API server behind the same address.
//
// Goroutines: those of net/http; Close ends them when no request is under way.
package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Where a pod finds its service account.
const (
	accountDir  = "/var/run/secrets/kubernetes.io/serviceaccount/"
	envHost     = "KUBERNETES_SERVICE_HOST"
	envPort     = "KUBERNETES_SERVICE_PORT"
	tokenReread = 30 * time.Second // tokens of pods are replaced within the hour
	bodyMax     = 4 << 20          // most bytes of one answer, or of one event of a watch
	connsMax    = 64               // to the API server
	dialTimeout = time.Second
)

// Options say where the API server is. What is empty is as a pod finds it.
type Options struct {
	URL       string // https://host:port
	Namespace string
	TokenFile string // empty with a URL: no token
	CA        string // file; empty with a URL: the system's authorities
	Agent     string // User-Agent
}

// Client is one API server and one namespace of it. Its methods are safe for concurrent use.
type Client struct {
	base      string
	namespace string
	agent     string
	http      *http.Client
	transport *http.Transport
	tokenFile string

	mu     sync.Mutex // guards what follows
	token  string
	readAt time.Time
}

// Complete fills in what a pod finds, and says what is missing outside of one.
func (o Options) Complete() (Options, error) {
	if o.URL == "" {
		host, port := os.Getenv(envHost), os.Getenv(envPort)
		if host == "" || port == "" {
			return o, errors.New("this process does not run in a pod (" + envHost + " is not set): write kubernetes.api, for example https://10.0.0.1:6443")
		}
		o.URL = "https://" + net.JoinHostPort(host, port)
		if o.TokenFile == "" {
			o.TokenFile = accountDir + "token"
		}
		if o.CA == "" {
			o.CA = accountDir + "ca.crt"
		}
	}
	if o.Namespace == "" {
		b, err := os.ReadFile(accountDir + "namespace")
		if err != nil {
			return o, fmt.Errorf("the namespace is not known: write kubernetes.namespace: %w", err)
		}
		o.Namespace = strings.TrimSpace(string(b))
	}
	return o, nil
}

// Open makes a client. It does not wait until the API server answers.
func Open(o Options) (*Client, error) {
	o, err := o.Complete()
	if err != nil {
		return nil, err
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("read the authorities of the API server: %w", err)
		}
		if secure.RootCAs = x509.NewCertPool(); !secure.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate in PEM form", o.CA)
		}
	}
	t := &http.Transport{
		TLSClientConfig: secure, DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, TLSHandshakeTimeout: 2 * dialTimeout,
		MaxConnsPerHost: connsMax, MaxIdleConnsPerHost: connsMax / 4, IdleConnTimeout: time.Minute, DisableCompression: true,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1: one connection that hangs holds one request
	}
	c := &Client{base: strings.TrimSuffix(o.URL, "/"), namespace: o.Namespace, agent: o.Agent, transport: t, http: &http.Client{Transport: t}, tokenFile: o.TokenFile}
	if _, err := c.bearer(); err != nil {
		return nil, err
	}
	return c, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// URL is where the API server is.
func (c *Client) URL() string { return c.base }

// Namespace is the one that Path leads to.
func (c *Client) Namespace() string { return c.namespace }

// Path is that of a resource in the namespace: of group "" (the core's) or, say, "discovery.k8s.io/v1".
func (c *Client) Path(group, resource string, name ...string) string {
	root := "/api/v1"
	if group != "" {
		root = "/apis/" + group
	}
	p := root + "/namespaces/" + url.PathEscape(c.namespace) + "/" + resource
	for _, n := range name {
		p += "/" + url.PathEscape(n)
	}
	return p
}

// NotSent is an error that came before the API server can have seen the request.
type NotSent struct{ Why error }

func (e *NotSent) Error() string { return e.Why.Error() }
func (e *NotSent) Unwrap() error { return e.Why }

// Status is what the API server said in place of success.
type Status struct {
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (e *Status) Error() string {
	return fmt.Sprintf("the API server says %d %s: %s", e.Code, e.Reason, e.Message)
}

// Is reports whether the API server said just this code.
func Is(err error, code int) bool {
	var s *Status
	return errors.As(err, &s) && s.Code == code
}

// bearer is the token as its file has it now.
func (c *Client) bearer() (string, error) {
	if c.tokenFile == "" {
		return "", nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.readAt) > tokenReread {
		b, err := os.ReadFile(c.tokenFile)
		if err != nil && c.token == "" {
			return "", fmt.Errorf("read the token of the service account: %w", err)
		}
		if err == nil { // otherwise the one that is known has to do
			c.token, c.readAt = strings.TrimSpace(string(b)), now
		}
	}
	return c.token, nil
}

// begin sends a request and returns the answer's head; an answer other than success is an error.
func (c *Client) begin(ctx context.Context, method, path string, query url.Values, in any, kind string) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, &NotSent{fmt.Errorf("encode the request: %w", err)}
		}
		body = bytes.NewReader(b)
	}
	token, err := c.bearer()
	if err != nil {
		return nil, &NotSent{err}
	}
	to := c.base + path
	if len(query) > 0 {
		to += "?" + query.Encode()
	}
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return nil, &NotSent{err}
	}
	req.Header.Set("Accept", "application/json")
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	if c.agent != "" {
		req.Header.Set("User-Agent", c.agent)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if !connected.Load() {
			return nil, &NotSent{err}
		}
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		s := &Status{}
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if json.Unmarshal(b, s) != nil || s.Message == "" {
			s.Message = strings.TrimSpace(string(b[:min(len(b), 200)]))
		}
		s.Code = resp.StatusCode
		return nil, s
	}
	return resp, nil
}

// Kinds of bodies.
const (
	JSON  = "application/json"
	Merge = "application/merge-patch+json"
)

// Do carries one request out; in and out may be nil. What it reads is linearizable, unless the query names a resourceVersion.
func (c *Client) Do(ctx context.Context, method, path string, query url.Values, kind string, in, out any) error {
	resp, err := c.begin(ctx, method, path, query, in, kind)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, bodyMax+1))
	if err != nil {
		return fmt.Errorf("read the API server's answer: %w", err)
	}
	if len(b) > bodyMax {
		return fmt.Errorf("the API server's answer has more than %d bytes", bodyMax)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("decode the API server's answer: %w", err)
	}
	return nil
}

// Event is one change that a watch tells of.
type Event struct {
	Type   string          `json:"type"` // ADDED, MODIFIED, DELETED, BOOKMARK, ERROR
	Object json.RawMessage `json:"object"`
}

// Watch tells learn of the changes of a list after a version of it, until ctx ends, the API server ends it or an error occurs. It ends with
// a Status of code 410 when that version is too old, and with nil when the API server has ended it.
func (c *Client) Watch(ctx context.Context, path string, query url.Values, learn func(Event) error) error {
	resp, err := c.begin(ctx, http.MethodGet, path, query, nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	bound := &io.LimitedReader{R: resp.Body}
	d := json.NewDecoder(bound)
	for {
		bound.N = bodyMax
		var e Event
		if err := d.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) && bound.N > 0 {
				return nil
			}
			return fmt.Errorf("read a watch of the API server: %w", err)
		}
		if e.Type == "ERROR" {
			s := &Status{Message: "a watch failed"}
			_ = json.Unmarshal(e.Object, s) // what it does not say stays unsaid
			return s
		}
		if err := learn(e); err != nil {
			return err
		}
	}
}
