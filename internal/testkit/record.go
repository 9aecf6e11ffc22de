package testkit

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// Outcome is what Matomo made of one hit.
type Outcome uint8

const (
	// Recorded hits have rows. Pings count as recorded.
	Recorded Outcome = iota
	// Excluded hits count as tracked and leave no row: rec=0, bots, prefetches,
	// opt-outs, and hits without parameters.
	Excluded
	// Invalid hits are refused for good: unknown site, privilege without a token,
	// bad cid, and the like.
	Invalid
)

// String gives the constant's name in lower case.
func (o Outcome) String() string {
	switch o {
	case Recorded:
		return "recorded"
	case Excluded:
		return "excluded"
	case Invalid:
		return "invalid"
	}
	return fmt.Sprintf("outcome %d", uint8(o))
}

// A Hit is one hit as Matomo understood it.
type Hit struct {
	// From is the HTTP request that brought it; its Answer and Status may still
	// change, so they are read through [Matomo.Requests].
	From    *Request
	Index   int    // its place in the bulk as Matomo counts, from 0
	Mark    string // value of the mark parameter, or ""
	Outcome Outcome
	Site    int64

	// What direct tracking would have stored, headers and parameters taken
	// together. Time is Unix seconds.
	IP        string
	Time      int64
	URL       string
	UserAgent string
	Language  string
	Visitor   string // 16 hexadecimal digits, or "" when the hit names none

	Token   string // the token that was looked at: the bulk's, else the hit's
	Trusted bool   // and it is good for the hit's site
	Params  Params // all parameters
	Raw     string // the query, or the JSON object, as it was sent
}

// A Request is one tracking request as it arrived.
type Request struct {
	Number  uint64 // from 1, by arrival
	At      time.Time
	Method  string
	Query   string // of the URL, raw
	Header  http.Header
	Bytes   int // of the body
	Bulk    bool
	Token   string // the bulk's, or the single hit's
	Hits    int    // as Matomo counts them
	Dropped int    // bulk strings without a query
	Probe   bool   // it had nothing to record: a canary, or no parameters
	// Answer is the name of the answer given, "" while it is being worked on.
	Answer string
	Status int // 0 when the client got no answer
}

// Counts are the fake's sums so far.
type Counts struct {
	Requests uint64 // tracking requests of every kind
	Received int64  // hits in them
	Recorded int64  // hits committed as recorded
	Excluded int64
	Invalid  int64
	Commits  int64 // transactions committed
	// Duplicates is how many more times hits with a mark were recorded than there
	// are marks.
	Duplicates int64
}

// records is what was committed. It belongs to the Matomo and is guarded by its
// mutex.
type records struct {
	counts   Counts
	hits     []*Hit
	marks    []string       // of recorded hits, in order of recording
	commits  map[string]int // by mark
	orders   map[string]bool
	requests []*Request
}

func newRecords() records {
	return records{commits: make(map[string]int), orders: make(map[string]bool)}
}

// Hits returns every hit that was committed, in order of commit, excluded and
// invalid ones too. A fake with CountOnly has none.
func (m *Matomo) Hits() []*Hit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.records.hits)
}

// Recorded returns the hits that have rows, in order of commit.
func (m *Matomo) Recorded() []*Hit {
	return slices.DeleteFunc(m.Hits(), func(h *Hit) bool { return h.Outcome != Recorded })
}

// Marks returns the marks of recorded hits in order of commit, repetitions
// included. Hits without a mark are not in it.
func (m *Matomo) Marks() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.records.marks)
}

// Commits says how many times the hit with this mark was recorded.
func (m *Matomo) Commits(mark string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records.commits[mark]
}

// Requests returns copies of all tracking requests by arrival.
func (m *Matomo) Requests() []Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]Request, len(m.records.requests))
	for i, r := range m.records.requests {
		list[i] = *r
	}
	return list
}

// Counts returns the sums so far.
func (m *Matomo) Counts() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.records.counts
	c.Requests, c.Received, c.Recorded = m.requests.Load(), m.received.Load(), m.recorded.Load()
	c.Duplicates = int64(len(m.records.marks) - len(m.records.commits))
	return c
}

// Reset forgets everything recorded. Scripts and states stay.
func (m *Matomo) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = newRecords()
	m.forgotten = nil
	m.requests.Store(0)
	m.received.Store(0)
	m.recorded.Store(0)
}

// Wait blocks until the predicate holds for the counts, and returns ctx's error
// when that ends first. The predicate is asked after every request and every
// commit.
func (m *Matomo) Wait(ctx context.Context, until func(Counts) bool) error {
	for {
		m.mu.Lock()
		changed := m.changed
		m.mu.Unlock()
		if until(m.Counts()) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the fake Matomo: %w", ctx.Err())
		}
	}
}

// WaitRecorded blocks until n hits were recorded.
func (m *Matomo) WaitRecorded(ctx context.Context, n int64) error {
	return m.Wait(ctx, func(c Counts) bool { return c.Recorded >= n })
}

// maxComplaints bounds how many single marks CheckOnce names.
const maxComplaints = 10

// CheckOnce reports to tb every mark of want that was not recorded exactly once,
// and every recorded mark that is not wanted.
func (m *Matomo) CheckOnce(tb testing.TB, want []string) {
	tb.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	complaints := 0
	complain := func(mark string, got, want int) {
		if complaints++; complaints <= maxComplaints {
			tb.Errorf("hit %q was recorded %d times, want %d", mark, got, want)
		}
	}
	wanted := make(map[string]bool, len(want))
	for _, mark := range want {
		wanted[mark] = true
		if n := m.records.commits[mark]; n != 1 {
			complain(mark, n, 1)
		}
	}
	var strangers sync.Once
	for mark, n := range m.records.commits {
		if !wanted[mark] {
			strangers.Do(func() { tb.Errorf("hits were recorded that nobody sent") })
			complain(mark, n, 0)
		}
	}
	if complaints > maxComplaints {
		tb.Errorf("and %d more hits not recorded as wanted", complaints-maxComplaints)
	}
}

// arrive keeps a request and returns its number.
func (m *Matomo) arrive(r *Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.Number = m.requests.Add(1)
	m.received.Add(int64(r.Hits))
	m.records.requests = append(m.records.requests, r)
	m.signalLocked()
}

// answered notes how a request ended.
func (m *Matomo) answered(r *Request, answer string, status int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.Answer, r.Status = answer, status
	m.signalLocked()
}

// commit records hits as one transaction.
func (m *Matomo) commit(hits []*Hit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records.counts.Commits++
	m.records.hits = append(m.records.hits, hits...)
	for _, h := range hits {
		switch h.Outcome {
		case Recorded:
			m.recorded.Add(1)
			if h.Mark != "" {
				m.records.marks = append(m.records.marks, h.Mark)
				m.records.commits[h.Mark]++
			}
			if key := h.order(); key != "" {
				m.records.orders[key] = true
			}
		case Excluded:
			m.records.counts.Excluded++
		case Invalid:
			m.records.counts.Invalid++
		}
	}
	m.signalLocked()
}

// commitMarks records hits of which only the marks are known.
func (m *Matomo) commitMarks(hits int, marks []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records.counts.Commits++
	m.recorded.Add(int64(hits))
	m.records.marks = append(m.records.marks, marks...)
	for _, mark := range marks {
		m.records.commits[mark]++
	}
	m.signalLocked()
}

func (m *Matomo) signalLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}
