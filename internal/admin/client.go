package admin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sluice/internal/hit"
)

// ErrNotRunning: nothing listens where the running Sluice should.
var ErrNotRunning = errors.New("no Sluice is running there")

// Limits of the client. An answer may be long, so only its head has a limit in time,
// and verifying a large queue takes minutes before that.
const (
	dialTimeout = 3 * time.Second
	maxLine     = 64 << 20 // a dead letter with its request, encoded
	maxAnswer   = 16 << 20
	maxProblem  = 64 << 10
)

// A RefusedError is an answer of the daemon that refuses.
type RefusedError struct {
	Code    int
	Problem Problem
}

// Error is the daemon's own sentence.
func (e *RefusedError) Error() string {
	if e.Problem.Error == "" {
		return fmt.Sprintf("answered %d", e.Code)
	}
	return e.Problem.Error
}

// A Client talks to a running Sluice over its private listener. It may be used by
// many goroutines.
type Client struct {
	base string
	key  string
	http *http.Client
}

// NewClient returns a Client for a listener at addr, HOST:PORT as in admin.listen;
// a host that means every address is taken for the loopback. key is the token or the
// control key, or "". With trust the listener speaks HTTPS.
func NewClient(addr, key string, trust *tls.Config) *Client {
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
			addr = net.JoinHostPort("127.0.0.1", port)
		}
	}
	transport := &http.Transport{
		DialContext:     (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig: trust,
	}
	scheme := "http://"
	if trust != nil {
		scheme = "https://"
	}
	return &Client{base: scheme + addr, key: key, http: &http.Client{Transport: transport}}
}

// NewLocalClient returns a Client of a handler in the same process, and the function
// that ends it. It is for looking at data that no daemon serves.
func NewLocalClient(h http.Handler, key string) (c *Client, stop func()) {
	pipe := make(pipeListener)
	server := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout}
	served := make(chan struct{})
	// Ended by stop.
	go func() {
		defer close(served)
		_ = server.Serve(pipe) // always ErrServerClosed
	}()
	transport := &http.Transport{DialContext: pipe.dial}
	stop = func() {
		transport.CloseIdleConnections()
		server.Close()
		<-served
	}
	return &Client{base: "http://localhost", key: key, http: &http.Client{Transport: transport}}, stop
}

// A pipeListener hands the dialer's end to the acceptor. It is closed by its server.
type pipeListener chan net.Conn

func (l pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept is part of [net.Listener].
func (l pipeListener) Accept() (net.Conn, error) {
	conn, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

// Close is part of [net.Listener]. The server calls it once; nobody dials any more.
func (l pipeListener) Close() error {
	close(l)
	return nil
}

// Addr is part of [net.Listener].
func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "local", Net: "unix"} }

// do sends one request and returns the body of a 2xx answer. It returns
// [ErrNotRunning] when nobody listens, and a [RefusedError] for any other status.
func (c *Client) do(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	return accepted(c.exchange(ctx, method, path, body))
}

// send is do with a body as it is, nil for none.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (io.ReadCloser, error) {
	return accepted(c.roundTrip(ctx, method, path, body))
}

// exchange sends one request, with a body as JSON unless it is nil.
func (c *Client) exchange(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the order: %w", err)
		}
		reader = bytes.NewReader(text)
	}
	return c.roundTrip(ctx, method, path, reader)
}

func (c *Client) roundTrip(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNotRunning
	}
	return resp, err
}

func accepted(resp *http.Response, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxProblem)) // What could be read may tell more than the status.
	return nil, refusal(resp.StatusCode, resp.Header.Get("Content-Type"), text)
}

// refusal makes an error of an answer that refuses.
func refusal(status int, contentType string, text []byte) error {
	refused := &RefusedError{Code: status}
	if json.Unmarshal(text, &refused.Problem) != nil && strings.HasPrefix(contentType, "text/plain") {
		refused.Problem.Error = failedChecks(string(text))
	}
	return refused
}

// failedChecks joins what /readyz complains about.
func failedChecks(text string) string {
	var failed []string
	for line := range strings.Lines(text) {
		if _, why, ok := strings.Cut(line, " failed: "); ok && strings.HasPrefix(line, "[-]") {
			failed = append(failed, strings.TrimSpace(why))
		}
	}
	return strings.Join(failed, "; ")
}

