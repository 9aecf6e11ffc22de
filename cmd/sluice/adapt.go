package main

import (
	"context"
	"errors"
	"iter"

	"sluice/internal/admin"
	"sluice/internal/hit"
	"sluice/queue"
	"sluice/sink"
)

// A queueRoom shows a queue to the private listener, in its words.
type queueRoom struct{ *queue.Queue }

// Stats is part of [admin.Queue].
func (r queueRoom) Stats() admin.Stats {
	s := r.Queue.Stats()
	return admin.Stats{
		Accepted: s.Accepted, Delivered: s.Delivered, Invalid: s.Invalid, Dead: s.Dead, Pending: s.Pending,
		Uncertain: s.Uncertain, Difference: s.Difference, PendingBytes: s.PendingBytes, OldestReceivedAt: s.OldestReceivedAt,
		DiskBytes: s.DiskBytes, FreeBytes: s.FreeBytes, Reserve: s.Reserve,
		DeadKept: s.DeadKept, DeadExpired: s.DeadExpired, DeadRequeued: s.DeadRequeued,
		DamagedBlocks: s.DamagedBlocks, MissingBlocks: s.MissingBlocks, Blocks: s.Blocks, Shelves: s.Shelves,
		SyncMean: s.SyncMean, Generation: s.Generation,
	}
}

// Counters is part of [admin.Queue].
func (r queueRoom) Counters() []admin.Counter {
	counters := r.Queue.Counters()
	out := make([]admin.Counter, len(counters))
	for i, c := range counters {
		out[i] = admin.Counter(c)
	}
	return out
}

// Verify is part of [admin.Queue].
func (r queueRoom) Verify(ctx context.Context) (admin.Report, error) {
	report, err := r.Queue.Verify(ctx)
	if err != nil {
		return admin.Report{}, err
	}
	return admin.Report(*report), nil
}

// Peek is part of [admin.Reader].
func (r queueRoom) Peek(ctx context.Context, f admin.PeekFilter) iter.Seq2[hit.Pending, error] {
	return r.Queue.Peek(ctx, queue.PeekFilter(f))
}

// Find is part of [admin.Reader].
func (r queueRoom) Find(ctx context.Context, id hit.ID) (hit.Pending, error) {
	p, err := r.Queue.Find(ctx, id)
	if errors.Is(err, queue.ErrNotFound) {
		return p, admin.ErrNotFound
	}
	return p, err
}

// Dead is part of [admin.DeadLetters].
func (r queueRoom) Dead(ctx context.Context, f admin.DeadFilter) iter.Seq2[*hit.DeadLetter, error] {
	return r.Queue.Dead(ctx, queue.DeadFilter(f))
}

// Requeue is part of [admin.DeadLetters].
func (r queueRoom) Requeue(ctx context.Context, f admin.DeadFilter) (int, error) {
	return r.Queue.Requeue(ctx, queue.DeadFilter(f))
}

// A drainRoom shows a sink to the private listener, in its words.
type drainRoom struct{ *sink.Sink }

// Status is part of [admin.Drain].
func (r drainRoom) Status() admin.DrainStatus {
	s := r.Sink.Status()
	out := admin.DrainStatus{
		State: string(s.State), Reason: string(s.Reason), Detail: s.Detail, Ends: s.Ends, Since: &s.Since, NextTry: s.NextTry,
		Token: s.Token, Lanes: s.Lanes, MaxLanes: s.MaxLanes, Batch: s.Batch, MaxBatch: s.MaxBatch, P50: s.P50, P95: s.P95,
		Errors: s.Errors, Rate: s.Rate, ETA: s.ETA, Leased: s.Leased, Uncertain: s.Uncertain, Undecided: s.Undecided, Doubt: s.Doubt,
		HeldLanes: s.HeldLanes, Suspects: s.Suspects, Clock: s.Clock, ReaderLag: s.ReaderLag,
	}
	if p := s.Pause; p != nil {
		out.Pause = &admin.DrainPause{Who: p.Who, Why: p.Why, Since: p.Since.UTC(), Until: p.Until.UTC()}
	}
	if h := s.LastHold; h != nil {
		out.LastHold = &admin.DrainHold{Reason: string(h.Reason), Detail: h.Detail, Since: h.Since, Seconds: h.Duration}
	}
	for _, p := range s.MySQL {
		out.MySQL = append(out.MySQL, admin.Probe{Name: p.Name, State: string(p.State), Detail: p.Detail})
	}
	return out
}
