// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// answerMax bounds what is read of one answer.
const answerMax = 4 << 20

// swapTries bounds how often a key that somebody else writes at the same moment is tried again.
const swapTries = 3

// agent speaks the few words of Consul's HTTP API that announcing needs.
type agent struct {
	base  string
	token string
	http  *http.Client
}

func newAgent(address, token string, secure *tls.Config) (*agent, error) {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("consul: %q is no address of an agent: write for example 127.0.0.1:8500", address)
	}
	c := &http.Client{Timeout: askTime}
	if secure != nil {
		c.Transport = &http.Transport{TLSClientConfig: secure, TLSHandshakeTimeout: askTime, IdleConnTimeout: time.Minute}
	}
	return &agent{strings.TrimSuffix(u.String(), "/"), token, c}, nil
}

// advise says what to do about a connection that TLS does not allow.
func advise(err error) error {
	if text := err.Error(); strings.Contains(text, "tls:") || strings.Contains(text, "x509:") {
		return fmt.Errorf("check consul.tls: %w", err)
	}
	return err
}

// ask sends one request. A status that is neither 200 nor among those that are allowed is an error.
func (a *agent) ask(ctx context.Context, method, path string, in, out any, allowed ...int) (int, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return 0, fmt.Errorf("ask Consul: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return 0, fmt.Errorf("ask Consul: %w", err)
	}
	if a.token != "" {
		req.Header.Set("X-Consul-Token", a.token)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, fmt.Errorf("ask Consul: %w", advise(err))
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, answerMax))
	if err != nil {
		return 0, fmt.Errorf("ask Consul: %w", err)
	}
	for _, code := range allowed {
		if resp.StatusCode == code {
			return code, nil
		}
	}
	if resp.StatusCode == http.StatusForbidden {
		return resp.StatusCode, fmt.Errorf("ask Consul: %s %s: %s: check consul.token: it needs service:write, node:write and key:write", method, path, strings.TrimSpace(string(b[:min(len(b), 200)])))
	}
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, fmt.Errorf("ask Consul: %s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(b[:min(len(b), 200)])))
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			return 0, fmt.Errorf("ask Consul: %s: %w", path, err)
		}
	}
	return resp.StatusCode, nil
}

// registration is the body of a service's registration.
type registration struct {
	ID      string
	Name    string
	Tags    []string
	Address string
	Port    int
	Meta    map[string]string `json:",omitempty"`
	Check   checkOf
}

type checkOf struct {
	CheckID, Name, TTL, Status     string
	DeregisterCriticalServiceAfter string
}

func checkID(s service) string { return "service:" + s.ID }

func (a *agent) register(ctx context.Context, s service, ttl time.Duration) error {
	status := "critical"
	if s.up {
		status = "passing"
	}
	_, err := a.ask(ctx, http.MethodPut, "/v1/agent/service/register?replace-existing-checks=true", registration{
		s.ID, s.Name, s.Tags, s.Address, s.Port, s.Meta, checkOf{checkID(s), "redoubt", ttl.String(), status, forgotten},
	}, nil)
	return err
}

// renew renews the check; lost: the agent does not know it any more.
func (a *agent) renew(ctx context.Context, s service, note string) (lost bool, err error) {
	word := "fail"
	if s.up {
		word = "pass"
	}
	code, err := a.ask(ctx, http.MethodPut, "/v1/agent/check/"+word+"/"+url.PathEscape(checkID(s))+"?note="+url.QueryEscape(note), nil, nil, http.StatusNotFound)
	if code == http.StatusInternalServerError { // older agents say so of a check that they do not know
		return true, nil
	}
	return code == http.StatusNotFound, err
}

func (a *agent) deregister(ctx context.Context, id string) error {
	_, err := a.ask(ctx, http.MethodPut, "/v1/agent/service/deregister/"+url.PathEscape(id), nil, nil, http.StatusNotFound)
	return err
}

// entry is an instance of a service in the catalogue.
type entry struct {
	Node    struct{ Node string }
	Service struct {
		ID   string
		Tags []string
		Meta map[string]string
	}
}

// find returns the instances with a tag, whatever their checks say, as the servers of Consul agree on now.
func (a *agent) find(ctx context.Context, name, tag string) ([]entry, error) {
	var all []entry
	_, err := a.ask(ctx, http.MethodGet, "/v1/health/service/"+url.PathEscape(name)+"?consistent&tag="+url.QueryEscape(tag), nil, &all)
	return all, err
}

// evict takes an instance out of the catalogue.
func (a *agent) evict(ctx context.Context, e entry) error {
	_, err := a.ask(ctx, http.MethodPut, "/v1/catalog/deregister", map[string]string{"Node": e.Node.Node, "ServiceID": e.Service.ID}, nil)
	return err
}

// put writes a record by compare-and-swap; later: one of a later epoch is there, and stays.
func (a *agent) put(ctx context.Context, key string, r shardRecord) (later bool, err error) {
	for range swapTries {
		var found []struct {
			ModifyIndex uint64
			Value       []byte
		}
		path := "/v1/kv/" + (&url.URL{Path: key}).EscapedPath()
		if _, err := a.ask(ctx, http.MethodGet, path+"?consistent", nil, &found, http.StatusNotFound); err != nil {
			return false, err
		}
		index := uint64(0)
		if len(found) == 1 {
			var old shardRecord
			if json.Unmarshal(found[0].Value, &old) == nil && old.Epoch > r.Epoch {
				return true, nil
			}
			index = found[0].ModifyIndex
		}
		var done bool
		if _, err := a.ask(ctx, http.MethodPut, path+"?cas="+strconv.FormatUint(index, 10), r, &done); err != nil || done {
			return false, err
		}
	}
	return false, errors.New("a key in Consul changes faster than it can be written")
}
