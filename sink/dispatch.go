package sink

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"sluice/internal/hit"
)

// leaseChunk bounds how many hits are leased at once.
const leaseChunk = 512

// A dispatcher owns the lanes: it decides which hits leave, and takes back what
// became of them. All its fields belong to the goroutine of Run, but for the
// channels.
type dispatcher struct {
	s        *Sink
	lanes    *lanes
	suspects *suspects
	pace     pace
	doubts   []*doubt // of this process and of earlier ones
	held     []*doubt // left undecided
	launches uint64
	launched time.Time // the last of them
	flying   int       // flights and resolutions under way
	inFlight int       // flights
	fetching bool      // parked hits are being read
	began    time.Time

	leased   chan []*item
	reread   chan *rereading
	failed   chan error // the source failed while leasing; capacity 1
	landed   chan *flight
	resolved chan resolution
	wg       sync.WaitGroup

	again *encoder // for hits that are read again; belongs to the one that reads
}

func newDispatcher(s *Sink, now time.Time) *dispatcher {
	d := &dispatcher{
		s: s, lanes: newLanes(), suspects: newSuspects(s.cfg.waits), again: newEncoder(), pace: newPace(&s.cfg), began: now,
		leased: make(chan []*item), reread: make(chan *rereading), failed: make(chan error, 1),
		landed: make(chan *flight), resolved: make(chan resolution),
	}
	d.lanes.mask = s.mask.get()
	d.lanes.share = max(1, min(max(laneShare, 2*s.cfg.BatchHits), s.cfg.AheadHits/4))
	d.lanes.stuckMost = s.cfg.AheadHits / 2
	d.lanes.single = func(it *item) bool {
		return it.alone || it.lone > 0 || it.group.theirs && !s.clients.super(it.group.token)
	}
	return d
}

// lease leases hits, encodes them and hands them to run, as far ahead as the
// window allows.
func (d *dispatcher) lease(ctx context.Context) {
	enc := newEncoder()
	for {
		room, ok := d.s.window.wait(ctx, leaseChunk)
		if !ok {
			return
		}
		pending, err := d.leaseUnpaused(ctx, room)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			d.failed <- fmt.Errorf("lease hits: %w", err)
			return
		}
		items := make([]*item, len(pending))
		bytes := 0
		for i := range pending {
			items[i] = enc.encode(pending[i])
			items[i].mask = d.s.mask.get()
			items[i].marks = findMarks(items[i], items[i].mask)
			bytes += items[i].size()
		}
		d.s.window.take(len(items), bytes)
		select {
		case d.leased <- items:
		case <-ctx.Done():
			return
		}
	}
}

// leaseUnpaused leases hits once nobody pauses the drain: what is not in hand yet can
// still be put behind the older hits of an import.
func (d *dispatcher) leaseUnpaused(ctx context.Context, room int) ([]hit.Pending, error) {
	for {
		changed := d.s.brk.changes()
		if _, paused := d.s.brk.untilPauseEnds(); paused {
			select {
			case <-changed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			continue
		}
		waiting, cancel := context.WithCancel(ctx)
		go func() { // ended by cancel
			select {
			case <-changed:
				cancel()
			case <-waiting.Done():
			}
		}()
		pending, err := d.s.src.Lease(waiting, room)
		interrupted := waiting.Err() != nil
		cancel()
		if err == nil || !interrupted || ctx.Err() != nil {
			return pending, err
		}
	}
}

// run launches flights until ctx is done or the source fails.
func (d *dispatcher) run(ctx, work context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		changed := d.s.brk.changes()
		now := time.Now()
		next := d.launch(ctx, work, now)
		d.publish()
		timer.Reset(next.Sub(now))
		select {
		case <-ctx.Done():
			return nil
		case err := <-d.failed:
			return err
		case items := <-d.leased:
			d.accept(items, time.Now())
		case r := <-d.reread:
			if err := d.reclaim(ctx, r, time.Now()); err != nil {
				return err
			}
		case f := <-d.landed:
			if err := d.land(f, time.Now()); err != nil {
				return err
			}
		case r := <-d.resolved:
			if err := d.resolve(r, time.Now()); err != nil {
				return err
			}
		case <-changed:
		case <-timer.C:
		}
	}
}

// finish waits for what is under way. Hits that are not settled stay pending.
func (d *dispatcher) finish() error {
	var first error
	for d.flying > 0 || d.fetching {
		var err error
		select {
		case <-d.reread: // leased again by the next process
			d.fetching = false
		case f := <-d.landed:
			err = d.land(f, time.Now())
		case r := <-d.resolved:
			err = d.resolve(r, time.Now())
		}
		if first == nil {
			first = err
		}
		d.publish()
	}
	d.wg.Wait()
	return first
}

