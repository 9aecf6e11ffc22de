package sink

import (
	"context"
	"fmt"
	"slices"
	"time"

	"sluice/internal/hit"
)

// A flight is a batch on its way, from Run to the goroutine that delivers it and
// back. The goroutine owns it and its items meanwhile.
type flight struct {
	items  []*item
	launch uint64 // flights are numbered in the order in which they left
	// proven: since the only hit of this flight failed alone, another hit went
	// through, so a second failure is the hit's own.
	proven bool
	// trial: the first hit has failed alone before, and the others are bystanders
	// that show whether Matomo works.
	trial bool
	// refused: Matomo would not take the client's token, so nothing is sent.
	refused bool
	began   time.Time // when it left
	full    bool      // no further hit had found room

	good     bool     // a hit was delivered
	shrink   bool     // smaller batches would have done better
	retried  bool     // a failed batch was sent once more, unchanged
	suspects []*item  // failed alone, and are not proven
	outage   bool     // bystanders failed too
	doubts   []*doubt // outcomes that are not known
	err      error    // the source failed: the process cannot go on
}

// deliver sends a batch until every hit of it is settled, in doubt, or has to
// wait. Parts of a batch are sent one after the other and in order, so that no
// hit overtakes another of its site.
func (s *Sink) deliver(ctx, stop context.Context, f *flight) {
	todo := f.items
	if todo[0].malformed {
		f.err = s.settle(0, bury(todo[:1], BuriedMalformed, nil))
		return
	}
	if f.refused {
		f.err = s.settle(0, refuse(todo))
		return
	}
	if s.recon != nil {
		// Doubts keep their claims until they are resolved.
		defer func() {
			s.recon.air.leave(slices.DeleteFunc(slices.Clone(f.items), func(it *item) bool { return it.doubt }))
		}()
		if todo = s.recon.air.enter(f, todo); len(todo) == 0 {
			sleep(stop, s.cfg.waits.airPatience)
			return
		}
	}
	if f.trial {
		s.try(ctx, f, todo)
		return
	}
	plan := []int{len(todo)} // sizes of the parts of todo
	retried := false
	for len(plan) > 0 {
		part := todo[:plan[0]]
		batch, a, v, err := s.attempt(ctx, part)
		if err != nil {
			f.err = err
			return
		}
		switch v.kind {
		case delivered:
			if !s.finish(ctx, f, batch, part, v) {
				return
			}
			todo, plan = todo[plan[0]:], plan[1:]
		case split, tooLarge:
			if v.silent && s.recon != nil {
				s.skipped(ctx, f, batch, part, v)
				return
			}
			f.shrink = f.shrink || !v.pinned
			if !s.divisible(ctx, f, batch, part, v) {
				return
			}
			switch {
			case len(part) == 1 && f.proven && s.mayBury(ctx):
				f.err = s.buryPoison(part[0], v, a)
				return
			case len(part) == 1:
				f.suspects = append(f.suspects, part[0])
				return
			case v.pinned && !retried:
				retried, f.retried = true, true // a deadlock is gone when it is tried again
			default:
				plan = append(cut(len(part), v), plan[1:]...)
			}
		default:
			s.giveUp(ctx, f, batch, part, a, v)
			return
		}
		if len(plan) > 0 && (stop.Err() != nil || !s.brk.sending()) {
			return
		}
	}
}

// try sends a suspect, and when that fails bystanders until one goes through, and
// then everything that failed once more. The requests follow each other at once,
// so that nothing but a hit itself explains its two failures around a success.
// Hits can only change places when Matomo recovers in the middle of this.
func (s *Sink) try(ctx context.Context, f *flight, todo []*item) {
	var failed []*item
	proven := false
	// one sends a hit alone; it reports false when the flight ends here.
	one := func(it *item) bool {
		batch, a, v, err := s.attempt(ctx, []*item{it})
		if err != nil {
			f.err = err
			return false
		}
		switch v.kind {
		case delivered:
			return s.finish(ctx, f, batch, []*item{it}, v)
		case split, tooLarge:
			if v.silent && s.recon != nil {
				s.skipped(ctx, f, batch, []*item{it}, v)
				return false
			}
			if !s.divisible(ctx, f, batch, []*item{it}, v) {
				return false
			}
			if proven && s.mayBury(ctx) {
				f.err = s.buryPoison(it, v, a)
				return f.err == nil
			}
			failed = append(failed, it)
			return true
		}
		s.giveUp(ctx, f, batch, []*item{it}, a, v)
		return false
	}
	for _, it := range todo {
		if !one(it) {
			return
		}
		if proven = f.good; proven {
			break
		}
	}
	if !proven {
		f.suspects, f.outage = failed[:min(1, len(failed))], len(failed) > 1
		return
	}
	again := failed
	failed = nil
	for _, it := range again {
		if !one(it) {
			return
		}
	}
	f.suspects = failed[:min(1, len(failed))] // not to be buried yet
}

