// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"redoubt/internal/failover"
	"redoubt/internal/topo"
)

// answerMax bounds what a client reads as one answer.
const answerMax = 16 << 20

// Client asks the members' faces. It goes to the next address when one cannot be connected to. It is safe for
// concurrent use.
type Client struct {
	addrs []string
	shard string // that requests are about; empty: the only one, or all
	http  *http.Client
}

// NewClient returns a client for the members whose faces are at addrs (host:port), asked in that order.
func NewClient(addrs ...string) *Client {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	return &Client{addrs: addrs, http: &http.Client{Transport: &http.Transport{
		DialContext: dialer.DialContext, MaxIdleConnsPerHost: 2, ResponseHeaderTimeout: waitMax + 5*time.Second,
	}}}
}

// About makes the following requests concern one shard. Call it before the client is used.
func (c *Client) About(shard string) { c.shard = shard }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// ErrNobody means that no member's face could be connected to.
var ErrNobody = errors.New("no member answers")

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	return c.doAs(ctx, "", method, path, in, out)
}

// doAs is do with the deployment's password, which guards users' data.
func (c *Client) doAs(ctx context.Context, password, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = b
	}
	if c.shard != "" {
		mark := "?"
		if strings.Contains(path, mark) {
			mark = "&"
		}
		path += mark + "shard=" + url.QueryEscape(c.shard)
	}
	var tried []string
	for _, addr := range c.addrs {
		resp, err := c.send(ctx, password, method, "http://"+addr+path, body)
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" && ctx.Err() == nil {
			tried = append(tried, addr)
			continue // nothing was sent
		}
		if err != nil {
			return fmt.Errorf("ask %s: %w", addr, err)
		}
		return readAnswer(resp, addr, out)
	}
	return fmt.Errorf("%w at %s", ErrNobody, strings.Join(tried, ", "))
}

func (c *Client) send(ctx context.Context, password, method, target string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if password != "" {
		req.SetBasicAuth(salvageUser, password)
	}
	return c.http.Do(req)
}

func readAnswer(resp *http.Response, addr string, out any) error {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, answerMax))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", addr, err)
	}
	if resp.StatusCode != http.StatusOK {
		var wrapped struct {
			Error *Error `json:"error"`
		}
		if json.Unmarshal(data, &wrapped) == nil && wrapped.Error != nil {
			wrapped.Error.Status = resp.StatusCode
			return wrapped.Error
		}
		return fmt.Errorf("%s answers %s: %s", addr, resp.Status, strings.TrimSpace(string(data[:min(len(data), 200)])))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s does not answer like a Redoubt member: %w", addr, err)
	}
	return nil
}

// Status returns what is known.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	return st, c.do(ctx, http.MethodGet, "/v1/status", nil, &st)
}

// Submit hands in an order.
func (c *Client) Submit(ctx context.Context, r IntentRequest) (topo.Intent, error) {
	var in topo.Intent
	return in, c.do(ctx, http.MethodPost, "/v1/intents", r, &in)
}

// Await waits until an order has ended or ctx does. A member that dies meanwhile is replaced by the next.
func (c *Client) Await(ctx context.Context, id string) (IntentStatus, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var st IntentStatus
		err := c.do(ctx, http.MethodGet, "/v1/intents/"+url.PathEscape(id)+"?wait=20s", nil, &st)
		var e *Error
		if err == nil && st.State != StatePending || errors.As(err, &e) && e.Status == http.StatusNotFound {
			return st, err
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("intent %s is still pending (%s: %s): %w", id, st.Phase, st.Why, ctx.Err())
			}
			return st, err
		case <-tick.C:
		}
	}
}

// Pause stops automatic failovers.
func (c *Client) Pause(ctx context.Context, p topo.Pause) error {
	return c.do(ctx, http.MethodPost, "/v1/pause", p, nil)
}

// Resume lets automatic failovers go on.
func (c *Client) Resume(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/v1/resume", struct{}{}, nil)
}

// Explain returns what the controller last thought.
func (c *Client) Explain(ctx context.Context) (topo.ControllerReport, error) {
	var r topo.ControllerReport
	return r, c.do(ctx, http.MethodGet, "/v1/explain", nil, &r)
}

// History returns the recorded events.
func (c *Client) History(ctx context.Context) (topo.Timeline, error) {
	var tl topo.Timeline
	return tl, c.do(ctx, http.MethodGet, "/v1/history", nil, &tl)
}

// State returns the controller's inputs, as a test case.
func (c *Client) State(ctx context.Context) (failover.State, error) {
	var st failover.State
	return st, c.do(ctx, http.MethodGet, "/v1/state", nil, &st)
}
