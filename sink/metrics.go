package sink

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// instruments are the metrics of one sink.
type instruments struct {
	batches [len(kindNames)]*metrics.Counter
	seconds *metrics.PrometheusHistogram
	hits    *metrics.PrometheusHistogram
	unknown *metrics.Counter // hits
	// Of hits in doubt: by finding, and questions that had no answer.
	reconciled        [foundPartial + 1]*metrics.Counter
	reconcileFailures *metrics.Counter
	// tokens are clients' tokens that Matomo was asked about, by whether it took them;
	// refusedHits are hits that were settled without being sent, by why.
	tokens      map[bool]*metrics.Counter
	refusedHits map[string]*metrics.Counter
	falls       map[Reason]*metrics.Counter
}

func newInstruments(s *Sink, set *metrics.Set) *instruments {
	ins := &instruments{
		seconds: set.NewPrometheusHistogramExt("sluice_sink_batch_seconds", []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}),
		hits:    set.NewPrometheusHistogramExt("sluice_sink_batch_hits", []float64{1, 2, 5, 10, 25, 50, 100, 200, 500, 1000}),
		unknown: set.NewCounter("sluice_sink_unknown_total"),
	}
	ins.tokens = map[bool]*metrics.Counter{
		true:  set.NewCounter(`sluice_sink_client_tokens_total{verdict="good"}`),
		false: set.NewCounter(`sluice_sink_client_tokens_total{verdict="refused"}`),
	}
	ins.refusedHits = map[string]*metrics.Counter{}
	for _, why := range refusalReasons() {
		ins.refusedHits[why] = set.NewCounter(fmt.Sprintf("sluice_sink_client_refused_hits_total{reason=%q}", why))
	}
	for f, word := range foundNames {
		if word != "" {
			ins.reconciled[f] = set.NewCounter(fmt.Sprintf("sluice_sink_reconciled_hits_total{found=%q}", word))
		}
	}
	ins.reconcileFailures = set.NewCounter("sluice_sink_reconcile_failures_total")
	for k, name := range kindNames {
		ins.batches[k] = set.NewCounter(fmt.Sprintf("sluice_sink_batches_total{verdict=%q}", name))
	}
	state := func(state State, reason Reason) {
		set.NewGauge(fmt.Sprintf("sluice_sink_state{state=%q,reason=%q}", state, reason), func() float64 {
			if st := s.standing(); st.state == state && st.reason == reason {
				return 1
			}
			return 0
		})
	}
	state(StateSending, ReasonNone)
	state(StatePaused, ReasonManual)
	for _, reason := range Reasons() {
		if reason != ReasonNone && reason != ReasonManual {
			state(StateHolding, reason)
			state(StateTrying, reason)
		}
	}
	ins.falls = map[Reason]*metrics.Counter{}
	for _, reason := range Reasons() {
		if reason != ReasonNone && reason != ReasonStarting {
			ins.falls[reason] = set.NewCounter(fmt.Sprintf("sluice_sink_openings_total{reason=%q}", reason))
		}
	}
	set.NewGauge("sluice_sink_state_since_seconds", func() float64 { return float64(s.standing().since.UnixMilli()) / 1000 })
	set.NewGauge("sluice_sink_lanes", func() float64 { return float64(s.shown.read().inFlight) })
	set.NewGauge("sluice_sink_lanes_limit", func() float64 { return float64(s.shown.read().lanes) })
	set.NewGauge("sluice_sink_batch_limit_hits", func() float64 { return float64(s.shown.read().batch) })
	set.NewGauge("sluice_sink_parked_hits", func() float64 { return float64(s.shown.read().parked) })
	set.NewGauge("sluice_sink_uncertain_hits", func() float64 { return float64(s.shown.read().uncertain) })
	set.NewGauge("sluice_sink_clock_offset_seconds", func() float64 {
		_, about, _ := s.clock.offset()
		return about.Seconds()
	})
	if s.cfg.Pending != nil {
		set.NewGauge("sluice_sink_eta_seconds", func() float64 {
			if eta, ok := s.eta(); ok {
				return eta.Seconds()
			}
			return math.NaN()
		})
	}
	return ins
}

func (ins *instruments) batch(k kind, hits int, took time.Duration) {
	ins.batches[k].Inc()
	ins.seconds.Update(took.Seconds())
	ins.hits.Update(float64(hits))
}

// opened counts a fall of the breaker or a pause.
func (ins *instruments) opened(reason Reason) { ins.falls[reason].Inc() }

// loadSamples is how many batches the percentiles are taken over.
const loadSamples = 256

// A load keeps the last batches' durations and failures. Methods may be called
// from any goroutine.
type load struct {
	mu       sync.Mutex
	took     [loadSamples]time.Duration
	n        int
	failures []time.Time // of the last five minutes, at most loadSamples
}

// errorWindow is the time over which failures are shown.
const errorWindow = 5 * time.Minute

func (l *load) note(k kind, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took[l.n%loadSamples] = took
	l.n++
	if k != delivered {
		if len(l.failures) >= loadSamples {
			l.failures = l.failures[1:]
		}
		l.failures = append(l.failures, time.Now())
	}
}

func (l *load) show() (p50, p95 time.Duration, failures int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	since := time.Now().Add(-errorWindow)
	for len(l.failures) > 0 && l.failures[0].Before(since) {
		l.failures = l.failures[1:]
	}
	sorted := slices.Clone(l.took[:min(l.n, loadSamples)])
	if len(sorted) == 0 {
		return 0, 0, len(l.failures)
	}
	slices.Sort(sorted)
	return sorted[len(sorted)/2], sorted[len(sorted)*95/100], len(l.failures)
}

// rateSeconds is the time over which the pace is measured.
const rateSeconds = 60

// A rate counts settled hits by second. Methods may be called from any goroutine.
type rate struct {
	mu      sync.Mutex
	seconds [rateSeconds]struct{ at, hits int64 }
	first   int64 // Unix second of the first hit
}

func (r *rate) add(now time.Time, hits int) {
	at := now.Unix()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == 0 {
		r.first = at
	}
	slot := &r.seconds[at%rateSeconds]
	if slot.at != at {
		slot.at, slot.hits = at, 0
	}
	slot.hits += int64(hits)
}

// perSecond gives the mean pace of the last minute, or since the first hit.
func (r *rate) perSecond(now time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == 0 {
		return 0
	}
	sum := int64(0)
	for _, slot := range r.seconds {
		if slot.at > now.Unix()-rateSeconds {
			sum += slot.hits
		}
	}
	return float64(sum) / float64(min(rateSeconds, max(1, now.Unix()-r.first+1)))
}
