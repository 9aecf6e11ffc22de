package archivegate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// quarterSeconds is the width of the ledger's slots.
const quarterSeconds = 15 * 60

// A Tally is what became of hits. Accepted = Delivered + Invalid + Dead + what is
// pending.
type Tally struct{ Accepted, Delivered, Invalid, Dead int64 }

// Pending counts the hits of which nothing is decided. Hits that are lost on the disk
// are among them.
func (t Tally) Pending() int64 { return t.Accepted - t.Delivered - t.Invalid - t.Dead }

// A Slot is the pending hits of one site in one quarter of an hour of effective time.
// Site 0 stands for hits whose site is no number that Matomo could have.
type Slot struct {
	Site    int64
	Quarter int64 // Unix seconds divided by 900
	Pending int64
}

// A Ledger counts hits. Its methods do not block on a disk.
type Ledger interface {
	// Sums adds up a site's hits with an effective time before a quarter, and those of
	// them from another quarter on. A hit whose client has its answer is in it. exact is
	// false when settled hits of later quarters are among all.
	Sums(site, from, before int64) (within, all Tally, exact bool)
	// Unsettled gives the slots that have pending hits, by site and quarter.
	Unsettled() []Slot
	// Incoming gives since when hits may have been received that are still being imported:
	// of that time or later. ok is false when there are none.
	Incoming() (since time.Time, ok bool)
	// Recount reads every pending hit and compares it with the counters. It may take
	// minutes.
	Recount(ctx context.Context) (Recount, error)
}

// Arrivals knows what is being received.
type Arrivals interface {
	// Written gives a time such that every request that was completely received before
	// it is by now in the ledger, or was refused. It gets on with every question, but for
	// requests that take long.
	Written() time.Time
}

// A Drain is what feeds Matomo, as it is now.
type Drain struct {
	Uncertain int64   // hits that Matomo may or may not have; they are among the pending
	PerSecond float64 // hits that get to Matomo; 0 = none, or not known
	// Clock is how far Matomo's clock is ahead of ours; nil = not known.
	Clock *time.Duration
	// Reader is the replica that archiving reads from; nil = it reads where hits are
	// written.
	Reader *Reader
	// Behind is another queue between us and Matomo's tables; nil = none.
	Behind *Behind
}

// A Behind is a queue of Matomo's own that holds hits back, such as QueuedTracking's.
type Behind struct {
	Text    string // a clause for people
	Pending *int64 // nil = it cannot be looked into
}

// A Reader says how far a replica was behind.
type Reader struct {
	Lag *time.Duration // nil = not known
	At  time.Time      // when it was asked
}

// A Keeper keeps small texts over restarts, each replaced as a whole and synced.
type Keeper interface {
	// Load gives what was saved last, nil when nothing was.
	Load(name string) ([]byte, error)
	Save(name string, text []byte) error
}

// An Invalidator makes Matomo forget its reports of a day, so that they are made anew.
type Invalidator interface {
	Invalidate(ctx context.Context, site int64, d Date) error
}

// Config says when a day is complete.
type Config struct {
	Edge string // name of this edge
	// ListEvery is how often the list of sites is read.
	ListEvery time.Duration
	// Skew is how far clocks may differ: a day counts as over that much later.
	Skew time.Duration
	// MaxHold ends the waiting for a day: that long after its end the answer is
	// [StateForced]. 0 = never.
	MaxHold time.Duration
	// AllOnly refuses questions about single sites, where plugins of Matomo move hits
	// from one site to another.
	AllOnly bool
	// DeadBlock keeps a day with dead letters from being complete.
	DeadBlock bool
	// Invalidate makes Matomo forget its reports of days that were reopened. InvalidateAge
	// is how old such a day may be: raw data that Matomo has deleted cannot be counted
	// again.
	Invalidate    bool
	InvalidateAge time.Duration
}

// Parts is what a [Gate] asks. All are needed but Invalidator and Now.
type Parts struct {
	Ledger   Ledger
	Arrivals Arrivals
	// Drain gives the present state of what feeds Matomo. It must not block.
	Drain       func() Drain
	Lister      Lister
	Invalidator Invalidator
	Keeper      Keeper
	Log         *slog.Logger
	Metrics     *metrics.Set
	Now         func() time.Time // wall clock; nil = time.Now
}

// A Gate answers whether days are complete; see the package comment.
type Gate struct {
	cfg    Config
	parts  Parts
	log    *slog.Logger
	now    func() time.Time
	sites  *lister
	book   *book
	orders *orders
	inst   *instruments
	later  *invalidations // nil = none wanted

	rebuilding sync.Mutex // held by Rebuild
}

