package queue

import (
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// TestTheClockMayGoAnywhere: whatever the wall clock does, hits are leased in the
// order of arrival, keys and shelves' names only go up, and no hit is lost.
func TestTheClockMayGoAnywhere(t *testing.T) {
	now := time.Now()
	steps := []time.Duration{0, -time.Hour, 24 * time.Hour, -24 * time.Hour, -20 * 365 * 24 * time.Hour, time.Nanosecond}
	dir := t.TempDir()
	o := testOptions(t, dir)
	o.ShelfBytes = 3 << 10
	r := newRand(t)
	var wall atomic.Int64
	o.Now = func() time.Time { return time.Unix(0, wall.Load()) }
	open := func() *Queue {
		t.Helper()
		o.Metrics = metrics.NewSet()
		q, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	appended := 0
	for round, reopen := range []bool{false, true} {
		wall.Store(now.Add(time.Duration(round) * time.Second).UnixNano())
		q := open()
		for _, step := range steps {
			wall.Add(int64(step))
			if reopen {
				if err := q.Close(); err != nil {
					t.Fatal(err)
				}
				q = open()
			}
			for range 4 {
				set := noiseSet(r, appended, 1)
				set.ReceivedAt = wall.Load()
				mustAppend(t, q, set)
				flush(t, q)
				appended++
			}
			var m strings.Builder
			o.Metrics.WritePrometheus(&m)
			if strings.Contains(m.String(), "sluice_queue_oldest_age_seconds -") {
				t.Errorf("a negative age: %s", m.String())
			}
		}
		hits := leaseRest(t, q)
		for i := range hits {
			if hits[i].ID.Block != uint64(i+1) {
				t.Fatalf("hit %d has number %d", i, hits[i].ID.Block)
			}
		}
		if len(hits) != appended {
			t.Errorf("round %d: %d hits leased, want %d", round, len(hits), appended)
		}
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	var last uint64
	for _, shelf := range shelvesOf(t, dir) {
		names = append(names, filepath.Base(shelf))
		first, _ := parseShelfName(filepath.Base(shelf))
		for i, p := range placesOf(t, shelf, prefixBlock) {
			key, _ := parseBlockKey(p.key)
			if key.clock <= last || i == 0 && (key.clock < first.clock || key.number != first.number) {
				t.Errorf("block %d at %d follows %d, in shelf %s", key.number, key.clock, last, filepath.Base(shelf))
			}
			last = key.clock
		}
	}
	if !slices.IsSorted(names) || len(names) < 3 {
		t.Errorf("shelves %q", names)
	}
}

func TestNextClockOnlyGoesUp(t *testing.T) {
	for _, tt := range []struct {
		name string
		last uint64
		now  time.Time
		want uint64
	}{
		{"the wall clock goes on", 10, time.Unix(0, 20), 20},
		{"the wall clock stands", 20, time.Unix(0, 20), 21},
		{"the wall clock goes back", 30, time.Unix(0, 20), 31},
		{"the wall clock stands before 1970", 0, time.Unix(-5, 0), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := nextClock(tt.last, tt.now); got != tt.want {
				t.Errorf("nextClock(%d, %v) = %d, want %d", tt.last, tt.now, got, tt.want)
			}
		})
	}
}
