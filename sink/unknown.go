package sink

import (
	"context"
	"fmt"
	"time"

	"sluice/internal/hit"
)

// A doubt is hits of one batch that Matomo may or may not have. They are not sent
// and nothing of their sites behind them is, until the doubt is resolved.
type doubt struct {
	batch uint64 // the journal's, of this process or of an earlier one
	items []*item
	// due is when no request with these hits can be running any more.
	due time.Time
	// inherited: the batch was in flight when an earlier process ended, so its
	// entry in the journal ends by itself, with the last of its hits.
	inherited bool
	// skips is how many of the hits Matomo said it left out; 0 when it did not say.
	skips int
	asked int // how often the database was asked in vain
	// look is when the database is asked although the hits are not due: what it shows
	// as recorded needs no waiting.
	look time.Time
	wait time.Duration // between looks
	hits int           // of the whole batch, if it is inherited and its memo says so
	// waited: the hits were due before, and the database could not say.
	waited bool
	// torn: the request failed, so that what is recorded says nothing of the rest.
	torn bool
}

func (s *Sink) newDoubt(batch uint64, items []*item, due time.Time) *doubt {
	for _, it := range items {
		it.doubt = true
	}
	return &doubt{batch: batch, items: items, due: due, look: time.Now().Add(s.cfg.waits.firstLook), wait: s.cfg.waits.firstLook}
}

// nextLook says when a doubt is to be resolved, or at least looked at. One of an
// earlier process is not looked at before all of its hits are leased.
func (s *Sink) nextLook(d *doubt) time.Time {
	if s.recon == nil || d.waited || d.inherited && d.hits != len(d.items) {
		return d.due
	}
	return earlier(d.due, d.look)
}

// inherit puts a hit that was in flight when an earlier process ended to the others
// of its batch.
func (d *dispatcher) inherit(it *item) {
	var q *doubt
	for _, open := range d.doubts {
		if open.inherited && open.batch == it.Uncertain {
			q = open
		}
	}
	if q == nil {
		// What an earlier process had in flight it sent before this one began.
		q = d.s.newDoubt(it.Uncertain, nil, d.began.Add(d.s.cfg.doubtWait()))
		q.inherited = true
		if d.s.recon != nil {
			q.hits = readMemo(d.s.src.Memo(q.batch)).hits
		}
		d.doubts = append(d.doubts, q)
	}
	q.items = append(q.items, it)
	if d.s.recon != nil {
		d.s.recon.air.enter(q, []*item{it})
	}
}

// A resolution says what became of a doubt.
type resolution struct {
	doubt *doubt
	// cleared are hits that are in doubt no more: those in settled, and others that
	// are to be sent again.
	cleared []*item
	settled map[*item]hit.Outcome
	// again is when to ask again about those that are not cleared; 0 leaves them
	// undecided.
	again time.Duration
	err   error // the source failed: the process cannot go on
}

// resolve is the one place that decides about hits in doubt. It is called when
// they are due, and again later for those that it did not clear. It writes to no
// item, which the dispatcher may look at meanwhile.
//
// With a MySQL account Matomo's database says what is recorded. Without one the
// policy decides: resend sends the hits again and counts them, hold leaves them in
// doubt.
func (s *Sink) resolve(ctx context.Context, d *doubt) resolution {
	if s.recon != nil {
		return s.reconcile(ctx, d)
	}
	if s.cfg.OnUnknown == Hold {
		return resolution{doubt: d}
	}
	s.resend(d.items, d.batch)
	r := resolution{doubt: d, cleared: d.items}
	if !d.inherited {
		if err := s.src.Settle(d.batch, nil); err != nil {
			r.err = fmt.Errorf("end the journal of a batch: %w", err)
		}
	}
	return r
}

// resend notes that hits are sent again though Matomo may have them.
func (s *Sink) resend(items []*item, batch uint64) {
	s.ins.unknown.Add(len(items))
	s.log.Warn("hits of unknown outcome are sent again: Matomo may have them twice (sink.on-unknown)", "hits", len(items), "batch", batch)
}
