package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// openRate is the hits a second of the open loop, and openConnections the
	// connections that they come over.
	openRate        = 5000
	openConnections = 64
	// maxOpenP99 is the target: 99 of 100 answers come sooner, in milliseconds.
	maxOpenP99 = 10
)

// openLoopPart sends hits at a fixed rate, whether earlier ones were answered or
// not, while sluice drains into the counting Matomo.
func openLoopPart(ctx context.Context, b *bench) error {
	m, err := startMatomo(b.dir)
	if err != nil {
		return err
	}
	defer m.stop()
	e, err := startEdge(ctx, b, "openloop", m.url)
	if err != nil {
		return err
	}
	defer e.stop()
	if err := e.waitSending(ctx); err != nil {
		return err
	}
	memory := sampleMemory(e.pid())
	profiled := b.profiling(ctx, e, "openloop", b.openLoop)
	used := cpuTime(e.pid())
	seed := rand.Uint64()
	out, err := fire(ctx, e.http, b.hits, int(b.openLoop.Seconds()*openRate), seed)
	used = cpuTime(e.pid()) - used
	peak := memory.end()
	if err = errors.Join(err, profiled()); err != nil {
		return e.fault(err)
	}
	after, err := e.metrics(ctx)
	if err != nil {
		return err
	}
	slices.Sort(out.latency)
	slices.Sort(out.late)
	at := func(list []time.Duration, per1000 int) time.Duration { return list[len(list)*per1000/1000] }
	b.table.below("openloop, p99, ms", 1000*at(out.latency, 990).Seconds(), maxOpenP99, "%.1f", fmt.Sprintf("%s hits/s over %d connections; p50 %s, p99.9 %s, worst %s; of it the generator's own lateness p99 %s; seed %d",
		thousands(openRate), openConnections, millis(at(out.latency, 500)), millis(at(out.latency, 999)), millis(out.latency[len(out.latency)-1]), millis(at(out.late, 990)), seed))
	b.table.shown("openloop, pending at its end", thousands(int64(after.get(pendingHits)))+" hits", fmt.Sprintf("sluice %.0f µs CPU a hit, draining included", micros(used)/float64(len(out.latency))))
	b.table.below("openloop, anonymous memory, MiB", float64(peak)/mib, maxAnon, "%.0f", "")
	if out.notOK > 0 {
		return fmt.Errorf("%d of %d answers were not 2xx", out.notOK, len(out.latency))
	}
	return e.checkDrained(ctx, m, int64(len(out.latency)))
}

// waitSending waits until sluice has found that Matomo can take hits.
func (e *edge) waitSending(ctx context.Context) error {
	const patience = 30 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := e.until(ctx, 20*time.Millisecond, func() bool {
		m, err := e.metrics(ctx)
		return err == nil && m.sending()
	})
	if err != nil {
		return fmt.Errorf("sluice does not send: %w", err)
	}
	return nil
}

// checkDrained waits until nothing is pending and compares all sums with the
// number of hits that were there.
func (e *edge) checkDrained(ctx context.Context, m *matomo, hits int64) error {
	const patience = 15 * time.Second
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last samples
	err := e.until(waiting, 100*time.Millisecond, func() bool {
		s, err := e.metrics(waiting)
		if err == nil {
			last = s
		}
		return err == nil && s.get(pendingHits) == 0
	})
	if err != nil {
		return fmt.Errorf("%.0f hits stay pending: %w", last.get(pendingHits), err)
	}
	recorded, err := m.recorded(ctx)
	if err != nil {
		return err
	}
	if last.get(deliveredHits) != float64(hits) || last.get(invalidHits) != 0 || last.get(deadHits) != 0 || last.get(difference) != 0 || recorded < hits {
		return fmt.Errorf("of %d hits %.0f are delivered, %.0f invalid, %.0f dead; Matomo has %d; the sum is off by %.0f", hits,
			last.get(deliveredHits), last.get(invalidHits), last.get(deadHits), recorded, last.get(difference))
	}
	return nil
}
