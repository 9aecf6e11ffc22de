package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// GatePath is where the gate for archiving answers.
const GatePath = "/gate/v1/"

// routeGate serves the gate's own handler: questions to everybody who may read, orders
// to those in control.
func (s *Server) routeGate(mux *http.ServeMux) {
	if s.parts.Gate == nil {
		return
	}
	mux.HandleFunc("GET "+GatePath, s.reading(s.parts.Gate.ServeHTTP))
	for _, method := range []string{http.MethodPost, http.MethodDelete} {
		mux.HandleFunc(method+" "+GatePath, s.controlling(s.parts.Gate.ServeHTTP))
	}
}

// NewClientAt returns a Client for a listener at a base address, http://HOST:PORT or
// with https, where trust says how the listener is known; nil is by the system's
// authorities. key is as for [NewClient].
func NewClientAt(base, key string, trust *tls.Config) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("want an address such as http://edge-1:8444")
	}
	c := NewClient(u.Host, key, trust)
	c.base = u.Scheme + "://" + u.Host + strings.TrimSuffix(u.Path, "/")
	return c, nil
}

// Gate asks the gate, and gives the answer's body, which says itself whether it is yes
// or not yet: yes is whether it came with 200. It returns [ErrNotRunning] when nobody
// listens, and a [RefusedError] for a question that is refused.
func (c *Client) Gate(ctx context.Context, method, path string, order any) (body []byte, yes bool, err error) {
	status, body, err := c.whole(ctx, method, GatePath+path, order)
	switch {
	case err != nil:
		return nil, false, err
	case status == http.StatusOK, status == http.StatusServiceUnavailable:
		return body, status == http.StatusOK, nil
	}
	return nil, false, refusal(status, "", body)
}

// whole sends one request and returns status and body, whatever they are.
func (c *Client) whole(ctx context.Context, method, path string, order any) (int, []byte, error) {
	resp, err := c.exchange(ctx, method, path, order)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = errors.New("the answer is too long") // half a list must not pass for the list
	}
	return resp.StatusCode, body, err
}