// New returns a Gate that knows what an earlier process kept.
func New(cfg Config, parts Parts) (*Gate, error) {
	if parts.Ledger == nil || parts.Arrivals == nil || parts.Drain == nil || parts.Lister == nil || parts.Keeper == nil || parts.Log == nil || parts.Metrics == nil {
		return nil, errors.New("archivegate: a part is missing")
	}
	if cfg.Invalidate && parts.Invalidator == nil {
		return nil, errors.New("archivegate: nobody invalidates")
	}
	g := &Gate{cfg: cfg, parts: parts, log: parts.Log, now: parts.Now}
	if g.now == nil {
		g.now = time.Now
	}
	g.sites = newLister(parts.Lister, cmp.Or(cfg.ListEvery, time.Minute), parts.Keeper, g.log, g.now)
	g.book = newBook(parts.Keeper, g.log)
	g.orders = newOrders(parts.Keeper, g.log, g.now)
	if cfg.Invalidate {
		g.later = newInvalidations(cfg.InvalidateAge)
	}
	g.inst = newInstruments(parts.Metrics, g)
	return g, nil
}

// Run keeps the gate's knowledge fresh until ctx is done, and returns nil then.
func (g *Gate) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { g.sites.run(ctx) }) // ends with ctx
	wg.Go(func() { g.invalidate(ctx) })
	g.watch(ctx)
	wg.Wait()
	g.book.save()
	return nil
}

// watchEvery is how often the gate looks around by itself. A look of a large
// installation takes longer, and then there are fewer.
const (
	watchEvery = time.Second
	watchShare = 50
)

// watch looks at the days that ended last until ctx is done, so that what completes or
// reopens one is noticed though nobody asks.
func (g *Gate) watch(ctx context.Context) {
	for {
		began := time.Now()
		g.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(watchEvery, watchShare*time.Since(began))):
		}
	}
}

// look judges the newest ended day of every site, and now and then the days before
// that were complete.
func (g *Gate) look(ctx context.Context) {
	v := g.view(ctx, nil)
	var late overdue
	for i := range v.list.sites {
		s := &v.list.sites[i]
		if s.err != nil {
			late.days++
			continue
		}
		d := v.finished(s)
		if a := v.judge(s, d); !a.vacuous && a.State != StateComplete {
			late.add(v.openDays(s, d))
			if a.State == StateForced {
				g.noteForced(&a)
			}
		}
		for _, d := range g.book.daysOf(s.ID, d) {
			v.judge(s, d)
		}
	}
	g.book.prune(v.now)
	g.lookBack(v)
	g.inst.set(late)
	g.book.saveSoon(v.now)
}

// lookBack finds late hits of days so old that nobody remembers them: they were
// complete, or given up, long ago.
func (g *Gate) lookBack(v *view) {
	oldest := dateOf(v.now.UTC()).Add(-bookDays)
	for site, slots := range v.slots {
		s, ok := v.list.find(site)
		if !ok || s.err != nil {
			continue
		}
		for _, slot := range slots {
			d := s.zone.On(time.Unix(slot.Quarter*quarterSeconds, 0))
			if !d.Before(oldest) {
				break
			}
			if g.book.suppose(site, d) {
				g.inst.reopened.Inc()
				g.log.Warn("a day of long ago has got more hits", "site", site, "date", d.String())
			}
		}
	}
}

// noteEpoch brings the book up to date with an answer, and the answer with the book.
//
// Only hits change an epoch. A hold, or another queue, keeps a day from being complete
// and is forgotten with its end: whether it brought anything is not known here.
func (g *Gate) noteEpoch(a *Answer, all Tally, exact bool, now time.Time) {
	c := g.book.note(a.Site, a.Date, all, exact, a.State == StateComplete, now)
	a.Epoch = c.epoch
	if !c.since.IsZero() {
		a.Since = new(c.since.UTC())
	}
	if c.late && a.State == StateDraining {
		a.State = StateReopened
	}
	if c.reopened {
		g.inst.reopened.Inc()
		g.log.Warn("a day that was complete has got more hits; it is complete again when they are in Matomo",
			"site", a.Site, "date", a.Date.String(), "epoch", c.epoch, "pending", a.Pending)
	}
	if c.closed {
		g.log.Info("a day that was reopened is complete again", "site", a.Site, "date", a.Date.String(), "epoch", c.epoch)
		if g.later != nil {
			g.later.add(a.Site, a.Date, now)
		}
	}
}

// noteForced says once for a day that it was passed over.
func (g *Gate) noteForced(a *Answer) {
	if g.book.force(a.Site, a.Date) {
		g.inst.forced.Inc()
		g.log.Error("a day that is not complete is let through, because the longest waiting time is over; its reports will be short",
			"site", a.Site, "date", a.Date.String(), "pending", a.Pending, "why", a.why())
	}
}

// ErrUsage marks questions that cannot be answered however often they are asked.
var ErrUsage = errors.New("not a question for the gate")

// ErrNoSite marks questions about sites that do not exist.
var ErrNoSite = errors.New("no such site")

func usage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUsage, fmt.Sprintf(format, args...))
}