func (s *Sink) buryPoison(it *item, v verdict, a *answer) error {
	s.log.Warn("a hit is buried: it fails alone while others go through", "hit", it.ID, "site", it.Site, "reason", v.buried, "status", a.status)
	return s.settle(0, bury([]*item{it}, v.buried, a))
}

// cut says into which parts a failed batch of n > 1 hits is divided: what
// Matomo had come through, the hit where it stopped, and the rest; or halves when
// it does not say where it stopped.
func cut(n int, v verdict) []int {
	if !v.pinned || v.from >= n {
		return []int{n / 2, n - n/2}
	}
	parts := []int{v.from, 1, n - v.from - 1}
	return slices.DeleteFunc(parts, func(size int) bool { return size == 0 })
}

// attempt journals hits, sends them once, and judges the answer. It returns an
// error only when the source failed.
func (s *Sink) attempt(ctx context.Context, part []*item) (uint64, *answer, verdict, error) {
	ids := make([]hit.ID, len(part))
	for i, it := range part {
		ids[i] = it.ID
	}
	var memo []byte
	if s.recon != nil {
		memo = s.recon.baseline(ctx, part)
	}
	batch, err := s.src.Journal(ids, memo)
	if err != nil {
		return 0, nil, verdict{}, fmt.Errorf("journal a batch: %w", err)
	}
	g := part[0].group
	token := s.cfg.Token
	visitor := ""
	if g.theirs {
		// Matomo books a token that it does not know on the address that it sees, and
		// locks that address out after twenty: it must not be ours. It answers a
		// locked-out address with an error where a request has a token for all of it, and
		// as it would answer the visitor where only the hit has one.
		token, visitor = g.token, part[0].Environment.ClientIP
		if len(part) == 1 && !s.cfg.BulkRequiresAuth {
			token = ""
		}
	}
	a := s.client.bulk(ctx, appendEnvelope(room(part, len(token)), token, part), g, visitor)
	v := judge(a, len(part), g.theirs)
	s.ins.batch(v.kind, len(part), a.took)
	s.load.note(v.kind, a.took)
	s.log.Debug("batch answered", "verdict", v.kind.String(), "hits", len(part), "batch", batch, "status", a.status, "took", a.took, "err", a.err)
	if g.theirs {
		s.clients.learn(part, v)
	} else {
		s.strained(v.kind, len(part), a.took)
	}
	return batch, a, v, nil
}

// finish settles a delivered batch. It reports whether the flight may go on.
func (s *Sink) finish(ctx context.Context, f *flight, batch uint64, part []*item, v verdict) bool {
	f.good = f.good || len(v.invalid) < len(part)
	if !part[0].group.theirs {
		s.noteToken(ctx, v)
	}
	refused := v.invalid
	trust := true
	if !part[0].group.theirs && 2*len(refused) > len(part) {
		// Most hits being invalid rather means a wrong or empty Matomo than bad
		// hits, and invalid hits are not kept.
		trust = s.canaryPasses(ctx)
	}
	settlements := make([]hit.Settlement, 0, len(part))
	for i, it := range part {
		as := hit.Delivered
		if len(refused) > 0 && refused[0] == i {
			refused = refused[1:]
			if !trust {
				continue
			}
			as = hit.Invalid
		}
		it.settled, it.as = true, as
		settlements = append(settlements, hit.Settlement{ID: it.ID, As: as})
	}
	if f.err = s.settle(batch, settlements); f.err != nil {
		return false
	}
	if s.recon != nil {
		s.recon.delivered(part)
	}
	s.rate.add(time.Now(), len(settlements))
	s.watched.answered()
	s.sites.delivered(part)
	return trust
}

