package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// A memorySource is a Source in memory that checks its contract: every hit is
// settled once, nothing is settled that was not leased, and what is sent was
// journalled before.
type memorySource struct {
	tb testing.TB

	mu      sync.Mutex
	pending []hit.Pending
	all     map[hit.ID]hit.Pending
	rereads int
	watch   func(ids []hit.ID) // of every batch that is about to be sent, when set
	leased  map[hit.ID]bool
	settled map[hit.ID]hit.Settlement
	order   []hit.ID // as settled
	journal map[uint64][]hit.ID
	memos   map[uint64][]byte
	batches uint64
	next    uint64
	more    chan struct{} // closed and replaced when something changed
	fail    error         // of Journal and Settle, when set
}

func newSource(tb testing.TB) *memorySource {
	return &memorySource{tb: tb, all: map[hit.ID]hit.Pending{}, leased: map[hit.ID]bool{}, settled: map[hit.ID]hit.Settlement{}, journal: map[uint64][]hit.ID{}, memos: map[uint64][]byte{}, more: make(chan struct{})}
}

func (m *memorySource) signalLocked() {
	close(m.more)
	m.more = make(chan struct{})
}

// add appends hits and gives them ids.
func (m *memorySource) add(hits ...hit.Pending) []hit.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []hit.ID
	for _, p := range hits {
		m.next++
		p.ID = hit.ID{Generation: 1, Block: m.next}
		if p.Environment == nil {
			p.Environment = &hit.Environment{ClientIP: "203.0.113.9", UserAgent: browser}
		}
		m.pending = append(m.pending, p)
		m.all[p.ID] = p
		ids = append(ids, p.ID)
	}
	m.signalLocked()
	return ids
}

func (m *memorySource) Lease(ctx context.Context, most int) ([]hit.Pending, error) {
	for {
		m.mu.Lock()
		if n := min(most, len(m.pending)); n > 0 {
			out := slices.Clone(m.pending[:n])
			m.pending = m.pending[n:]
			for _, p := range out {
				m.leased[p.ID] = true
			}
			m.mu.Unlock()
			return out, nil
		}
		more := m.more
		m.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *memorySource) Reread(_ context.Context, ids []hit.ID) ([]hit.Pending, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rereads++
	var out []hit.Pending
	for _, id := range ids {
		p, known := m.all[id]
		if _, done := m.settled[id]; !known || done || !m.leased[id] || p.Uncertain != 0 {
			m.tb.Errorf("hit %v is read again: known %v, settled %v, leased %v, uncertain in %d", id, known, done, m.leased[id], p.Uncertain)
			continue
		}
		out = append(out, p)
	}
	return out, nil
}

func (m *memorySource) Journal(ids []hit.ID, memo []byte) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	for _, id := range ids {
		if _, done := m.settled[id]; done || !m.leased[id] {
			m.tb.Errorf("hit %v is journalled: settled before %v, leased %v", id, done, m.leased[id])
		}
	}
	if m.watch != nil {
		m.watch(ids)
	}
	m.batches++
	m.journal[m.batches], m.memos[m.batches] = slices.Clone(ids), slices.Clone(memo)
	return m.batches, nil
}

func (m *memorySource) Memo(batch uint64) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, open := m.journal[batch]; !open {
		return nil
	}
	return slices.Clone(m.memos[batch])
}

// crash gives the source as the next process finds it: what is settled stays so,
// and what is in an open batch comes as uncertain. m must not be used any more.
func (m *memorySource) crash(hits []hit.Pending) *memorySource {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := newSource(m.tb)
	next.settled, next.order, next.journal, next.memos = m.settled, m.order, m.journal, m.memos
	next.batches, next.next = m.batches, m.next
	for _, p := range hits {
		if _, done := m.settled[p.ID]; done {
			continue
		}
		for batch, ids := range m.journal {
			if slices.Contains(ids, p.ID) {
				p.Uncertain = max(p.Uncertain, batch)
			}
		}
		next.pending = append(next.pending, p)
	}
	m.fail = errors.New("the process has crashed")
	return next
}

