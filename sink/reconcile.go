package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"sluice/internal/hit"
)

// A reconciler asks Matomo's database which hits of a batch of unknown outcome it
// has recorded. It only reads. Methods may be called from any goroutine.
type reconciler struct {
	db     *database // of its own
	src    Source
	air    *air
	rest   time.Duration // after a baseline that could not be read
	recent lately

	asking sync.Mutex // one user of db at a time: the isolation level is the session's

	mu        sync.Mutex
	restUntil time.Time // until then baselines are not read
	trouble   string    // why hits in doubt stay so, "" when none does
}

func newReconciler(cfg *Config, src Source) (*reconciler, error) {
	db, err := newDatabase(cfg.DSN, cfg.TablesPrefix)
	if err != nil {
		return nil, err
	}
	return &reconciler{db: db, src: src, air: newAir(), rest: cfg.waits.baselineRest}, nil
}

// askTime bounds all questions about one doubt.
const askTime = 30 * time.Second

// errRunning: rows are there that are not committed.
var errRunning = errors.New("a transaction with these hits is still open in MySQL")

// ask says what became of each hit of a doubt. An error means that it cannot be said
// now.
func (r *reconciler) ask(ctx context.Context, d *doubt) ([]finding, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	r.asking.Lock()
	defer r.asking.Unlock()
	hits := expectAll(d.items)
	ev := &evidence{base: readMemo(r.src.Memo(d.batch)), skips: d.skips}
	// A batch's own doubt has all of its hits, but for those that Matomo named.
	ev.whole = !d.inherited || ev.base.hits == len(hits)
	if err := r.writer(ctx); err != nil {
		return nil, err
	}
	var err error
	if ev.atomic, err = r.atomic(ctx); err != nil {
		return nil, err
	}
	ev.atomic = ev.atomic && !d.torn
	look := func() (rows []actionRow, conversions map[string]int, err error) {
		if rows, err = r.actions(ctx, hits, ev.base.mark); err == nil {
			conversions, err = r.conversions(ctx, hits)
		}
		return rows, conversions, err
	}
	// What is written and not committed may be committed the next moment.
	var open []actionRow
	var openConversions map[string]int
	if err := r.dirty(ctx, func() error {
		var err error
		open, openConversions, err = look()
		return err
	}); err != nil {
		return nil, err
	}
	if ev.rows, ev.conversions, err = look(); err != nil {
		return nil, err
	}
	same := slices.EqualFunc(open, ev.rows, func(a, b actionRow) bool { return a.id == b.id })
	if !same || !maps.Equal(openConversions, ev.conversions) {
		return nil, errRunning
	}
	if ev.touched, err = r.touches(ctx, hits); err != nil {
		return nil, err
	}
	found, row, err := decide(hits, ev)
	if err != nil {
		return nil, err
	}
	visits, err := r.visits(ctx, ev.rows, ev.skips > 0)
	if err != nil {
		return nil, err
	}
	orphans(found, row, ev, visits)
	return found, nil
}

// delivered notes hits of which Matomo said that it has them.
func (r *reconciler) delivered(items []*item) {
	for _, e := range expectAll(items) {
		r.recent.add(&e)
	}
}

// why words an error for people.
func (r *reconciler) why(err error) string {
	switch n := errorNumber(err); {
	case classify(err) == faultAccount:
		return fmt.Sprintf("the MySQL account lacks a right (%d); sluice check --online prints the GRANT", n)
	case n != 0:
		return mysqlText(err)
	}
	for _, own := range []error{errRunning, errContradiction, errUnmarked, errReplica, errReconnected, errTooMany} {
		if errors.Is(err, own) {
			return own.Error()
		}
	}
	return mysqlText(err)
}

func (r *reconciler) setTrouble(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trouble = text
}

// detail says why hits in doubt stay so; "" when none does.
func (r *reconciler) detail() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trouble
}