// giveUp ends a flight whose hits cannot be delivered now.
func (s *Sink) giveUp(ctx context.Context, f *flight, batch uint64, part []*item, a *answer, v verdict) {
	switch v.kind {
	case unknown:
		due := a.began.Add(s.cfg.doubtWait())
		if v.over {
			due = time.Now()
		}
		f.doubts = append(f.doubts, s.newDoubt(batch, part, due))
		s.log.Warn("outcome of a batch is unknown; its hits wait until the request can no longer be running", "hits", len(part), "batch", batch, "until", due, "why", v.detail)
	case partial:
		f.shrink, f.good = true, true
		var known []hit.Settlement
		var open []*item
		refused := v.invalid
		for i, it := range part {
			if len(refused) > 0 && refused[0] == i {
				refused = refused[1:]
				it.settled, it.as = true, hit.Invalid
				known = append(known, hit.Settlement{ID: it.ID, As: hit.Invalid})
				continue
			}
			open = append(open, it)
		}
		if len(known) > 0 {
			// The journal's entry stays for the others, which the process must find
			// uncertain if it ends now.
			if f.err = s.settle(0, known); f.err != nil {
				return
			}
		}
		// Matomo has answered, so nothing is running that one would have to wait for.
		d := s.newDoubt(batch, open, time.Now())
		d.skips = v.skips
		f.doubts = append(f.doubts, d)
		s.log.Warn("Matomo has taken a batch in part and does not say which hits", "hits", len(part), "in_doubt", len(open), "batch", batch, "why", v.detail)
		return
	case refusedToken:
		if !part[0].group.theirs && len(part) == 1 && s.acceptedFor(ctx, part[0].Site) {
			part[0].settled, part[0].as = true, hit.Invalid
			f.err = s.settle(batch, []hit.Settlement{{ID: part[0].ID, As: hit.Invalid}})
			return
		}
		f.err = s.settle(batch, nil)
	default:
		f.err = s.settle(batch, nil)
	}
	if ctx.Err() == nil {
		s.brk.open(v.reason, v.detail, v.wait)
	}
}

// skipped takes hits of which Matomo counted none. It may be paused, which the
// canary says; or it waited for a lock too long, and may have inserted rows first.
func (s *Sink) skipped(ctx context.Context, f *flight, batch uint64, part []*item, v verdict) {
	d := s.newDoubt(batch, part, time.Now())
	d.skips = len(part)
	f.doubts = append(f.doubts, d)
	f.shrink = true
	s.log.Warn("Matomo has taken none of the hits of a batch; MySQL is asked whether it left parts of them", "hits", len(part), "batch", batch, "why", v.detail)
	s.blameHits(ctx, v)
}

// divisible reports whether a failed batch is to be divided: the hits may be to blame,
// and none of them is recorded. Otherwise the flight ends here.
func (s *Sink) divisible(ctx context.Context, f *flight, batch uint64, part []*item, v verdict) bool {
	blame := s.blameHits(ctx, v)
	if blame && s.torn(ctx, f, batch, part, v) {
		return false
	}
	f.err = s.settle(batch, nil)
	return blame && f.err == nil
}

// blameHits asks the canary whether a failure is the hits' fault. Otherwise it
// has opened the breaker.
func (s *Sink) blameHits(ctx context.Context, v verdict) bool {
	if ctx.Err() != nil {
		return false
	}
	c := s.canary(ctx)
	if c.ok {
		return true
	}
	reason, detail := c.reason, c.detail
	if c.reason == ReasonDown && v.reason != ReasonNone && v.reason != ReasonMaintenance {
		reason, detail = v.reason, v.detail
	}
	s.brk.open(reason, detail, max(c.wait, v.wait))
	return false
}

func (s *Sink) settle(batch uint64, settlements []hit.Settlement) error {
	if batch == 0 && len(settlements) == 0 {
		return nil
	}
	if err := s.src.Settle(batch, settlements); err != nil {
		return fmt.Errorf("settle a batch: %w", err)
	}
	return nil
}

// refuse marks hits as invalid and gives their settlements.
func refuse(items []*item) []hit.Settlement {
	out := make([]hit.Settlement, len(items))
	for i, it := range items {
		it.settled, it.as = true, hit.Invalid
		out[i] = hit.Settlement{ID: it.ID, As: hit.Invalid}
	}
	return out
}

// bury marks hits as dead and gives their settlements.
func bury(items []*item, reason string, a *answer) []hit.Settlement {
	out := make([]hit.Settlement, len(items))
	for i, it := range items {
		it.settled, it.as = true, hit.Dead
		out[i] = hit.Settlement{ID: it.ID, As: hit.Dead, Reason: reason}
		if a != nil {
			out[i].Status = a.status
			out[i].Answer = slices.Clone(a.body[:min(len(a.body), hit.MaxAnswer)])
		}
	}
	return out
}
