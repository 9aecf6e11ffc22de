package archivegate

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// memory is a [Keeper] without a disk.
type memory struct {
	mu    sync.Mutex
	texts map[string][]byte
	fail  bool
}

func newMemory() *memory { return &memory{texts: map[string][]byte{}} }

func (m *memory) Load(name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.texts[name], nil
}

func (m *memory) Save(name string, text []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail {
		return errors.New("no space")
	}
	m.texts[name] = slices.Clone(text)
	return nil
}

// clock is a wall clock that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func (c *clock) set(text string) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = t
}

// simSlot is a site and quarter of an hour.
type simSlot struct{ site, quarter int64 }

// books is a [Ledger] in memory.
type books struct {
	slots  map[simSlot]Tally
	folded map[int64]Tally
	// foldedTo is the first quarter behind all that were let go.
	foldedTo int64
	incoming time.Time // zero: no import goes on
}

func newBooks() *books { return &books{slots: map[simSlot]Tally{}, folded: map[int64]Tally{}} }

func (b *books) add(site int64, at time.Time, by Tally) {
	k := simSlot{site, floorQuarter(at)}
	b.slots[k] = plus(b.slots[k], by)
}

func plus(a, b Tally) Tally {
	return Tally{a.Accepted + b.Accepted, a.Delivered + b.Delivered, a.Invalid + b.Invalid, a.Dead + b.Dead}
}

func (b *books) Sums(site, from, before int64) (within, all Tally, exact bool) {
	all = b.folded[site]
	for k, t := range b.slots {
		if k.site != site || k.quarter >= before {
			continue
		}
		all = plus(all, t)
		if k.quarter >= from {
			within = plus(within, t)
		}
	}
	return within, all, b.foldedTo <= before
}

func (b *books) Unsettled() []Slot {
	var out []Slot
	for k, t := range b.slots {
		if n := t.Pending(); n != 0 {
			out = append(out, Slot{k.site, k.quarter, n})
		}
	}
	slices.SortFunc(out, func(x, y Slot) int {
		if x.Site != y.Site {
			return int(x.Site - y.Site)
		}
		return int(x.Quarter - y.Quarter)
	})
	return out
}

func (b *books) Incoming() (time.Time, bool) { return b.incoming, !b.incoming.IsZero() }

func (b *books) Recount(context.Context) (Recount, error) { return Recount{V: 1, OK: true}, nil }

// world is what a gate stands in.
type world struct {
	clock    *clock
	books    *books
	keep     *memory
	sites    []Site
	listErr  error
	listed   int // questions
	drain    Drain
	inFlight []time.Time // requests that are received and not yet written
	orders   []siteDay   // that Matomo took
	orderErr error
}

func newWorld(now string, sites ...Site) *world {
	w := &world{clock: &clock{}, books: newBooks(), keep: newMemory(), sites: sites}
	w.clock.set(now)
	return w
}

func (w *world) Sites(context.Context) ([]Site, error) {
	w.listed++
	return slices.Clone(w.sites), w.listErr
}

func (w *world) Written() time.Time {
	at := w.clock.now()
	for _, t := range w.inFlight {
		if t.Before(at) {
			at = t
		}
	}
	return at
}

func (w *world) Invalidate(_ context.Context, site int64, d Date) error {
	if w.orderErr == nil {
		w.orders = append(w.orders, siteDay{site, d})
	}
	return w.orderErr
}

// gate gives a gate in the world, as after a start of the process.
func (w *world) gate(t testing.TB, cfg Config) *Gate {
	t.Helper()
	cfg.Edge = "edge-1"
	g, err := New(cfg, Parts{
		Ledger: w.books, Arrivals: w, Drain: func() Drain { return w.drain }, Lister: w, Invalidator: w, Keeper: w.keep,
		Log: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet(), Now: w.clock.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

const skew = 5 * time.Second

// one asks about a site and wants no error.
func one(t testing.TB, g *Gate, q Query) Answer {
	t.Helper()
	a, err := g.One(t.Context(), q)
	if err != nil {
		t.Fatalf("One(%+v): %v", q, err)
	}
	return a
}

func all(t testing.TB, g *Gate, q Query) Summary {
	t.Helper()
	s, err := g.All(t.Context(), q)
	if err != nil {
		t.Fatalf("All(%+v): %v", q, err)
	}
	return s
}

func berlin() Site {
	return Site{ID: 1, Name: "shop", Zone: "Europe/Berlin", Created: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func utcSite(id int64) Site {
	return Site{ID: id, Zone: "UTC", Created: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}
}