// reconcile decides about a doubt by the database, or says when to ask again.
//
// Before the hits are due, the request may still be running, and what is absent may
// come. Then only a batch of which everything is there is settled.
func (s *Sink) reconcile(ctx context.Context, d *doubt) resolution {
	early := !d.waited && time.Now().Before(d.due)
	d.waited = !early
	found, err := s.recon.ask(ctx, d)
	if early && (err != nil || !complete(d, found)) {
		d.wait *= 2
		d.look = time.Now().Add(d.wait)
		return resolution{doubt: d, again: max(time.Until(d.due), time.Millisecond)}
	}
	if err != nil {
		again := min(s.cfg.waits.firstAgain<<min(d.asked, 10), s.cfg.waits.lastAgain)
		d.asked++
		if ctx.Err() != nil {
			return resolution{doubt: d, again: again}
		}
		why := s.recon.why(err)
		s.recon.setTrouble(why)
		if !errors.Is(err, errRunning) {
			s.ins.reconcileFailures.Inc()
		}
		level := slog.LevelWarn
		if errors.Is(err, errContradiction) {
			level = slog.LevelError
		}
		s.log.Log(ctx, level, "hits of unknown outcome stay in doubt, and what stands behind them waits", "hits", len(d.items), "batch", d.batch, "why", why, "again", again)
		return resolution{doubt: d, again: again}
	}
	s.recon.setTrouble("")
	return s.conclude(d, found)
}

// torn reports whether Matomo has recorded hits of a request that failed, which it
// does without transactions, or when it fails behind the commit. The hits are then in
// doubt, as they are when the database cannot say. It does nothing without an account.
func (s *Sink) torn(ctx context.Context, f *flight, batch uint64, part []*item, v verdict) bool {
	if s.recon == nil || !v.failed {
		return false
	}
	d := &doubt{batch: batch, items: part, due: time.Now(), waited: true, torn: true}
	found, err := s.recon.ask(ctx, d)
	if err == nil && !slices.ContainsFunc(found, func(f finding) bool { return f == foundRecorded || f == foundPartial }) {
		return false
	}
	for _, it := range part {
		it.doubt = true
	}
	f.doubts = append(f.doubts, d)
	s.log.Warn("Matomo failed on a batch and may have recorded a part of it; MySQL is asked", "hits", len(part), "batch", batch, "why", v.detail)
	return true
}

// complete reports whether a batch was certainly committed as a whole: a row of an
// action stands for that, and no other hit that leaves one is missing. Pings do not
// count, since they are sent again in any case.
func complete(d *doubt, found []finding) bool {
	if d.skips > 0 {
		return false
	}
	certain := false
	for i, e := range expectAll(d.items) {
		switch {
		case found[i] == foundRecorded:
			certain = certain || e.trace == traceAction
		case e.trace != traceRepeatable:
			return false
		}
	}
	return certain
}

// conclude settles what is recorded and gives back what is not.
func (s *Sink) conclude(d *doubt, found []finding) resolution {
	r := resolution{doubt: d, settled: map[*item]hit.Outcome{}}
	var list []hit.Settlement
	var unsure []*item
	counts := [foundPartial + 1]int{}
	for i, it := range d.items {
		counts[found[i]]++
		switch found[i] {
		case foundRecorded:
			list = append(list, hit.Settlement{ID: it.ID, As: hit.Delivered})
			r.settled[it] = hit.Delivered
		case foundPartial:
			list = append(list, hit.Settlement{ID: it.ID, As: hit.Dead, Reason: BuriedPartial})
			r.settled[it] = hit.Dead
		case foundNothing:
			unsure = append(unsure, it)
			continue
		}
		r.cleared = append(r.cleared, it)
	}
	for f, word := range foundNames {
		if word != "" {
			s.ins.reconciled[f].Add(counts[f])
		}
	}
	s.log.Info("hits of unknown outcome are looked up in MySQL", "batch", d.batch, "recorded", counts[foundRecorded], "absent", counts[foundAbsent],
		"partial", counts[foundPartial], "not_told", len(unsure))
	batch := d.batch
	switch {
	case len(unsure) == 0:
	case s.cfg.OnUnknown == Hold:
		batch = 0 // the journal's entry stays for these
	default:
		s.resend(unsure, d.batch)
		r.cleared = append(r.cleared, unsure...)
	}
	if r.err = s.settle(batch, list); r.err == nil {
		s.recon.air.leave(r.cleared)
		s.rate.add(time.Now(), len(list))
	}
	return r
}

var foundNames = [...]string{foundNothing: "", foundRecorded: "recorded", foundAbsent: "absent", foundPartial: "partial"}
