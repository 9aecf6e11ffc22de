package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// minRatio is the target of accepting: the part of nginx's requests a second.
func minRatio(https bool, connections int) float64 {
	const (
		overHTTPS = 0.50
		few       = 0.30 // 64 connections
		many      = 0.40 // 256
	)
	switch {
	case https:
		return overHTTPS
	case connections >= 256:
		return many
	}
	return few
}

// maxAnon is the most anonymous memory that sluice may ever have, in MiB.
const maxAnon = 256

const mib = 1 << 20

// acceptPart compares nginx and a sluice that keeps everything and sends nothing.
func acceptPart(https bool, connections int) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error {
		name := "http"
		if https {
			name = "https"
		}
		return accept(ctx, b, fmt.Sprintf("accept-%s-%d", name, connections), https, connections)
	}
}

func accept(ctx context.Context, b *bench, part string, https bool, connections int) error {
	script := filepath.Join(b.dir, "hits.lua")
	if err := writeScript(script, requests(b.hits)); err != nil {
		return err
	}
	n, err := startNginx(ctx, b.dir, "")
	if err != nil {
		return err
	}
	defer n.stop()
	e, err := startEdge(ctx, b, part, "")
	if err != nil {
		return err
	}
	defer e.stop()
	urls := [2]string{"http://" + n.http + "/", "http://" + e.http + "/"}
	if https {
		urls = [2]string{"https://" + n.https + "/", "https://" + e.https + "/"}
	}
	memory := sampleMemory(e.pid())
	yardstick, ours, err := b.sideBySide(ctx, part, script, urls, connections, n, e)
	peak := memory.end()
	if err != nil {
		return err
	}
	m, err := e.metrics(ctx)
	if err != nil {
		return err
	}
	b.table.compared(part, minRatio(https, connections), yardstick, ours)
	b.table.below(part+", anonymous memory, MiB", float64(peak)/mib, maxAnon, "%.0f",
		fmt.Sprintf("%s hits pending at the end; a commit held %.0f hits and took %.2f ms in the mean", thousands(int64(m.get(pendingHits))),
			m.get(groupSum)/m.get(groupCount), 1000*m.get(syncSum)/m.get(syncCount)))
	e.stop()
	return errors.Join(checkAccepted(m, yardstick, ours), os.RemoveAll(e.data))
}

// sideBySide loads nginx and sluice in turn.
func (b *bench) sideBySide(ctx context.Context, part, script string, urls [2]string, connections int, n *nginx, e *edge) (yardstick, ours []load, err error) {
	for range b.rounds {
		y, err := runWrk(ctx, script, urls[0], connections, n.pid(), b.round)
		if err != nil {
			return nil, nil, n.fault(fmt.Errorf("nginx: %w", err))
		}
		profiled := b.profiling(ctx, e, part, b.round)
		o, err := runWrk(ctx, script, urls[1], connections, e.pid(), b.round)
		if err = errors.Join(err, profiled()); err != nil {
			return nil, nil, e.fault(fmt.Errorf("sluice: %w", err))
		}
		yardstick, ours = append(yardstick, y), append(ours, o)
	}
	return yardstick, ours, nil
}

// compared adds the figures of both sides.
func (t *table) compared(part string, target float64, yardstick, ours []load) {
	var ratios, cpu []float64
	for i := range ours {
		ratios = append(ratios, ours[i].perSecond()/yardstick[i].perSecond())
		cpu = append(cpu, float64(ours[i].CPUPerRequest)/float64(max(1, yardstick[i].CPUPerRequest)))
	}
	y, o := middle(yardstick), middle(ours)
	t.atLeast(part+", ratio to nginx", median(ratios), target, "%.2f", fmt.Sprintf("%s of %s requests/s; rounds %s",
		thousands(int64(o.perSecond())), thousands(int64(y.perSecond())), ratioText(ratios)))
	t.shown(part+", p50 and p99", fmt.Sprintf("%s %s", millis(o.P50), millis(o.P99)), fmt.Sprintf("nginx %s %s; closed loop", millis(y.P50), millis(y.P99)))
	t.shown(part+", CPU a request", fmt.Sprintf("%.1f µs", micros(o.CPUPerRequest)), fmt.Sprintf("%.1f x nginx's %.1f µs", median(cpu), micros(y.CPUPerRequest)))
}

// checkAccepted makes sure that every answer was a good one and that each hit
// answered for is in the queue.
func checkAccepted(m samples, yardstick, ours []load) error {
	var answered int64
	if err := checkAnswers(yardstick, ours); err != nil {
		return err
	}
	for _, l := range ours {
		answered += l.Requests
	}
	switch {
	case !(m.get(storedHits) >= float64(answered)):
		return fmt.Errorf("%d hits were answered, %.0f stored", answered, m.get(storedHits))
	// More may be pending than was answered: wrk leaves in the middle of requests.
	case !(m.get(pendingHits) >= m.get(storedHits)):
		return fmt.Errorf("%.0f hits were stored, %.0f are pending", m.get(storedHits), m.get(pendingHits))
	case m.get(difference) != 0:
		return fmt.Errorf("the sum is off by %.0f hits", m.get(difference))
	}
	return nil
}

// checkAnswers makes sure that every answer was a good one.
func checkAnswers(yardstick, ours []load) error {
	var bad int64
	for _, l := range slices.Concat(yardstick, ours) {
		bad += l.NotOK + l.SocketFaults
	}
	if bad > 0 {
		return fmt.Errorf("%d answers were not 2xx, or connections failed", bad)
	}
	return nil
}

// median gives the middle of values, of the two in the middle the greater; it
// leaves their order alone.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// middle gives the run with the median of requests a second.
func middle(runs []load) load {
	sorted := slices.SortedFunc(slices.Values(runs), func(a, b load) int { return int(a.perSecond() - b.perSecond()) })
	return sorted[len(sorted)/2]
}

func ratioText(ratios []float64) string {
	var texts []string
	for _, r := range ratios {
		texts = append(texts, fmt.Sprintf("%.2f", r))
	}
	return strings.Join(texts, " ")
}

// thousands writes a count with commas between the thousands.
func thousands(n int64) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
