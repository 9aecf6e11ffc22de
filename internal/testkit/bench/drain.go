package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/queue"
)

// Targets of a start with a backlog and of its drain.
const (
	maxReady     = 2      // seconds from the start of the program to being ready
	minDrainRate = 20_000 // hits a second
	maxDisk      = 100    // MiB used after it
)

// drainPart starts sluice on a large backlog and lets it drain into the counting
// Matomo.
func drainPart(ctx context.Context, b *bench) error {
	const name = "drain"
	dir := filepath.Join(b.dir, name)
	filled, err := fill(ctx, dir, b.hits, b.drainHits)
	if err != nil {
		return fmt.Errorf("fill the queue: %w", err)
	}
	before, err := diskUsage(dir)
	if err != nil {
		return err
	}
	m, err := startMatomo(b.dir)
	if err != nil {
		return err
	}
	defer m.stop()
	e, err := startEdge(ctx, b, name, m.url)
	if err != nil {
		return err
	}
	defer e.stop()
	memory := sampleMemory(e.pid())
	used, usedThere, began := cpuTime(e.pid()), cpuTime(m.pid()), time.Now()
	const profiledRate = 250_000 // hits a second that a drain stays below, so that the profile ends before it
	profiled := b.profiling(ctx, e, name, time.Duration(b.drainHits/profiledRate)*time.Second)
	first, last, err := e.watchDrain(ctx)
	peak := memory.end()
	if err = errors.Join(err, profiled()); err != nil {
		return err
	}
	used, usedThere = cpuTime(e.pid())-used, cpuTime(m.pid())-usedThere
	hits := float64(b.drainHits)
	after, err := e.diskAfterDrain(ctx)
	if err != nil {
		return err
	}
	b.table.below("drain, start until ready, s", e.ready.Seconds(), maxReady, "%.2f", fmt.Sprintf("%s hits pending, %.0f MiB on disk; filled in process at %s hits/s",
		thousands(int64(b.drainHits)), float64(before)/mib, thousands(int64(hits/filled.Seconds()))))
	b.table.atLeast("drain, hits/s", hits/last.Sub(began).Seconds(), minDrainRate, "%.0f", fmt.Sprintf("from ready to empty %.1f s, of it %.1f s before the first delivery; CPU a hit: sluice %.1f µs, the counting Matomo %.1f µs",
		last.Sub(began).Seconds(), first.Sub(began).Seconds(), micros(used)/hits, micros(usedThere)/hits))
	b.table.below("drain, anonymous memory, MiB", float64(peak)/mib, maxAnon, "%.0f", "")
	b.table.below("drain, disk used after it, MiB", float64(after)/mib, maxDisk, "%.0f", fmt.Sprintf("%.0f MiB before", float64(before)/mib))
	err = e.checkDrained(ctx, m, int64(b.drainHits))
	e.stop()
	return errors.Join(err, os.RemoveAll(e.data))
}

// fill appends count hits to a new queue and closes it. Their time lies a minute
// back, so that none has to wait for Matomo's clock.
func fill(ctx context.Context, dir string, list []sample, count int) (time.Duration, error) {
	q, err := queue.Open(queue.Options{Dir: dir, Log: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet()})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	const (
		writers = 4   // so that the next group forms while one is written
		sets    = 500 // of one Append, each of one hit
	)
	var next atomic.Int64
	var wg sync.WaitGroup
	failures := make([]error, writers)
	for w := range writers {
		wg.Go(func() { // ends when all hits are there, or at its first error
			for from := int(next.Add(sets)) - sets; from < count && failures[w] == nil; from = int(next.Add(sets)) - sets {
				failures[w] = appendSome(ctx, q, list, from, min(from+sets, count))
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	return took, errors.Join(append(failures, q.Close())...)
}

func appendSome(ctx context.Context, q *queue.Queue, list []sample, from, to int) error {
	at := time.Now().Add(-time.Minute).UnixNano()
	rng := rand.New(rand.NewPCG(uint64(from), 0)) // the same hits in every run
	group := make([]*hit.RequestSet, 0, to-from)
	for i := from; i < to; i++ {
		group = append(group, list[i%len(list)].set(at, rng))
	}
	return q.Append(ctx, group...)
}

// watchDrain waits until nothing is pending. first is when the first delivery was
// seen, last when the last was.
func (e *edge) watchDrain(ctx context.Context) (first, last time.Time, err error) {
	const every = 100 * time.Millisecond // the grain of both times
	err = e.until(ctx, every, func() bool {
		m, err := e.metrics(ctx)
		if err != nil {
			return false
		}
		if first.IsZero() && m.get(deliveredHits) > 0 {
			first = time.Now()
		}
		last = time.Now()
		return m.get(pendingHits) == 0
	})
	return first, last, err
}

// diskAfterDrain gives the disk space of the data directory once it has come to
// rest: files are removed a moment after the last hit is settled.
func (e *edge) diskAfterDrain(ctx context.Context) (int64, error) {
	const (
		patience = 10 * time.Second
		enough   = maxDisk * mib
	)
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// The last look counts, whatever it says.
	_ = e.until(waiting, 250*time.Millisecond, func() bool {
		used, err := diskUsage(e.data)
		return err == nil && used < enough
	})
	return diskUsage(e.data)
}

// diskUsage gives the bytes of disk that the files under dir take, as du counts
// them: holes are free.
func diskUsage(dir string) (int64, error) {
	const unit = 512 // of st_blocks
	total := int64(0)
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was removed meanwhile
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			total += st.Blocks * unit
		}
		return nil
	})
	return total, err
}
