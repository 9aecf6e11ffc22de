package archivegate

import (
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// instruments are the metrics of one gate.
type instruments struct {
	reopened *metrics.Counter
	forced   *metrics.Counter
	answers  map[State]*metrics.Counter
	// By outcome of an order to Matomo to make a day's reports anew.
	invalidated, invalidateFailed *metrics.Counter

	// Of the last look around.
	days   atomic.Int64  // site-days that are over and not complete
	oldest atomic.Uint64 // when the oldest of them ended, as bits of Unix seconds; NaN = none
}

func newInstruments(set *metrics.Set, g *Gate) *instruments {
	in := &instruments{
		reopened: set.NewCounter("sluice_gate_reopened_total"), forced: set.NewCounter("sluice_gate_forced_total"),
		answers:          map[State]*metrics.Counter{},
		invalidated:      set.NewCounter(`sluice_gate_invalidations_total{outcome="done"}`),
		invalidateFailed: set.NewCounter(`sluice_gate_invalidations_total{outcome="failed"}`),
	}
	for _, s := range []State{StateOpen, StateSealing, StateDraining, StateReopened, StateComplete, StateUnknown, StateForced} {
		in.answers[s] = set.NewCounter(fmt.Sprintf("sluice_gate_answers_total{state=%q}", s))
	}
	in.oldest.Store(math.Float64bits(math.NaN()))
	set.NewGauge("sluice_gate_incomplete_site_days", func() float64 { return float64(in.days.Load()) })
	set.NewGauge("sluice_gate_oldest_incomplete_day_end_timestamp_seconds", func() float64 { return math.Float64frombits(in.oldest.Load()) })
	set.NewGauge("sluice_gate_sites", func() float64 {
		list, _ := g.sites.current()
		return float64(len(list.sites))
	})
	set.NewGauge("sluice_gate_sites_age_seconds", func() float64 {
		list, _ := g.sites.current()
		if list.readAt.IsZero() {
			return math.NaN()
		}
		return max(0, g.now().Sub(list.readAt).Seconds())
	})
	set.NewGauge("sluice_gate_holds", func() float64 { return float64(len(g.Holds())) })
	return in
}

// overdue is the site-days that are over and not complete.
type overdue struct {
	days   int
	oldest time.Time // when the oldest ended; zero = none
}

func (o *overdue) add(days int, oldest time.Time) {
	o.days += days
	if o.oldest.IsZero() || oldest.Before(o.oldest) {
		o.oldest = oldest
	}
}

func (in *instruments) set(o overdue) {
	in.days.Store(int64(o.days))
	at := math.NaN()
	if !o.oldest.IsZero() {
		at = float64(o.oldest.Unix())
	}
	in.oldest.Store(math.Float64bits(at))
}
