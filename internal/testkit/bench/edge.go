package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"sluice/internal/testkit"
)

// An edge is a running sluice.
type edge struct {
	*process
	http, https, admin string // host:port
	data               string
	ready              time.Duration // from the start of the program to being ready
}

// nowhere is the discard port, where nobody listens.
const nowhere = "127.0.0.1:9"

// startEdge runs sluice with its own defaults, but for further flags, on the data
// directory dir/name. An empty matomo is one that is never there; then there is no
// token either.
func startEdge(ctx context.Context, b *bench, name, matomo string, flags ...string) (*edge, error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	e := &edge{http: ports[0], https: ports[1], admin: ports[2], data: filepath.Join(b.dir, name)}
	args := []string{"serve", "--listen=" + e.https, "--listen-http=" + e.http, "--admin.listen=" + e.admin,
		"--data-dir=" + e.data, "--shutdown.delay=0s", "--log.format=text"}
	if matomo == "" {
		args = append(args, "--matomo.url=http://"+nowhere)
	} else {
		token := filepath.Join(b.dir, "token")
		if err := os.WriteFile(token, []byte(testkit.SuperToken+"\n"), 0o600); err != nil {
			return nil, err
		}
		args = append(args, "--matomo.url="+matomo, "--matomo.token-file="+token)
	}
	args = append(args, flags...)
	began := time.Now()
	if e.process, err = start(b.dir, name+"-sluice", nil, nil, b.sluice, args...); err != nil {
		return nil, err
	}
	const patience = 60 * time.Second
	starting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = e.until(starting, 2*time.Millisecond, func() bool {
		_, status, err := get(starting, "http://"+e.http+"/-/readyz")
		return err == nil && status == http.StatusOK
	})
	if err != nil {
		e.stop()
		return nil, err
	}
	e.ready = time.Since(began)
	return e, nil
}

// freePorts finds addresses on loopback that nobody listens on.
func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // after all were found, so that they differ
		ports = append(ports, l.Addr().String())
	}
	return ports, nil
}

// metrics reads all samples of the edge, by name with labels.
func (e *edge) metrics(ctx context.Context) (samples, error) {
	body, status, err := get(ctx, "http://"+e.admin+"/metrics")
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("read metrics: status %d", status)
	}
	return parseMetrics(string(body)), nil
}

// samples are the values of one look at the metrics. What is missing is not a
// number, so that no check passes by accident.
type samples map[string]float64

func (s samples) get(name string) float64 {
	if v, ok := s[name]; ok {
		return v
	}
	return math.NaN()
}

// sending says whether the sink feeds Matomo, for whatever reason it names.
func (s samples) sending() bool {
	for name, v := range s {
		if strings.HasPrefix(name, `sluice_sink_state{state="sending"`) && v == 1 {
			return true
		}
	}
	return false
}

func parseMetrics(text string) samples {
	out := samples{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || line[0] == '#' {
			continue
		}
		if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
			out[line[:i]] = v
		}
	}
	return out
}

// Names of the metrics that are looked at.
const (
	storedHits    = `sluice_proxy_hits_total{answer="stored"}`
	pendingHits   = "sluice_queue_pending_hits"
	deliveredHits = `sluice_queue_settled_hits_total{as="delivered"}`
	invalidHits   = `sluice_queue_settled_hits_total{as="invalid"}`
	deadHits      = "sluice_queue_dead_hits"
	difference    = "sluice_queue_sum_difference_hits"
	syncSum       = "sluice_queue_sync_seconds_sum"
	syncCount     = "sluice_queue_sync_seconds_count"
	groupSum      = "sluice_queue_group_hits_sum"
	connections   = "sluice_proxy_connections"
	groupCount    = "sluice_queue_group_hits_count"
)

// profiling takes a CPU profile of the edge, if profiles are wanted, until the
// returned function is called; that waits for it.
func (b *bench) profiling(ctx context.Context, e *edge, part string, long time.Duration) (wait func() error) {
	if b.profile == "" {
		return func() error { return nil }
	}
	var wg sync.WaitGroup
	var err error
	wg.Go(func() { // ends after the time that it asks for
		err = e.takeProfile(ctx, filepath.Join(b.profile, part+".pprof"), long)
	})
	return func() error {
		wg.Wait()
		return err
	}
}

func (e *edge) takeProfile(ctx context.Context, path string, long time.Duration) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	seconds := max(1, int(long/time.Second))
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", e.admin, seconds)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("take a profile: %w", err)
	}
	defer resp.Body.Close() // it was only read
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	if err != nil {
		return fmt.Errorf("take a profile: %w", err)
	}
	return os.WriteFile(path, body, 0o644)
}