func (d *dispatcher) accept(items []*item, now time.Time) {
	horizon := d.horizon(now)
	for _, it := range items {
		d.lanes.add(it, now, horizon)
		if !it.away {
			d.s.clients.enlist(it, now)
		}
		if it.doubt {
			d.inherit(it)
		}
	}
	if len(items) > 0 {
		d.s.sites.waiting(items[0].Site)
	}
	d.unburden()
}

// unburden makes room for others where lanes have parked hits.
func (d *dispatcher) unburden() {
	if f := d.lanes.freed; f.hits > 0 {
		d.lanes.freed = size{}
		d.s.window.give(f.hits, f.bytes)
	}
}

// fetch reads parked hits again, for one lane at a time.
func (d *dispatcher) fetch(ctx context.Context) {
	if d.fetching {
		return
	}
	r := d.lanes.reread()
	if r == nil {
		return
	}
	d.fetching = true
	d.wg.Go(func() { // returns when the source does, which ends with ctx
		d.read(ctx, r)
		d.reread <- r
	})
}

func (d *dispatcher) read(ctx context.Context, r *rereading) {
	ids := make([]hit.ID, len(r.hits))
	at := make(map[hit.ID]*parkedHit, len(r.hits))
	for i := range r.hits {
		ids[i] = r.hits[i].id()
		at[ids[i]] = &r.hits[i]
	}
	pending, err := d.s.src.Reread(ctx, ids)
	if err != nil {
		r.err = fmt.Errorf("read hits again: %w", err)
		return
	}
	for i := range pending {
		p := at[pending[i].ID]
		if p == nil {
			continue
		}
		it := d.again.encode(pending[i])
		it.restore(p)
		r.items = append(r.items, it)
	}
}

// reclaim takes back hits that were read again.
func (d *dispatcher) reclaim(ctx context.Context, r *rereading, now time.Time) error {
	d.fetching = false
	if r.err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return r.err
	}
	hits, bytes, lost := d.lanes.reclaim(r, now, d.horizon(now))
	d.s.window.take(hits, bytes)
	if lost > 0 {
		d.s.log.Error("hits of the queue cannot be read again; they stay counted as pending", "hits", lost)
	}
	for _, it := range r.items {
		if !it.away {
			d.s.clients.enlist(it, now)
		}
	}
	d.unburden()
	return nil
}

// horizon gives the latest Unix second that Matomo's clock has surely reached.
func (d *dispatcher) horizon(now time.Time) int64 {
	least, _, _ := d.s.clock.offset()
	return now.Add(least).Unix()
}

// company is how long a few hits wait for others before they open another request
// beside those in flight, which costs Matomo and us far more than a hit.
const company = 100 * time.Millisecond

// idleLook is how often the dispatcher looks around when nothing happens.
const idleLook = time.Minute

// launch starts what may start now and gives the time at which to look again.
func (d *dispatcher) launch(ctx, work context.Context, now time.Time) time.Time {
	next := now.Add(idleLook)
	waiting := d.doubts[:0]
	for _, q := range d.doubts {
		if at := d.s.nextLook(q); at.After(now) {
			waiting = append(waiting, q)
			next = earlier(next, at)
			continue
		}
		d.flying++
		d.wg.Go(func() { d.resolved <- d.s.resolve(work, q) }) // resolve returns when work is done
	}
	d.doubts = waiting
	if mask := d.s.mask.get(); mask != d.lanes.mask {
		d.lanes.remask(mask, now, d.horizon(now))
	}
	if !d.s.brk.sending() {
		if !d.s.brk.starting() {
			d.pace.fallBack(d.s.standing().reason == ReasonOverload)
		}
		return next
	}
	defer d.unburden()
	d.fetch(ctx)
	if at := d.lanes.wake(now, d.horizon(now)); !at.IsZero() {
		next = earlier(next, at)
	}
	for d.inFlight < d.pace.lanes() {
		if at := d.launched.Add(company); d.inFlight > 0 && at.After(now) && d.lanes.readyLanes() < startHits {
			next = earlier(next, at)
			break
		}
		f := d.pick(now)
		if f == nil {
			d.pace.starved()
			break
		}
		f.began, d.launched = now, now
		d.launches++
		f.launch = d.launches
		d.inFlight++
		d.flying++
		d.wg.Go(func() { // deliver returns when work is done
			d.s.deliver(work, ctx, f)
			d.landed <- f
		})
	}
	if at := d.lanes.wake(now, d.horizon(now)); !at.IsZero() {
		next = earlier(next, at) // what pick held back
	}
	return next
}