// object gets one JSON object.
func (c *Client) object(ctx context.Context, method, path string, body, into any) error {
	r, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := json.NewDecoder(io.LimitReader(r, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// lines gets JSON lines. It yields an error at most once, as the last thing.
func lines[T any](ctx context.Context, c *Client, path string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		r, err := c.do(ctx, http.MethodGet, path, nil)
		if err != nil {
			yield(none, err)
			return
		}
		defer r.Close()
		scanner := bufio.NewScanner(r)
		scanner.Buffer(nil, maxLine)
		for scanner.Scan() {
			var line struct {
				Error string `json:"error"`
			}
			var value T
			err := json.Unmarshal(scanner.Bytes(), &line)
			if err == nil && line.Error != "" {
				err = errors.New(line.Error)
			}
			if err == nil {
				err = json.Unmarshal(scanner.Bytes(), &value)
			}
			if !yield(value, err) || err != nil {
				return
			}
		}
		if err := scanner.Err(); err != nil {
			yield(none, fmt.Errorf("read the answer: %w", err))
		}
	}
}

// Ready asks whether hits can be accepted, and returns a [RefusedError] if not.
func (c *Client) Ready(ctx context.Context) error {
	r, err := c.do(ctx, http.MethodGet, "/readyz", nil)
	if err != nil {
		return err
	}
	return r.Close()
}

// Stats asks for the figures of the queue.
func (c *Client) Stats(ctx context.Context) (QueueStats, error) {
	var stats QueueStats
	err := c.object(ctx, http.MethodGet, "/api/v1/queue/stats", nil, &stats)
	return stats, err
}

// Sites asks for the sums per site and day.
func (c *Client) Sites(ctx context.Context) iter.Seq2[SiteDay, error] {
	return lines[SiteDay](ctx, c, "/api/v1/queue/sites")
}

// Drain asks how Matomo is fed.
func (c *Client) Drain(ctx context.Context) (DrainStatus, error) {
	var status DrainStatus
	err := c.object(ctx, http.MethodGet, "/api/v1/drain", nil, &status)
	return status, err
}

// Pause orders a pause and returns the state after it.
func (c *Client) Pause(ctx context.Context, order Pause) (DrainStatus, error) {
	var status DrainStatus
	err := c.object(ctx, http.MethodPost, "/api/v1/drain/pause", order, &status)
	return status, err
}

// Resume ends a pause and returns the state after it.
func (c *Client) Resume(ctx context.Context, order Resume) (DrainStatus, error) {
	var status DrainStatus
	err := c.object(ctx, http.MethodPost, "/api/v1/drain/resume", order, &status)
	return status, err
}

// Verify orders a verification; it may take minutes.
func (c *Client) Verify(ctx context.Context) (VerifyResult, error) {
	var result VerifyResult
	err := c.object(ctx, http.MethodPost, "/api/v1/queue/verify", struct{}{}, &result)
	return result, err
}

// Hits lists pending hits, oldest first.
func (c *Client) Hits(ctx context.Context, f PeekFilter, v View) iter.Seq2[Hit, error] {
	q := make(url.Values)
	if f.After != (hit.ID{}) {
		q.Set("after", f.After.String())
	}
	return lines[Hit](ctx, c, "/api/v1/queue/hits?"+filter(q, f.Site, f.Limit, v))
}

// A Shown is one hit, pending or buried: Dead is nil for a pending one.
type Shown struct {
	Hit  Hit
	Dead *Dead
}

// Show finds one hit.
func (c *Client) Show(ctx context.Context, id hit.ID, v View) (Shown, error) {
	var text json.RawMessage
	err := c.object(ctx, http.MethodGet, "/api/v1/queue/hits/"+id.String()+"?"+filter(make(url.Values), nil, 0, v), nil, &text)
	if err != nil {
		return Shown{}, err
	}
	var dead Dead
	if json.Unmarshal(text, &dead) == nil && !dead.BuriedAt.IsZero() {
		return Shown{dead.Hit, &dead}, nil
	}
	var shown Shown
	if err := json.Unmarshal(text, &shown.Hit); err != nil {
		return Shown{}, fmt.Errorf("read the answer: %w", err)
	}
	return shown, nil
}

// Dead lists buried hits.
func (c *Client) Dead(ctx context.Context, f DeadFilter, v View) iter.Seq2[Dead, error] {
	return lines[Dead](ctx, c, "/api/v1/queue/dead?"+filter(deadFilter(f), f.Site, f.Limit, v))
}

// DeadSummary counts buried hits by reason. Of f only Site and Reason matter.
func (c *Client) DeadSummary(ctx context.Context, f DeadFilter) (DeadSummary, error) {
	var summary DeadSummary
	err := c.object(ctx, http.MethodGet, "/api/v1/queue/dead/summary?"+filter(deadFilter(f), f.Site, 0, Masked), nil, &summary)
	return summary, err
}

// Requeue makes buried hits pending again and returns how many.
func (c *Client) Requeue(ctx context.Context, order Requeue) (int, error) {
	var done Requeued
	err := c.object(ctx, http.MethodPost, "/api/v1/queue/requeue", order, &done)
	return done.Requeued, err
}

func deadFilter(f DeadFilter) url.Values {
	q := make(url.Values)
	if f.Reason != "" {
		q.Set("reason", f.Reason)
	}
	if f.UpTo != nil {
		q.Set("up_to", f.UpTo.String())
	}
	return q
}

func filter(q url.Values, site *int64, limit int, v View) string {
	if site != nil {
		q.Set("site", strconv.FormatInt(*site, 10))
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	switch v {
	case Full:
		q.Set("view", "full")
	case Export:
		q.Set("view", "export")
	}
	return q.Encode()
}
