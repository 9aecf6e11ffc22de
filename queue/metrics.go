package queue

import (
	"fmt"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// instruments are the metrics of one queue. Gauges read the true state.
type instruments struct {
	set         *metrics.Set
	accepted    *metrics.Counter
	delivered   *metrics.Counter
	invalid     *metrics.Counter
	dead        *metrics.Counter
	requeued    *metrics.Counter
	imported    *metrics.Counter
	syncErrors  *metrics.Counter
	syncSeconds *metrics.PrometheusHistogram
	groupHits   *metrics.PrometheusHistogram
}

var (
	syncBounds  = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}
	groupBounds = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096}
)

func newInstruments(set *metrics.Set, q *Queue) *instruments {
	settled := func(as hit.Outcome) *metrics.Counter {
		return set.NewCounter(fmt.Sprintf("sluice_queue_settled_hits_total{as=%q}", as))
	}
	in := &instruments{
		set:         set,
		accepted:    set.NewCounter("sluice_queue_accepted_hits_total"),
		delivered:   settled(hit.Delivered),
		invalid:     settled(hit.Invalid),
		dead:        settled(hit.Dead),
		requeued:    set.NewCounter("sluice_queue_requeued_hits_total"),
		imported:    set.NewCounter("sluice_queue_imported_hits_total"),
		syncErrors:  set.NewCounter("sluice_queue_sync_errors_total"),
		syncSeconds: set.NewPrometheusHistogramExt("sluice_queue_sync_seconds", syncBounds),
		groupHits:   set.NewPrometheusHistogramExt("sluice_queue_group_hits", groupBounds),
	}
	gauge := func(name string, get func(Stats) float64) {
		set.NewGauge(name, func() float64 { return get(q.Stats()) })
	}
	gauge("sluice_queue_pending_hits", func(s Stats) float64 { return float64(s.Pending) })
	for _, state := range []ImportState{ImportOpen, ImportComplete, ImportDrained} {
		set.NewGauge(fmt.Sprintf("sluice_queue_imports{state=%q}", state), func() float64 { n, _ := q.countImports(state); return float64(n) })
	}
	set.NewGauge("sluice_queue_import_pending_hits", func() float64 {
		_, open := q.countImports(ImportOpen)
		_, complete := q.countImports(ImportComplete)
		return float64(open + complete)
	})
	gauge("sluice_queue_pending_bytes", func(s Stats) float64 { return float64(s.PendingBytes) })
	gauge("sluice_queue_oldest_age_seconds", func(s Stats) float64 {
		if s.OldestLiveAt == 0 {
			return 0
		}
		return max(0, q.now().Sub(time.Unix(0, s.OldestLiveAt)).Seconds())
	})
	gauge("sluice_queue_sum_difference_hits", func(s Stats) float64 { return float64(s.Difference) })
	gauge("sluice_queue_damaged_blocks", func(s Stats) float64 { return float64(s.DamagedBlocks) })
	gauge("sluice_queue_missing_blocks", func(s Stats) float64 { return float64(s.MissingBlocks) })
	gauge("sluice_queue_disk_bytes", func(s Stats) float64 { return float64(s.DiskBytes) })
	gauge("sluice_queue_free_bytes", func(s Stats) float64 { return float64(s.FreeBytes) })
	gauge("sluice_queue_dead_hits", func(s Stats) float64 { return float64(s.DeadKept) })
	return in
}

func (in *instruments) commit(hits, size int, took time.Duration) {
	in.syncSeconds.Update(took.Seconds())
	if hits > 0 {
		in.groupHits.Update(float64(hits))
	}
}

// settled counts settlements as they are handed in.
func (in *instruments) settled(list []hit.Settlement) {
	for i := range list {
		switch list[i].As {
		case hit.Delivered:
			in.delivered.Inc()
		case hit.Invalid:
			in.invalid.Inc()
		case hit.Dead:
			in.dead.Inc()
			in.set.GetOrCreateCounter(fmt.Sprintf("sluice_queue_dead_hits_total{reason=%q}", list[i].Reason)).Inc()
		}
	}
}
