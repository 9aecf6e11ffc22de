package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// idleConnections are open over TLS, each after one hit, while others send.
	idleConnections = 10_000
	// maxIdleAnon is the most anonymous memory that sluice may have then, in MiB.
	maxIdleAnon = 400
)

// idlePart is the open loop beside many visitors who keep their connections and say
// nothing. Matomo is away, so that the figures are those of accepting.
func idlePart(ctx context.Context, b *bench) error {
	if err := raiseFiles(2*idleConnections + 1000); err != nil {
		return err
	}
	e, err := startEdge(ctx, b, "idle", "", "--proxy.connections-per-address=0")
	if err != nil {
		return err
	}
	defer e.stop()
	memory := sampleMemory(e.pid())
	idle, err := openIdle(ctx, e.https, idleConnections, b.hits[0].request())
	defer func() {
		for _, c := range idle {
			_ = c.NetConn().Close() // nothing is said any more
		}
	}()
	if err != nil {
		memory.end()
		return e.fault(err)
	}
	resting := anonMemory(e.pid())
	profiled := b.profiling(ctx, e, "idle", b.openLoop)
	used := cpuTime(e.pid())
	seed := rand.Uint64()
	out, err := fire(ctx, e.http, b.hits, int(b.openLoop.Seconds()*openRate), seed)
	used = cpuTime(e.pid()) - used
	m, metricsErr := e.metrics(ctx)
	peak := memory.end()
	if err = errors.Join(err, metricsErr, profiled()); err != nil {
		return e.fault(err)
	}
	slices.Sort(out.latency)
	slices.Sort(out.late)
	at := func(list []float64, per1000 int) float64 { return list[len(list)*per1000/1000] }
	latency, late := inMillis(out.latency), inMillis(out.late)
	b.table.below("idle, p99, ms", at(latency, 990), maxOpenP99, "%.1f", fmt.Sprintf("%s hits/s beside %s idle TLS connections; p50 %.1f ms, p99.9 %.1f ms, worst %.1f ms; of it the generator's own lateness p99 %.1f ms; seed %d",
		thousands(openRate), thousands(int64(len(idle))), at(latency, 500), at(latency, 999), latency[len(latency)-1], at(late, 990), seed))
	b.table.below("idle, anonymous memory, MiB", float64(peak)/mib, maxIdleAnon, "%.0f", fmt.Sprintf("%.0f MiB before the hits, %.1f KiB a connection; sluice %.0f µs CPU a hit",
		float64(resting)/mib, float64(resting)/1024/float64(len(idle)), micros(used)/float64(len(out.latency))))
	switch {
	case out.notOK > 0:
		return fmt.Errorf("%d of %d answers were not 2xx", out.notOK, len(out.latency))
	case !(m.get(connections) >= idleConnections):
		return fmt.Errorf("%.0f connections are open at the end", m.get(connections))
	case !(m.get(storedHits) >= float64(len(out.latency)+len(idle))) || m.get(difference) != 0:
		return fmt.Errorf("%d hits were answered, %.0f stored; the sum is off by %.0f", len(out.latency)+len(idle), m.get(storedHits), m.get(difference))
	}
	return nil
}

// raiseFiles lets this program and those that it starts open so many files.
func raiseFiles(want uint64) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Max = max(limit.Max, want)
	limit.Cur = max(limit.Cur, want)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		return nil
	}
	// Each side needs a little more than one for each connection.
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	if limit.Max < idleConnections*3/2 {
		return fmt.Errorf("%d open files are allowed here, %d are needed: see ulimit -Hn", limit.Max, idleConnections*3/2)
	}
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}

// openIdle opens connections, and has one request answered over each. What is open
// already is returned with an error as well.
func openIdle(ctx context.Context, address string, count int, request []byte) ([]*tls.Conn, error) {
	const dialers = 16
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	config := &tls.Config{InsecureSkipVerify: true, ServerName: host, MinVersion: tls.VersionTLS13} // this program's own server
	var mu sync.Mutex
	var open []*tls.Conn
	var wg sync.WaitGroup
	for d := range dialers {
		wg.Go(func() { // ends with its share, or with ctx
			for i := d; i < count && ctx.Err() == nil; i += dialers {
				c, err := openOne(ctx, config, address, request)
				if err != nil {
					cancel(fmt.Errorf("open connection %d: %w", i, err))
					return
				}
				mu.Lock()
				open = append(open, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return open, context.Cause(ctx)
}

func openOne(ctx context.Context, config *tls.Config, address string, request []byte) (*tls.Conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { raw.Close() })() // ends what hangs
	c := tls.Client(raw, config)
	if _, err = c.Write(request); err == nil {
		var status int
		if status, err = readAnswer(bufio.NewReaderSize(c, 512)); err == nil && status >= 300 {
			err = fmt.Errorf("status %d", status)
		}
	}
	if err != nil {
		_ = raw.Close() // it is given up
		return nil, err
	}
	return c, nil
}