func (m *memorySource) Settle(batch uint64, list []hit.Settlement) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if batch != 0 {
		ids, open := m.journal[batch]
		if !open {
			m.tb.Errorf("batch %d is settled, but its journal is not open", batch)
		}
		for _, s := range list {
			if !slices.Contains(ids, s.ID) {
				m.tb.Errorf("batch %d settles hit %v, which it does not hold", batch, s.ID)
			}
		}
		delete(m.journal, batch)
	}
	for _, s := range list {
		if _, done := m.settled[s.ID]; done {
			m.tb.Errorf("hit %v is settled twice", s.ID)
		}
		if s.As == hit.Dead && !slices.Contains(BuriedReasons(), s.Reason) {
			m.tb.Errorf("hit %v is buried as %q, which is not in the list", s.ID, s.Reason)
		}
		m.settled[s.ID] = s
		m.order = append(m.order, s.ID)
	}
	m.signalLocked()
	return nil
}

// waitSettled waits until n hits are settled.
func (m *memorySource) waitSettled(ctx context.Context, n int) {
	m.tb.Helper()
	for {
		m.mu.Lock()
		have, more := len(m.settled), m.more
		m.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-more:
		case <-ctx.Done():
			m.tb.Fatalf("%d of %d hits were settled in time", have, n)
		}
	}
}

func (m *memorySource) outcome(id hit.ID) (hit.Settlement, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.settled[id]
	return s, ok
}

func (m *memorySource) count(as hit.Outcome) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.settled {
		if s.As == as {
			n++
		}
	}
	return n
}

func (m *memorySource) openJournals() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.journal)
}

const browser = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36"

// hitOf makes a page view with a mark.
func hitOf(site int64, mark string) hit.Pending {
	return pendingOf(site, fmt.Sprintf("idsite=%d&rec=1&url=http%%3A%%2F%%2Fexample.org%%2F%s&%s=%s", site, mark, testkit.DefaultMark, mark))
}

func pendingOf(site int64, params string) hit.Pending {
	now := time.Now()
	return hit.Pending{ReceivedAt: now.UnixNano(), Hit: hit.Hit{Site: site, At: now.Unix(), Params: []byte(params)}}
}

// running is a sink that runs.
type running struct {
	*Sink
	src    *memorySource
	matomo *testkit.Matomo
	url    string
	cancel context.CancelFunc
	done   chan error
}

// testConfig has short times, for tests on real sockets.
func testConfig() Config {
	return Config{
		Token: testkit.SuperToken, RequestTimeout: 5 * time.Second, ServerLimit: time.Millisecond,
		Grace: 5 * time.Second, ProbeInterval: 100 * time.Millisecond,
		waits: shortWaits(),
	}
}

// start runs a sink against a fake Matomo until the test ends.
func start(t *testing.T, m *testkit.Matomo, cfg Config) *running {
	t.Helper()
	return startAt(t, m, m.Serve(t)+"/matomo.php", cfg, newSource(t))
}

func startAt(t *testing.T, m *testkit.Matomo, endpoint string, cfg Config, src *memorySource) *running {
	t.Helper()
	cfg.Endpoint = endpoint
	s, err := New(cfg, src, testLog(t), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Sink: s, src: src, matomo: m, url: endpoint, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- s.Run(ctx) }()
	t.Cleanup(func() { r.stop(t) })
	return r
}

// stop ends Run and checks that it ended well.
func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	r.done <- nil // for a second stop
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// soon bounds the waits of tests on real sockets.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func marks(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	return out
}

// A countingSource hands out copies of a few hits and counts what is settled.
type countingSource struct {
	hits []hit.Pending
	done chan struct{} // closed when everything is settled

	mu      sync.Mutex
	left    int // to lease
	given   int
	settled int
	batches uint64
}

func (c *countingSource) Lease(ctx context.Context, most int) ([]hit.Pending, error) {
	c.mu.Lock()
	n := min(most, c.left)
	out := make([]hit.Pending, n)
	for i := range out {
		out[i] = c.hits[c.given%len(c.hits)]
		c.given++
		out[i].ID = hit.ID{Generation: 1, Block: uint64(c.given)}
	}
	c.left -= n
	c.mu.Unlock()
	if n == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return out, nil
}

func (c *countingSource) Memo(uint64) []byte { return nil }

func (c *countingSource) Reread(_ context.Context, ids []hit.ID) ([]hit.Pending, error) {
	out := make([]hit.Pending, len(ids))
	for i, id := range ids {
		out[i] = c.hits[(id.Block-1)%uint64(len(c.hits))]
		out[i].ID = id
	}
	return out, nil
}

func (c *countingSource) Journal([]hit.ID, []byte) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches++
	return c.batches, nil
}

func (c *countingSource) Settle(_ uint64, list []hit.Settlement) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settled += len(list)
	if c.left == 0 && c.settled == c.given {
		close(c.done)
		c.given = -1
	}
	return nil
}
