package sink

import (
	"context"
	"fmt"
	"sync"
	"time"
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
	flying   int // flights and resolutions under way
	inFlight int // flights
	began    time.Time

	leased   chan []*item
	failed   chan error // the source failed while leasing; capacity 1
	landed   chan *flight
	resolved chan resolution
	wg       sync.WaitGroup
}

func newDispatcher(s *Sink, now time.Time) *dispatcher {
	d := &dispatcher{
		s: s, lanes: newLanes(), suspects: newSuspects(), pace: newPace(&s.cfg), began: now,
		leased: make(chan []*item), failed: make(chan error, 1),
		landed: make(chan *flight), resolved: make(chan resolution),
	}
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
		pending, err := d.s.src.Lease(ctx, room)
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
	for d.flying > 0 {
		var err error
		select {
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
	inherited := map[uint64]*doubt{}
	for _, it := range items {
		d.lanes.add(it, now, horizon)
		if !it.doubt {
			continue
		}
		q := inherited[it.Uncertain]
		if q == nil {
			// What an earlier process had in flight it sent before this one began.
			q = &doubt{batch: it.Uncertain, due: d.began.Add(d.s.cfg.doubtWait()), inherited: true}
			inherited[it.Uncertain] = q
			d.doubts = append(d.doubts, q)
		}
		q.items = append(q.items, it)
	}
	if len(items) > 0 {
		d.s.sites.waiting(items[0].Site)
	}
}

// horizon gives the latest Unix second that Matomo's clock has surely reached.
func (d *dispatcher) horizon(now time.Time) int64 {
	least, _, _ := d.s.clock.offset()
	return now.Add(least).Unix()
}

// idleLook is how often the dispatcher looks around when nothing happens.
const idleLook = time.Minute

// launch starts what may start now and gives the time at which to look again.
func (d *dispatcher) launch(ctx, work context.Context, now time.Time) time.Time {
	next := now.Add(idleLook)
	waiting := d.doubts[:0]
	for _, q := range d.doubts {
		if q.due.After(now) {
			waiting = append(waiting, q)
			next = earlier(next, q.due)
			continue
		}
		d.flying++
		d.wg.Go(func() { d.resolved <- d.s.resolve(work, q) }) // resolve returns when work is done
	}
	d.doubts = waiting
	if !d.s.brk.sending() {
		if !d.s.brk.starting() {
			d.pace.fallBack()
		}
		return next
	}
	if at := d.lanes.wake(now, d.horizon(now)); !at.IsZero() {
		next = earlier(next, at)
	}
	for d.inFlight < d.pace.lanes() {
		f := d.pick(now)
		if f == nil {
			break
		}
		d.launches++
		f.launch = d.launches
		d.inFlight++
		d.flying++
		d.wg.Go(func() { // deliver returns when work is done
			d.s.deliver(work, ctx, f)
			d.landed <- f
		})
	}
	return next
}

// pick takes the next batch from the lanes; nil when nothing can leave.
func (d *dispatcher) pick(now time.Time) *flight {
	horizon := d.horizon(now)
	limit := size{hits: d.pace.hits(d.s.probe.token()), bytes: d.pace.bytes()}
	for {
		batch := d.lanes.take(limit, now, horizon)
		if len(batch) == 0 {
			return nil
		}
		it := batch[0]
		if it.group.theirs {
			if a := d.s.clients.admit(it, now); a.refused {
				return &flight{items: batch, refused: true}
			} else if a.until.After(now) {
				d.lanes.release(batch, now, horizon)
				d.lanes.hold(it.Site, a.until, now, horizon)
				continue
			}
		}
		switch {
		case len(batch) > 1 || !d.suspects.suspected(it):
			return &flight{items: batch}
		case d.suspects.proven(it, now):
			return &flight{items: batch, proven: true}
		case d.inFlight == 0 && d.lanes.oldest() == nil:
			// Nobody else can show whether Matomo works.
			others := d.lanes.bystanders(d.lanes.bySite[it.Site], horizon)
			return &flight{items: append(batch, others...), trial: true}
		}
		// Another site will show it.
		d.lanes.release(batch, now, horizon)
		d.lanes.hold(it.Site, now.Add(suspectDelay), now, horizon)
	}
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
	if f.shrink {
		d.pace.shrink(len(f.items))
	}
	if f.good {
		d.suspects.passed(f, now)
		d.recall(now, horizon)
		d.s.brk.delivered()
		if !f.shrink && len(f.suspects) == 0 {
			d.pace.grow()
		}
	}
	outage := f.outage
	for _, it := range f.suspects {
		due, all := d.suspects.add(it, d.launches, now)
		d.lanes.hold(it.Site, due, now, horizon)
		outage = outage || all
	}
	if outage {
		d.s.brk.open(ReasonDown, "Matomo fails on every hit, though its canary passes", 0)
	}
	return nil
}

// recall shortens the wait of suspects, now that something went through: while
// that is fresh a second failure is their own.
func (d *dispatcher) recall(now time.Time, horizon int64) {
	for it, failed := range d.suspects.at {
		if ln := d.lanes.bySite[it.Site]; ln != nil && !ln.busy && ln.items[0] == it && d.suspects.proven(it, now) {
			d.lanes.hold(it.Site, failed.Add(suspectDelay), now, horizon)
		}
	}
}

// resolve takes back a decision about hits in doubt.
func (d *dispatcher) resolve(r resolution, now time.Time) error {
	d.flying--
	if r.err != nil {
		return r.err
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
		inFlight: d.inFlight, lanes: d.pace.lanes(), batch: d.pace.hits(d.s.probe.token()),
		uncertain: d.lanes.doubt, leased: d.lanes.hits, heldLanes: d.lanes.held.Len(),
		undecided: len(d.held), suspects: len(d.suspects.failed),
	})
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// A window bounds what is leased and not settled. Methods may be called from any
// goroutine.
type window struct {
	maxHits, maxBytes int

	mu          sync.Mutex
	hits, bytes int
	average     int // bytes of a hit, about
	freed       chan struct{}
}

func newWindow(hits, bytes int) *window {
	return &window{maxHits: hits, maxBytes: bytes, average: 1 << 10, freed: make(chan struct{}, 1)}
}

// wait blocks until there is room, and says for how many hits, at most most.
func (w *window) wait(ctx context.Context, most int) (int, bool) {
	for {
		w.mu.Lock()
		room := min(most, w.maxHits-w.hits)
		if left := w.maxBytes - w.bytes; left > 0 {
			room = min(room, max(1, left/w.average))
		} else {
			room = 0
		}
		w.mu.Unlock()
		if room > 0 {
			return room, true
		}
		select {
		case <-ctx.Done():
			return 0, false
		case <-w.freed:
		}
	}
}

func (w *window) take(hits, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hits += hits
	w.bytes += bytes
	if hits > 0 {
		w.average = max(1, (7*w.average+bytes/hits)/8)
	}
}

func (w *window) give(hits, bytes int) {
	w.mu.Lock()
	w.hits -= hits
	w.bytes -= bytes
	w.mu.Unlock()
	select {
	case w.freed <- struct{}{}:
	default:
	}
}
