package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"sluice/archivegate"
	"sluice/internal/config"
	"sluice/queue"
	"sluice/sink"
)

// How often the list of sites is read: the Reporting API makes it with more effort.
const (
	listEveryDatabase = time.Minute
	listEveryAPI      = 5 * time.Minute
)

// buildGate makes the gate out of what the other rooms know.
func (e *edge) buildGate() error {
	s := e.settings
	every := listEveryAPI
	if e.secrets.MySQLDSN != "" {
		every = listEveryDatabase
	}
	var err error
	e.gate, err = archivegate.New(archivegate.Config{
		Edge: s.EdgeID, ListEvery: every, Skew: s.Gate.Skew, MaxHold: s.Gate.MaxHold,
		AllOnly: s.Gate.Scope == "all-only", DeadBlock: s.Gate.DeadLetters == "block",
		Invalidate: s.Gate.Invalidate == "on", InvalidateAge: s.Gate.InvalidateAge,
	}, archivegate.Parts{
		Ledger: ledgerRoom{e.queue}, Arrivals: e.proxy, Drain: gateDrain(e.sink, e.queue, s.Gate), Lister: siteLister{e.sink},
		Invalidator: forgetter{e.sink}, Keeper: keeper{s.DataDir}, Log: e.log.With("part", "gate"), Metrics: e.set,
	})
	return err
}

// A ledgerRoom shows a queue's counters to the gate, in its words.
type ledgerRoom struct{ *queue.Queue }

// Sums is part of [archivegate.Ledger].
func (r ledgerRoom) Sums(site, from, before int64) (within, all archivegate.Tally, exact bool) {
	w, a, exact := r.Queue.Sums(site, from, before)
	return tallyOf(w), tallyOf(a), exact
}

func tallyOf(c queue.Counter) archivegate.Tally {
	return archivegate.Tally{Accepted: c.Accepted, Delivered: c.Delivered, Invalid: c.Invalid, Dead: c.Dead}
}

// Unsettled is part of [archivegate.Ledger].
func (r ledgerRoom) Unsettled() []archivegate.Slot {
	counters := r.Queue.Unsettled()
	out := make([]archivegate.Slot, len(counters))
	for i, c := range counters {
		out[i] = archivegate.Slot{Site: c.Site, Quarter: c.Quarter, Pending: tallyOf(c).Pending()}
	}
	return out
}

// Incoming is part of [archivegate.Ledger].
func (r ledgerRoom) Incoming() (since time.Time, ok bool) {
	for _, i := range r.Imports() {
		if i.State == queue.ImportOpen && (!ok || i.From.Before(since)) {
			since, ok = i.From, true
		}
	}
	return since, ok
}

// maxShownSlots bounds what a recount lists.
const maxShownSlots = 100

// Recount is part of [archivegate.Ledger].
func (r ledgerRoom) Recount(ctx context.Context) (archivegate.Recount, error) {
	got, err := r.Queue.Recount(ctx)
	if err != nil {
		return archivegate.Recount{}, err
	}
	out := archivegate.Recount{
		V: 1, OK: len(got.Slots) == 0 && got.Unreadable == 0, Hits: got.Hits, Unreadable: got.Unreadable,
		Differing: len(got.Slots), Slots: []archivegate.RecountSlot{},
	}
	for _, s := range got.Slots[:min(maxShownSlots, len(got.Slots))] {
		out.Slots = append(out.Slots, archivegate.RecountSlot(s))
	}
	return out, nil
}

// gateDrain tells the gate how Matomo is fed.
func gateDrain(s *sink.Sink, q *queue.Queue, settings config.GateSettings) func() archivegate.Drain {
	return func() archivegate.Drain {
		status := s.Status()
		d := archivegate.Drain{Uncertain: q.Stats().Uncertain, PerSecond: status.Rate}
		d.Uncertain = max(d.Uncertain, int64(status.Uncertain))
		if status.Clock != nil {
			d.Clock = new(seconds(*status.Clock))
		}
		if lag, at, configured := s.ReaderLag(); configured {
			d.Reader = &archivegate.Reader{Lag: lag, At: at}
		}
		if settings.QueuedTracking != "ignore" {
			d.Behind = behind(s.QueuedTracking())
		}
		return d
	}
}

// behind says what QueuedTracking holds back; nil = nothing.
func behind(q sink.QueuedTracking) *archivegate.Behind {
	switch {
	case q.Pending != nil && *q.Pending == 0, q.Known && !q.On:
		return nil
	case q.Pending != nil:
		return &archivegate.Behind{Pending: q.Pending, Text: fmt.Sprintf("Matomo's plugin QueuedTracking holds about %d request sets", *q.Pending)}
	case q.On:
		return &archivegate.Behind{Text: "Matomo's plugin QueuedTracking is on and its queue cannot be seen; deactivate it, or see gate.queued-tracking"}
	}
	return &archivegate.Behind{Text: "whether Matomo's plugin QueuedTracking is on is not known yet"}
}

// A siteLister gives the sink's list of sites to the gate.
type siteLister struct{ *sink.Sink }

// Sites is part of [archivegate.Lister].
func (l siteLister) Sites(ctx context.Context) ([]archivegate.Site, error) {
	sites, err := l.ListSites(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]archivegate.Site, len(sites))
	for i, s := range sites {
		out[i] = archivegate.Site(s)
	}
	return out, nil
}

// A forgetter hands the gate's orders to Matomo.
type forgetter struct{ *sink.Sink }

// Invalidate is part of [archivegate.Invalidator].
func (f forgetter) Invalidate(ctx context.Context, site int64, d archivegate.Date) error {
	return f.ForgetReports(ctx, site, d.String())
}

// checkSites says whether the gate for archiving will know the sites and their days.
func checkSites(ctx context.Context, s *sink.Sink) finding {
	f := finding{Name: "sites", Level: "ok"}
	sites, err := s.ListSites(ctx)
	if err != nil {
		f.Level, f.Text = "warn", "no day will be complete for archiving: "+err.Error()
		return f
	}
	zones := map[string]bool{}
	var unknown []string
	for _, one := range sites {
		if _, err := archivegate.ParseZone(one.Zone); err != nil && !zones[one.Zone] {
			unknown = append(unknown, fmt.Sprintf("%q of site %d", one.Zone, one.ID))
		}
		zones[one.Zone] = true
	}
	f.Text = fmt.Sprintf("%s in %d timezones", number(int64(len(sites))), len(zones))
	if len(unknown) > 0 {
		f.Level, f.Text = "warn", f.Text+"; days of these are never complete: timezone "+strings.Join(unknown[:min(3, len(unknown))], ", ")
		f.Try = "another timezone in the site's settings in Matomo"
	}
	return f
}