// pick takes the next batch from the lanes; nil when nothing can leave.
func (d *dispatcher) pick(now time.Time) *flight {
	horizon := d.horizon(now)
	limit := d.pace.allowed(d.s.probe.token())
	if d.s.client.setsCookies.Load() {
		limit.hits = min(limit.hits, maxCookieHits)
	}
	for {
		batch := d.lanes.take(limit, now, horizon)
		if len(batch) == 0 {
			return nil
		}
		it := batch[0]
		full := len(batch) >= limit.hits || weight(batch) >= limit.bytes-limit.bytes/fullShare
		if it.group.theirs {
			if a := d.s.clients.admit(batch, now); a.refused {
				return &flight{items: batch, refused: true}
			} else if a.until.After(now) {
				d.lanes.release(batch, now, horizon)
				for _, it := range batch {
					d.lanes.hold(it, a.until, now, horizon)
				}
				continue
			}
		}
		switch {
		case len(batch) > 1 || !d.suspects.suspected(it):
			return &flight{items: batch, full: full}
		case d.suspects.proven(it, now):
			return &flight{items: batch, proven: true}
		case d.inFlight == 0 && d.lanes.idle():
			// Nobody else can show whether Matomo works.
			others := slices.DeleteFunc(d.lanes.bystanders(it.lane.top(), horizon), d.s.clients.unproven)
			for _, o := range others {
				o.lot = it.lot
			}
			return &flight{items: append(batch, others...), trial: true}
		}
		// Another lane will show it.
		d.lanes.release(batch, now, horizon)
		d.lanes.hold(it, now.Add(d.s.cfg.waits.suspectDelay), now, horizon)
	}
}

// fullShare of a batch may be free and it still counts as full: the next hit was
// too large for what is left.
const fullShare = 10

func weight(batch []*item) int {
	bytes := envelopeOverhead
	for _, it := range batch {
		bytes += len(it.element) + 1
	}
	return bytes
}

// land takes back a flight.
func (d *dispatcher) land(f *flight, now time.Time) error {
	d.flying--
	d.inFlight--
	horizon := d.horizon(now)
	hits, bytes := d.lanes.release(f.items, now, horizon)
	d.s.window.give(hits, bytes)
	for _, it := range f.items {
		if it.settled && d.suspects.suspected(it) {
			d.suspects.forget(it)
		}
	}
	d.doubts = append(d.doubts, f.doubts...)
	if f.err != nil {
		return f.err
	}
	switch {
	case f.shrink && len(f.doubts) > 0: // hits were skipped because of lock waits
		d.pace.contend(len(f.items))
	case f.shrink:
		d.pace.shrink(len(f.items))
	case f.retried && f.good && len(f.suspects) == 0: // a deadlock
		d.pace.contend(len(f.items))
	}
	if f.good {
		d.suspects.passed(f, now)
		d.recall(now, horizon)
		d.s.brk.delivered()
		if !f.shrink && !f.retried && len(f.suspects) == 0 {
			d.pace.good(hits, f.full, now.Sub(f.began), now)
		}
	}
	outage := f.outage
	for _, it := range f.suspects {
		due, all := d.suspects.add(it, d.launches, now)
		d.lanes.hold(it, due, now, horizon)
		outage = outage || all
	}
	if outage {
		d.s.brk.rest("Matomo fails on every hit, though its canary passes")
	}
	return nil
}

// recall shortens the wait of suspects, now that something went through: while
// that is fresh a second failure is their own.
func (d *dispatcher) recall(now time.Time, horizon int64) {
	for it, failed := range d.suspects.at {
		if ln := it.lane.top(); ln.busy == 0 && len(ln.items) > 0 && ln.items[0] == it && d.suspects.proven(it, now) {
			d.lanes.hold(it, failed.Add(d.s.cfg.waits.suspectDelay), now, horizon)
		}
	}
}

// resolve takes back a decision about hits in doubt.
func (d *dispatcher) resolve(r resolution, now time.Time) error {
	d.flying--
	if r.err != nil {
		return r.err
	}
	for it, as := range r.settled {
		it.settled, it.as = true, as
	}
	hits, bytes := d.lanes.cleared(r.cleared, now, d.horizon(now))
	d.s.window.give(hits, bytes)
	open := r.doubt.items[:0:0]
	for _, it := range r.doubt.items {
		if it.doubt {
			open = append(open, it)
		}
	}
	if len(open) > 0 {
		r.doubt.items = open
		if r.again > 0 {
			r.doubt.due = now.Add(r.again)
			d.doubts = append(d.doubts, r.doubt)
		} else {
			d.held = append(d.held, r.doubt)
		}
	}
	return nil
}

// publish shows the present figures to other goroutines.
func (d *dispatcher) publish() {
	d.s.shown.write(figures{
		inFlight: d.inFlight, lanes: d.pace.lanes(), batch: d.pace.allowed(d.s.probe.token()).hits,
		parked: d.lanes.parked, uncertain: d.lanes.doubt, leased: d.lanes.hits, heldLanes: d.lanes.held.Len(),
		undecided: len(d.held), suspects: len(d.suspects.failed),
	})
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
