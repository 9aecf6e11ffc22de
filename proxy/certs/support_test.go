package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/internal/testkit"
	"sluice/internal/testkit/pebble"
	"sluice/proxy"
)

// A store takes every hit.
type store struct{}

func (store) Append(context.Context, ...*hit.RequestSet) error { return nil }

// An edge is a keeper behind the real listeners.
type edge struct {
	t           *testing.T
	keeper      *Keeper
	set         *metrics.Set
	log         *testkit.Log // shows what was logged
	https, http string       // addresses
	stop        func()       // ends both and waits; may be called again
}

// ports are where an edge listens, known before it does.
type ports struct{ http, https int }

func freePorts(t *testing.T) ports { return ports{testkit.FreePort(t), testkit.FreePort(t)} }

// quick is a pace for tests.
func quick() pace {
	return pace{look: 200 * time.Millisecond, firstRetry: 200 * time.Millisecond, longestRetry: time.Second, demandWait: 20 * time.Second}
}

// from gives settings for an authority.
func from(ca *pebble.CA, domains ...string) ACME {
	return ACME{Domains: domains, CA: ca.URL(), RootFile: ca.RootFile(), HTTP: true, TLSALPN: true, pace: quick()}
}

func start(t *testing.T, dir string, p ports, acme ACME) *edge {
	t.Helper()
	return startWith(t, Config{Mode: ModeACME, Dir: dir, ACME: acme}, p)
}

func startWith(t *testing.T, cfg Config, p ports) *edge {
	t.Helper()
	kept, log := testkit.NewLog(t)
	e := &edge{
		t: t, set: metrics.NewSet(), log: kept,
		https: fmt.Sprintf("127.0.0.1:%d", p.https), http: fmt.Sprintf("127.0.0.1:%d", p.http),
	}
	matomo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "matomo: %s", r.URL.Path)
	}))
	t.Cleanup(matomo.Close)
	upstream, err := url.Parse(matomo.URL)
	if err != nil {
		t.Fatal(err)
	}
	if e.keeper, err = Open(cfg, log, e.set); err != nil {
		t.Fatal(err)
	}
	server, err := proxy.New(proxy.Config{
		Listen: e.https, ListenHTTP: e.http, TLSConfig: e.keeper.TLSConfig(), AnswerChallenge: e.keeper.AnswerChallenge,
		Upstream: upstream, Grace: 5 * time.Second,
	}, store{}, nil, log, e.set)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ends := make(chan error, 2)             // one for each part
	go func() { ends <- server.Run(ctx) }() // ended by stop
	select {
	case <-server.Started():
	case err := <-ends:
		cancel()
		t.Fatal(err)
	}
	go func() { ends <- e.keeper.Run(ctx) }() // ended by stop
	stopped := false
	e.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 2 {
			if err := <-ends; err != nil {
				t.Errorf("a part ended with %v", err)
			}
		}
	}
	t.Cleanup(e.stop)
	return e
}

// client trusts the roots, takes every name for this edge's, and keeps connections.
func (e *edge) client(roots *x509.CertPool) *http.Client {
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, InsecureSkipVerify: roots == nil},
		DialContext:     dialer(e.https),
	}
	e.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// shake makes a handshake for a name and gives what the client saw. Without roots
// nothing is verified.
func (e *edge) shake(name string, roots *x509.CertPool) (tls.ConnectionState, error) {
	conn, err := tls.Dial("tcp", e.https, &tls.Config{ServerName: name, RootCAs: roots, InsecureSkipVerify: roots == nil})
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.ConnectionState(), nil
}

// hit sends one over HTTPS.
func hitOver(client *http.Client, name string) error {
	resp, err := client.Get("https://" + name + "/matomo.php?idsite=1&rec=1")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// metric reads one value; labels belong to the name.
func (e *edge) metric(name string) float64 {
	e.t.Helper()
	var b bytes.Buffer
	e.set.WritePrometheus(&b)
	for line := range strings.Lines(b.String()) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				e.t.Fatal(err)
			}
			return value
		}
	}
	e.t.Fatalf("no metric %s in\n%s", name, &b)
	return 0
}

func (e *edge) orders(result string) float64 {
	e.t.Helper()
	return e.metric(`sluice_proxy_cert_renewals_total{result="` + result + `"}`)
}

// eventually waits for something that takes its time.
func (e *edge) eventually(what string, ok func() bool) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			e.t.Fatalf("it did not come to pass that %s", what)
		case <-tick.C:
		}
	}
}

// trusted waits until clients of the authority are content with a name.
func (e *edge) trusted(ca *pebble.CA, names ...string) {
	e.t.Helper()
	for _, name := range names {
		e.eventually(name+" is trusted", func() bool {
			_, err := e.shake(name, ca.Roots())
			return err == nil
		})
	}
}

// dialer leads every address to one.
func dialer(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
}
