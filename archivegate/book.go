package archivegate

import (
	"encoding/json"
	"log/slog"
	"maps"
	"sync"
	"time"
)

const (
	// bookDays is how long it is remembered that a day was complete. The ledger counts
	// a week by quarters of an hour.
	bookDays = 8
	// bookEvery is the least time between two writings of the book.
	bookEvery = 10 * time.Second
)

// A mark is what is remembered of a site's day.
type mark struct {
	Epoch int       `json:"epoch"`           // 0 = it was never complete
	Since time.Time `json:"since,omitzero"`  // when it became complete; zero = it is not
	Late  bool      `json:"late,omitempty"`  // it was reopened and is not complete again
	Force bool      `json:"force,omitempty"` // it was let through
	// Of all hits before the day's end, when the day was complete.
	Accepted  int64 `json:"accepted"`
	Delivered int64 `json:"delivered"`
	// Inexact: later hits are among them, whose counters the ledger had let go.
	Inexact bool `json:"inexact,omitempty"`

	// drained is when as many hits as drainedOf were first seen to be in Matomo, with
	// nothing pending; of this process.
	drained   time.Time
	drainedOf int64
}

// A book remembers which days were complete, so that what comes later shows. Methods
// may be called from any goroutine.
type book struct {
	keep Keeper
	log  *slog.Logger

	mu    sync.Mutex // guards all below
	marks map[int64]map[Date]*mark
	dirty bool
	saved time.Time
}

// bookName is the file of the book.
const bookName = "gate.json"

type keptBook struct {
	V     int                      `json:"v"`
	Sites map[int64]map[Date]*mark `json:"sites"`
}

func newBook(keep Keeper, log *slog.Logger) *book {
	b := &book{keep: keep, log: log, marks: map[int64]map[Date]*mark{}}
	var kept keptBook
	text, err := keep.Load(bookName)
	if err == nil && text != nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		log.Warn("which days were complete cannot be read; their reopening will not show", "err", err)
	} else if kept.Sites != nil {
		b.marks = kept.Sites
	}
	return b
}

func (b *book) find(site int64, d Date) *mark { return b.marks[site][d] }

func (b *book) mark(site int64, d Date) *mark {
	days := b.marks[site]
	if days == nil {
		days = map[Date]*mark{}
		b.marks[site] = days
	}
	m := days[d]
	if m == nil {
		m = &mark{}
		days[d] = m
	}
	return m
}

// A change is what a look at a day found out about its epoch.
type change struct {
	epoch    int
	since    time.Time // zero = not complete
	late     bool      // it was complete before and is not now
	reopened bool      // just now
	closed   bool      // just now, after it had been reopened
}

// note brings a mark up to date. all is of the hits before the day's end, and exact
// whether it is of no others; complete: nothing keeps the day from being so.
func (b *book) note(site int64, d Date, all Tally, exact, complete bool, now time.Time) change {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.find(site, d)
	if m == nil && !complete {
		return change{}
	}
	if m == nil {
		m = b.mark(site, d)
	}
	c := change{}
	came := all.Pending() > 0 || exact && !m.Inexact && (all.Accepted > m.Accepted || all.Delivered != m.Delivered)
	if !m.Since.IsZero() && came {
		m.Epoch++
		m.Since, m.Late, c.reopened = time.Time{}, true, true
		b.dirty = true
	}
	if complete && m.Since.IsZero() {
		c.closed = m.Late
		m.Epoch = max(m.Epoch, 1)
		m.Since, m.Late, m.Force = now, false, false
		b.dirty = true
	}
	if complete && (m.Accepted != all.Accepted || m.Delivered != all.Delivered || m.Inexact == exact) {
		m.Accepted, m.Delivered, m.Inexact = all.Accepted, all.Delivered, !exact
		b.dirty = true
	}
	c.epoch, c.since, c.late = m.Epoch, m.Since, m.Late
	return c
}

// drained gives since when all hits before a day's end are known to be in Matomo. It is
// zero for a day that is known to be complete: what a replica has shown it keeps.
func (b *book) drained(site int64, d Date, all Tally, now time.Time) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.mark(site, d)
	if !m.Since.IsZero() && m.Delivered == all.Delivered {
		return time.Time{}
	}
	if m.drained.IsZero() || m.drainedOf != all.Delivered {
		m.drained, m.drainedOf = now, all.Delivered
	}
	return m.drained
}

// suppose notes that a day that nobody remembers must have been complete.
func (b *book) suppose(site int64, d Date) (fresh bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.find(site, d) != nil {
		return false
	}
	m := b.mark(site, d)
	m.Epoch, m.Late, b.dirty = 2, true, true
	return true
}

// force notes that a day was let through, and whether that is new.
func (b *book) force(site int64, d Date) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.mark(site, d)
	if m.Force {
		return false
	}
	m.Force, b.dirty = true, true
	return true
}

// daysOf gives the days of a site before another one that are remembered.
func (b *book) daysOf(site int64, before Date) []Date {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Date
	for d := range b.marks[site] {
		if d.Before(before) {
			out = append(out, d)
		}
	}
	return out
}

// prune forgets old days, but for those that are open again.
func (b *book) prune(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	oldest := dateOf(now.UTC()).Add(-bookDays)
	for site, days := range b.marks {
		maps.DeleteFunc(days, func(d Date, m *mark) bool {
			gone := d.Before(oldest) && !m.Late
			b.dirty = b.dirty || gone
			return gone
		})
		if len(days) == 0 {
			delete(b.marks, site)
		}
	}
}

// saveSoon writes the book if it has changed, not too often.
func (b *book) saveSoon(now time.Time) {
	b.mu.Lock()
	due := b.dirty && now.Sub(b.saved).Abs() >= bookEvery
	if due {
		b.saved = now
	}
	b.mu.Unlock()
	if due {
		b.save()
	}
}

// save writes the book if it has changed. What is lost with it is that a day was
// complete, never that it is not.
func (b *book) save() {
	b.mu.Lock()
	if !b.dirty {
		b.mu.Unlock()
		return
	}
	text, err := json.Marshal(keptBook{V: 1, Sites: b.marks})
	b.dirty = false
	b.mu.Unlock()
	if err == nil {
		err = b.keep.Save(bookName, text)
	}
	if err != nil {
		b.log.Warn("which days were complete cannot be kept", "err", err)
		b.mu.Lock()
		b.dirty = true
		b.mu.Unlock()
	}
}
