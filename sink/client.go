package sink

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	dialTimeout = 10 * time.Second
	// maxAnswerBody bounds what is read of an answer. A bulk answer of 10,000
	// invalid hits takes 60 KiB.
	maxAnswerBody = 256 << 10
	// idleTimeout is shorter than the keep-alive of common web servers is long
	// under load, so that few requests meet a connection that is being closed.
	idleTimeout = 30 * time.Second
)

// A client posts bulk requests. It sends no header of its own that Matomo would
// read: no User-Agent, Accept-Language, Referer, Cookie or client hints. It never
// follows a redirect, since the request carries a token.
type client struct {
	http      *http.Client
	transport *http.Transport
	bulkURL   string
	apiURL    string // Matomo's index.php, for the Reporting API
	timeout   time.Duration
	clock     *clock
	// forwardHeader names the visitor's address to Matomo where [client.bulk] is
	// given one; "" = it is not named.
	forwardHeader string
	// setsCookies: an answer set a cookie of Matomo's, see maxCookieHits.
	setsCookies atomic.Bool
}

// maxCookieHits bounds a batch for a Matomo in third-party cookie mode. Its answer
// has a Set-Cookie line of about 120 bytes for each hit, and web servers take 4 KiB
// of headers from PHP: they answer 502 to a larger batch, which is recorded.
const maxCookieHits = 20

// An answer is what came back for one request.
type answer struct {
	status      int
	contentType string
	body        []byte
	truncated   bool // the body was longer than what is read
	retryAfter  time.Duration

	// err says why there is no whole answer; it holds neither URL nor body.
	err error
	// sent: something of the request may have left, so that Matomo may have seen
	// it. It is meaningful only together with err.
	sent bool

	began time.Time
	took  time.Duration
}

// newClient checks endpoint: the absolute URL of matomo.php or piwik.php.
func newClient(endpoint string, timeout time.Duration, idle int, clk *clock) (*client, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, errors.New("endpoint is not a URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("endpoint %q: want http://HOST/… or https://HOST/…", u.Redacted())
	}
	bulk := *u
	query := bulk.Query()
	query.Set("queuedtracking", "0")
	bulk.RawQuery, bulk.Fragment = query.Encode(), ""
	api := *u
	api.RawQuery, api.Fragment = "", ""
	api.Path = u.Path[:strings.LastIndexByte(u.Path, '/')+1] + "index.php"
	if !strings.HasPrefix(api.Path, "/") {
		api.Path = "/" + api.Path
	}
	api.RawPath = ""

	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &countedConn{Conn: conn}, nil
		},
		TLSHandshakeTimeout: dialTimeout,
		MaxIdleConnsPerHost: idle,
		IdleConnTimeout:     idleTimeout,
		DisableCompression:  true,
		WriteBufferSize:     64 << 10,
	}
	return &client{
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		transport: transport,
		bulkURL:   bulk.String(),
		apiURL:    api.String(),
		timeout:   timeout,
		clock:     clk,
	}, nil
}

// bulk posts the body of a bulk request of one group. visitor, if not empty, is the
// address that Matomo is told the request comes from. A failure is in the answer.
func (c *client) bulk(ctx context.Context, body []byte, g group, visitor string) *answer {
	return c.post(ctx, c.bulkURL, body, func(h http.Header) {
		h.Set("Content-Type", "application/json")
		c.forward(h, visitor)
		if g.doNotTrack {
			h.Set("DNT", "1")
		}
		if g.dataSaver {
			h.Set("Via", "1.1 chrome-compression-proxy")
		}
		for line := range strings.SplitSeq(g.headers, "\n") {
			if name, value, ok := strings.Cut(line, ": "); ok {
				h.Set(name, value)
			}
		}
	})
}

// call asks Matomo's Reporting API. The token travels in the body.
func (c *client) call(ctx context.Context, method, token string) *answer {
	return c.callFor(ctx, method, token, "")
}

// callFor is call for a visitor's address, if that is not empty.
func (c *client) callFor(ctx context.Context, method, token, visitor string) *answer {
	return c.api(ctx, method, token, visitor, nil, maxAnswerBody)
}

// ask is call with parameters, for an answer that may be longer.
func (c *client) ask(ctx context.Context, method, token string, parameters url.Values, most int) *answer {
	return c.api(ctx, method, token, "", parameters, most)
}

func (c *client) api(ctx context.Context, method, token, visitor string, parameters url.Values, most int) *answer {
	form := url.Values{"module": {"API"}, "method": {method}, "format": {"json"}}
	maps.Copy(form, parameters)
	if token != "" {
		form.Set("token_auth", token)
	}
	return c.send(ctx, c.apiURL, []byte(form.Encode()), most, func(h http.Header) {
		h.Set("Content-Type", "application/x-www-form-urlencoded")
		c.forward(h, visitor)
	})
}

func (c *client) post(ctx context.Context, to string, body []byte, headers func(http.Header)) *answer {
	return c.send(ctx, to, body, maxAnswerBody, headers)
}

// send posts a body and reads at most so many bytes of the answer.
func (c *client) send(ctx context.Context, to string, body []byte, most int, headers func(http.Header)) *answer {
	a := &answer{began: time.Now()}
	defer func() { a.took = time.Since(a.began) }()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var w writes
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, w.trace()), http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		a.err = errors.New("the request could not be built")
		return a
	}
	headers(req.Header)
	req.Header["User-Agent"] = []string{""} // keeps Go's own away
	resp, err := c.http.Do(req)
	if err != nil {
		a.err, a.sent = withoutURL(err), w.begun(ctx.Err() != nil)
		return a
	}
	defer resp.Body.Close()
	a.sent = true
	a.status = resp.StatusCode
	// Matomo sends the policy with its own cookies only; balancers set others.
	if resp.Header.Get("P3P") != "" && resp.Header.Get("Set-Cookie") != "" {
		c.setsCookies.Store(true)
	}
	a.contentType = resp.Header.Get("Content-Type")
	a.retryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, int64(most)+1))
	if err != nil {
		a.err = withoutURL(err)
		return a
	}
	if len(a.body) > most {
		a.body, a.truncated = a.body[:most], true
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.clock.note(date, a.began, time.Now())
	}
	return a
}

// withoutURL takes the URL out of an error, since it may hold a password.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// A countedConn counts what was handed to the network.
type countedConn struct {
	net.Conn
	written atomic.Int64
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// writes knows whether anything of one request was written. The transport tries
// again by itself only when nothing was.
type writes struct {
	mu    sync.Mutex
	conn  *countedConn
	start int64
	other bool // written on a connection that cannot be counted
}

func (w *writes) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.conn != nil && w.conn.written.Load() == w.start {
				w.conn = nil
			}
		},
		GotConn: func(info httptrace.GotConnInfo) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.conn != nil {
				w.other = true
			}
			conn := info.Conn
			if secure, ok := conn.(*tls.Conn); ok {
				conn = secure.NetConn()
			}
			counted, ok := conn.(*countedConn)
			if !ok {
				w.other = true
				return
			}
			w.conn, w.start = counted, counted.written.Load()
		},
	}
}

// begun reports whether something of the request may have left. After a
// cancellation a write may still be on its way, so that having a connection is
// enough.
func (w *writes) begun(cancelled bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.other || w.conn != nil && (cancelled || w.conn.written.Load() != w.start)
}

// maxRetryAfter bounds what a server may ask for.
const maxRetryAfter = 10 * time.Minute

// retryAfter reads the header's two forms: seconds and a date.
func retryAfter(value string, now time.Time) time.Duration {
	if value == "" {
		return 0
	}
	var wait time.Duration
	if seconds, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}
