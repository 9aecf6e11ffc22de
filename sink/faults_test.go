package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// launch runs a sink after a last change to it.
func launch(t *testing.T, m *testkit.Matomo, cfg Config, src Source, tweak func(*Sink)) *running {
	t.Helper()
	s, err := New(cfg, src, testLog(t), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	tweak(s)
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Sink: s, matomo: m, url: cfg.Endpoint, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- s.Run(ctx) }()
	t.Cleanup(func() { // a stop before it checks how Run ended
		cancel()
		<-r.done
	})
	return r
}

// A striker lets something happen around one delivery: right before Matomo gets it, or
// when Matomo has committed and answered it.
type striker struct {
	next          http.RoundTripper
	left          atomic.Int64 // deliveries until then
	before, after func()
}

func (k *striker) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	now := bytes.Contains(body, []byte(testkit.DefaultMark)) && k.left.Add(-1) == 0
	if now && k.before != nil {
		k.before()
	}
	res, err := k.next.RoundTrip(req)
	if now && k.after != nil {
		k.after()
	}
	return res, err
}

// visitorHit makes a hit of one of a few visitors, whose marks say which.
func visitorHit(visitor, n int) (hit.Pending, string) {
	mark := fmt.Sprintf("v%dn%d", visitor, n)
	p := hitOf(int64(1+visitor%2), mark)
	p.Params = append(p.Params, fmt.Sprintf("&_id=%016x", visitor+1)...)
	p.Environment = &hit.Environment{ClientIP: fmt.Sprintf("203.%d.113.9", visitor), UserAgent: browser}
	return p, mark
}

// inOrder checks that no visitor's hits overtook each other.
func inOrder(t *testing.T, m *testkit.Matomo) {
	t.Helper()
	last := map[int]int{}
	for _, mark := range m.Marks() {
		var visitor, n int
		if _, err := fmt.Sscanf(mark, "v%dn%d", &visitor, &n); err != nil {
			t.Errorf("mark %q: %v", mark, err)
		}
		if n < last[visitor] {
			t.Errorf("%s is recorded behind number %d of its visitor", mark, last[visitor])
		}
		last[visitor] = n
	}
}

// TestFaultsInTheDrain has what begins in the middle of a drain and tells of itself
// clearly, once with the request that meets it first, and once right after one that
// went well: no hit is in doubt, none is thrown away, each is recorded once and in
// order, and the state says why nothing is sent.
func TestFaultsInTheDrain(t *testing.T) {
	super := &testkit.Token{Super: true}
	scripted := func(a testkit.Answer) (ill, well func(*testkit.Matomo, *inProcess)) {
		return always(a), always(testkit.Honest())
	}
	type fault struct {
		name      string
		ill, well func(*testkit.Matomo, *inProcess)
		reason    Reason
		most      int64 // deliveries that are tried in ten minutes of it
	}
	faults := []fault{
		{"nobody listens", func(_ *testkit.Matomo, p *inProcess) { p.refuse.Store(true) }, func(_ *testkit.Matomo, p *inProcess) { p.refuse.Store(false) }, ReasonDown, 1},
		{"database down", func(m *testkit.Matomo, _ *inProcess) { m.SetDatabase(testkit.DatabaseDown) }, func(m *testkit.Matomo, _ *inProcess) { m.SetDatabase(testkit.DatabaseUp) }, ReasonDown, 1},
		// No canary sees this one, so hits are tried.
		{"database read-only", func(m *testkit.Matomo, _ *inProcess) { m.SetDatabase(testkit.DatabaseReadOnly) }, func(m *testkit.Matomo, _ *inProcess) { m.SetDatabase(testkit.DatabaseUp) }, ReasonDown, 100},
		{"record_statistics=0", func(m *testkit.Matomo, _ *inProcess) { m.SetRecording(false) }, func(m *testkit.Matomo, _ *inProcess) { m.SetRecording(true) }, ReasonMaintenance, 1},
		{"address locked out", func(m *testkit.Matomo, _ *inProcess) { m.SetBlocked(true) }, func(m *testkit.Matomo, _ *inProcess) { m.SetBlocked(false) }, ReasonDown, 1},
		{"token revoked", func(m *testkit.Matomo, _ *inProcess) { m.SetToken(testkit.SuperToken, nil) }, func(m *testkit.Matomo, _ *inProcess) { m.SetToken(testkit.SuperToken, super) }, ReasonAuth, 1},
	}
	for _, s := range []struct {
		name   string
		answer testkit.Answer
		reason Reason
	}{
		{"not installed", testkit.NotInstalled(), ReasonConfig},
		{"login page", testkit.LoginPage(), ReasonConfig},
		{"301", testkit.Redirect(301, "https://other.example/"), ReasonConfig},
		{"307", testkit.Redirect(307, "https://other.example/"), ReasonConfig},
		{"400 with a page", testkit.InfoPage(), ReasonConfig},
		{"401", testkit.Status(401, 0, testkit.RolledBack), ReasonConfig},
		{"403", testkit.Status(403, 0, testkit.RolledBack), ReasonConfig},
		{"404", testkit.Status(404, 0, testkit.RolledBack), ReasonConfig},
		{"405", testkit.Status(405, 0, testkit.RolledBack), ReasonConfig},
		{"408", testkit.Status(408, 0, testkit.RolledBack), ReasonOverload},
		{"429", testkit.Status(429, time.Minute, testkit.RolledBack), ReasonOverload},
		{"503", testkit.Status(503, 0, testkit.RolledBack), ReasonOverload},
		{"PHP fatal at everything", testkit.Empty500(testkit.RolledBack), ReasonDown},
	} {
		ill, well := scripted(s.answer)
		faults = append(faults, fault{s.name, ill, well, s.reason, 1})
	}
	for _, tt := range faults {
		for _, when := range []string{"before", "after"} {
			t.Run(tt.name+"/"+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := testkit.NewMatomo(testkit.MatomoConfig{})
					defer m.Close()
					src, net := newSource(t), &inProcess{}
					net.set(m)
					k := &striker{next: net}
					k.left.Store(3)
					strike := func() { tt.ill(m, net) }
					if when == "before" {
						k.before = strike
					} else {
						k.after = strike
					}
					cfg := bubbleConfig()
					cfg.Endpoint, cfg.BatchHits = "http://matomo.example/matomo.php", 8
					const hits = 60
					var want []string
					for i := range hits {
						p, mark := visitorHit(i%4, i/4)
						want = append(want, mark)
						src.add(p)
					}
					r := launch(t, m, cfg, src, func(s *Sink) { s.client.http.Transport = k })
					time.Sleep(10 * time.Minute)
					synctest.Wait()
					st := r.Status()
					if st.State == StateSending || st.Reason != tt.reason || st.Ends == "" {
						t.Errorf("state %s, reason %q (%s), ends %q; want a hold for %q", st.State, st.Reason, st.Detail, st.Ends, tt.reason)
					}
					if recorded := len(m.Marks()); recorded == 0 || recorded == hits || recorded != src.count(hit.Delivered) || len(src.order) != recorded {
						t.Errorf("%d recorded and %d of %d settled while the fault lasts, want the same few", recorded, len(src.order), hits)
					}
					if tried := -k.left.Load(); tried > tt.most {
						t.Errorf("%d more deliveries were tried, want %d at most", tried, tt.most)
					}
					if st.Uncertain != 0 || src.openJournals() != 0 {
						t.Errorf("%d hits in doubt and %d journals open, want none", st.Uncertain, src.openJournals())
					}
					tt.well(m, net)
					src.waitSettled(within(t, 20*time.Minute), hits)
					m.CheckOnce(t, want)
					inOrder(t, m)
					if n := src.count(hit.Delivered); n != hits || r.ins.unknown.Get() != 0 {
						t.Errorf("%d hits delivered, %d unknown; want %d and 0", n, r.ins.unknown.Get(), hits)
					}
					r.stop(t)
				})
			})
		}
	}
}

// TestFaultsOfABatch has failures that end by themselves or with smaller batches: the
// drain goes on without a hold, and nothing is buried.
func TestFaultsOfABatch(t *testing.T) {
	failOnce := func(a testkit.Answer) func(*testkit.Exchange) *testkit.Answer {
		failed := false
		return func(x *testkit.Exchange) *testkit.Answer {
			if x.Probe || x.Hits != 6 || failed {
				return nil
			}
			failed = true
			return &a
		}
	}
	tests := []struct {
		name     string
		choose   func(*testkit.Exchange) *testkit.Answer
		requests []int // sizes of the deliveries that follow each other
	}{
		// Rolled back at the fourth hit, which is sent once more with all the others.
		{"deadlock/before", failOnce(testkit.Error500(3)), []int{6, 6}},
		{"PHP fatal, too little memory/before", func(x *testkit.Exchange) *testkit.Answer {
			if a := testkit.Empty500(testkit.RolledBack); !x.Probe && x.Hits > 3 {
				return &a
			}
			return nil
		}, []int{6, 3, 3}},
		{"body too large/before", func(x *testkit.Exchange) *testkit.Answer {
			if a := testkit.Status(413, 0, testkit.RolledBack); !x.Probe && x.Hits > 3 {
				return &a
			}
			return nil
		}, []int{6, 3, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{})
				defer m.Close()
				src := newSource(t)
				b := startBubble(t, m, bubbleConfig(), src)
				opener, mark := visitorHit(1, 0)
				src.add(opener)
				src.waitSettled(within(t, time.Minute), 1)
				m.Choose(tt.choose)
				want := []string{mark}
				var together []hit.Pending
				for n := range 6 {
					p, mark := visitorHit(0, n)
					together, want = append(together, p), append(want, mark)
				}
				src.add(together...)
				src.waitSettled(within(t, time.Minute), 7)
				m.CheckOnce(t, want)
				inOrder(t, m)
				var sizes []int
				for _, r := range m.Requests() {
					if !r.Probe {
						sizes = append(sizes, r.Hits)
					}
				}
				if !slices.Equal(sizes[1:], tt.requests) {
					t.Errorf("deliveries of %v hits, want %v", sizes[1:], tt.requests)
				}
				if n := src.count(hit.Delivered); n != 7 || !b.Healthy() || b.ins.falls[ReasonDown].Get() != 0 {
					t.Errorf("%d hits delivered, healthy %v, %d falls; want 7 without a fall", n, b.Healthy(), b.ins.falls[ReasonDown].Get())
				}
				b.stop(t)
				synctest.Wait()
			})
		})
	}
}

// TestBulkRefusedForOneSite: with bulk_requests_require_authentication a single
// unknown site gets the whole bulk 400. The hit is found, and goes alone.
func TestBulkRefusedForOneSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{RequireAuth: true})
		defer m.Close()
		src := newSource(t)
		b := startBubble(t, m, bubbleConfig(), src)
		var want []string
		var bad hit.ID
		for n := range 12 {
			if n == 5 {
				bad = src.add(hitOf(99, "v9n0"))[0]
			}
			p, mark := visitorHit(n%2, n)
			want = append(want, mark)
			src.add(p)
		}
		n := 12
		for ; n < 60; n++ { // company, until burying is allowed
			if _, done := src.outcome(bad); done {
				break
			}
			p, mark := visitorHit(n%2, n)
			want = append(want, mark)
			src.add(p)
			time.Sleep(10 * time.Second)
		}
		src.waitSettled(within(t, 10*time.Minute), n+1)
		m.CheckOnce(t, want)
		inOrder(t, m)
		if got, _ := src.outcome(bad); got.As != hit.Dead || got.Reason != BuriedRefused || got.Status != 400 {
			t.Errorf("the hit for no site ended as %v (%s, status %d), want dead (%s, 400)", got.As, got.Reason, got.Status, BuriedRefused)
		}
		if src.count(hit.Dead) != 1 || src.count(hit.Invalid) != 0 {
			t.Errorf("%d dead, %d invalid; want 1 and 0", src.count(hit.Dead), src.count(hit.Invalid))
		}
		b.stop(t)
		synctest.Wait()
	})
}

// TestFiveMinutesOfSilence: Matomo takes requests and says nothing for five minutes,
// having recorded the first or not. Without an account the policy decides, visibly.
func TestFiveMinutesOfSilence(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fate   testkit.Fate
		policy string
		times  int // that a hit of the first batch is recorded
		wait   int // hits that stay in doubt
	}{
		{"before, resend", testkit.RolledBack, Resend, 1, 0},
		{"after, resend", testkit.Committed, Resend, 2, 0},
		{"before, hold", testkit.RolledBack, Hold, 0, 5},
		{"after, hold", testkit.Committed, Hold, 1, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{})
				defer m.Close()
				src := newSource(t)
				cfg := bubbleConfig()
				cfg.OnUnknown = tt.policy
				b := startBubble(t, m, cfg, src)
				time.Sleep(5 * time.Second) // so that no canary is due before the timeout
				m.Next(testkit.Hang(tt.fate))
				m.Always(testkit.Hang(testkit.RolledBack))
				var doubtful []string
				var together []hit.Pending
				for n := range 5 {
					p, mark := visitorHit(0, n)
					together, doubtful = append(together, p), append(doubtful, mark)
				}
				src.add(together...)
				posts := b.net.posts.Load()
				time.Sleep(time.Second)
				behind, last := visitorHit(0, 5)
				src.add(behind)
				time.Sleep(DefaultRequestTimeout - 500*time.Millisecond)
				synctest.Wait()
				if b.Healthy() {
					t.Error("the first timeout does not stop the drain")
				}
				time.Sleep(4*time.Minute - time.Second)
				synctest.Wait()
				st := b.Status()
				if st.State == StateSending || st.Reason != ReasonDown || len(src.order) != 0 {
					t.Errorf("state %s, reason %q, %d settled in the silence; want a hold for down and none", st.State, st.Reason, len(src.order))
				}
				if n := b.net.posts.Load() - posts; n > 30 {
					t.Errorf("a Matomo that hangs was sent %d requests in five minutes", n)
				}
				m.Always(testkit.Honest())
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				want := slices.Repeat(doubtful, tt.times)
				if tt.wait == 0 {
					want = append(want, last)
				}
				if got := m.Marks(); !slices.Equal(got, want) {
					t.Errorf("recorded %v, want %v", got, want)
				}
				if st := b.Status(); st.Uncertain != tt.wait || !b.Healthy() {
					t.Errorf("%d hits in doubt, healthy %v; want %d, true", st.Uncertain, b.Healthy(), tt.wait)
				}
				if n := b.ins.unknown.Get(); int(n) != 5-tt.wait {
					t.Errorf("%d hits counted as unknown, want %d", n, 5-tt.wait)
				}
				b.stop(t)
				synctest.Wait()
			})
		})
	}
}

// A settler is a source whose settling a test stands in front of.
type settler struct {
	*memorySource
	settle func(list []hit.Settlement, write func() error) error
}

func (s *settler) Settle(batch uint64, list []hit.Settlement) error {
	return s.settle(list, func() error { return s.memorySource.Settle(batch, list) })
}

// TestSettlingWaitsForTheDisk: the queue holds a settlement back while the disk is
// full, having written it or not. No hit behind it is sent, and none is sent again.
func TestSettlingWaitsForTheDisk(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{})
				defer m.Close()
				space := make(chan struct{})
				src := &settler{memorySource: newSource(t)}
				src.settle = func(list []hit.Settlement, write func() error) (err error) {
					if when == "after" {
						err = write()
					}
					if len(list) > 0 {
						<-space
					}
					if when == "before" {
						err = write()
					}
					return err
				}
				net := &inProcess{}
				net.set(m)
				cfg := bubbleConfig()
				cfg.Endpoint = "http://matomo.example/matomo.php"
				r := launch(t, m, cfg, src, func(s *Sink) { s.client.http.Transport = net })
				first, one := visitorHit(0, 0)
				src.add(first)
				time.Sleep(time.Minute)
				second, two := visitorHit(0, 1)
				src.add(second)
				time.Sleep(time.Hour)
				synctest.Wait()
				if got := m.Marks(); !slices.Equal(got, []string{one}) {
					t.Errorf("recorded %v while the disk is full, want %s alone", got, one)
				}
				close(space)
				src.waitSettled(within(t, time.Minute), 2)
				if got := m.Marks(); !slices.Equal(got, []string{one, two}) {
					t.Errorf("recorded %v, want each once", got)
				}
				r.stop(t)
			})
		})
	}
}

// settlingFails: the disk fails under a settlement, and the process ends. The next one
// asks the database about what was not written, and leaves alone what was.
func settlingFails(t *testing.T, truths func(*testing.T, testkit.MatomoConfig) *truth) {
	for _, when := range []string{"before", "after"} {
		t.Run("disk fails in settling/"+when, func(t *testing.T) {
			tr := truths(t, testkit.MatomoConfig{})
			want := tr.page(0, 5)
			broken := errors.New("no space left on device")
			src := &settler{memorySource: tr.src}
			src.settle = func(list []hit.Settlement, write func() error) error {
				if when == "after" {
					return errors.Join(write(), broken)
				}
				return broken
			}
			cfg := tr.cfg
			cfg.Endpoint = tr.matomo.Serve(t) + "/matomo.php"
			r := launch(t, tr.matomo, cfg, src, func(*Sink) {})
			select {
			case err := <-r.done:
				r.done <- nil
				if !errors.Is(err, broken) {
					t.Errorf("Run = %v, want %v", err, broken)
				}
			case <-soon(t).Done():
				t.Fatal("Run goes on with a disk that has failed")
			}
			tr.src = tr.src.crash(tr.sent)
			want = append(want, tr.page(5, 1)...)
			next := tr.start()
			tr.src.waitSettled(soon(t), 6)
			tr.once(next, want)
			if asked := next.ins.reconciled[foundRecorded].Get(); (asked > 0) != (when == "before") {
				t.Errorf("%d hits were found in the database", asked)
			}
		})
	}
}

// page adds n page views of one visitor, and gives their marks.
func (tr *truth) page(from, n int) (names []string) {
	var hits []hit.Pending
	for i := from; i < from+n; i++ {
		names = append(names, fmt.Sprintf("v1n%d", i))
		hits = append(hits, tr.hit("1", int64(i), fmt.Sprintf("_id=1111111111111111&pv_id=pv%04d%s", i, mark(names[len(names)-1]))))
	}
	tr.add(hits...)
	return names
}

// once checks that all hits are recorded once and in their order, in the tables too,
// and that nothing is buried, open or decided without evidence.
func (tr *truth) once(r *running, want []string) {
	tr.t.Helper()
	if got := tr.matomo.Marks(); !slices.Equal(got, want) {
		tr.t.Errorf("recorded %v, want %v", got, want)
	}
	rows := tr.server.Exec("SELECT COUNT(*) FROM matomo.matomo_log_link_visit_action")
	if rows[0][0] != fmt.Sprint(len(want)) {
		tr.t.Errorf("%s rows, want %d", rows[0][0], len(want))
	}
	tr.settled(hit.Delivered, len(want))
	if st := r.Status(); st.Uncertain != 0 || tr.src.openJournals() != 0 || r.ins.unknown.Get() != 0 {
		tr.t.Errorf("%d hits in doubt, %d journals open, %d hits decided by sink.on-unknown", st.Uncertain, tr.src.openJournals(), r.ins.unknown.Get())
	}
}

// A stand is a sink on a truth, behind a wire that can fail, and in front of names
// that can be gone.
type stand struct {
	*truth
	*running
	wire     *testkit.Proxy
	nameless atomic.Bool
}

// dial resolves a name that does not exist while the names are gone.
func (s *stand) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if s.nameless.Load() {
		address = "matomo.invalid:80"
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// TestFaultsInDoubt has what a network and a database do to one batch, before Matomo
// committed it and after: with an account every hit is recorded once and in order.
func TestFaultsInDoubt(t *testing.T) {
	truths := newTruths(t)
	settlingFails(t, truths)
	onWire := func(f testkit.Fault) func(*stand) { return func(s *stand) { s.wire.Next(f) } }
	answer := func(do func(s *stand, x *testkit.Exchange)) func(*stand) {
		return func(s *stand) {
			s.matomo().Next(testkit.Answer{Name: "fault", Do: func(x *testkit.Exchange) { do(s, x) }})
		}
	}
	kill := func(s *stand, x *testkit.Exchange) {
		s.matomo().SetDatabase(testkit.DatabaseDown)
		s.server.Kill()
		x.Send(http.StatusOK, "text/html", "Error:SQLSTATE[HY000]: General error: 2006 MySQL server has gone away")
	}
	restart := func(s *stand) { s.server.Start(); s.matomo().SetDatabase(testkit.DatabaseUp) }
	silence := func(s *stand) {
		s.matomo().Next(testkit.Hang(testkit.Committed))
		s.matomo().Always(testkit.Hang(testkit.RolledBack))
	}
	speak := func(s *stand) {
		sleep(t.Context(), 2*s.truth.cfg.doubtWait()) // longer than a request may be running
		s.matomo().Always(testkit.Honest())
	}
	tests := []struct {
		name   string
		ill    func(*stand)
		well   func(*stand) // called when the breaker has fallen
		doubt  bool
		reason Reason
	}{
		{"connection cut/before", onWire(testkit.CutBefore()), nil, true, ReasonDown},
		{"connection cut/after", onWire(testkit.LoseAnswer()), nil, true, ReasonDown},
		{"packets vanish/before", onWire(testkit.BlackHole()), nil, true, ReasonDown},
		{"packets vanish/after", onWire(testkit.Silence()), nil, true, ReasonDown},
		{"answer torn/after", onWire(testkit.CutAnswer(150)), nil, true, ReasonDown},
		{"DNS gone/before", func(s *stand) {
			s.nameless.Store(true)
			s.client.transport.CloseIdleConnections()
		}, func(s *stand) { s.nameless.Store(false) }, false, ReasonDown},
		{"DNS gone/after", answer(func(s *stand, x *testkit.Exchange) {
			tracked, invalid := x.Commit()
			s.nameless.Store(true)
			x.Header().Set("Connection", "close")
			x.Verdict(tracked, invalid)
		}), func(s *stand) { s.nameless.Store(false) }, false, ReasonNone},
		{"MySQL killed in the batch/before", answer(kill), restart, true, ReasonDown},
		{"MySQL killed in the batch/after", answer(func(s *stand, x *testkit.Exchange) { x.Commit(); kill(s, x) }), restart, true, ReasonDown},
		{"long hang of everything/after", silence, speak, true, ReasonDown},
		{"record_statistics=0/before", func(s *stand) { s.matomo().SetRecording(false) }, func(s *stand) { s.matomo().SetRecording(true) }, true, ReasonMaintenance},
		{"204/after", func(s *stand) { s.matomo().Next(testkit.NoContent(testkit.Committed)) }, nil, true, ReasonDown},
		{"a CDN's 524/after", func(s *stand) { s.matomo().Next(testkit.Status(524, 0, testkit.Committed)) }, nil, true, ReasonDown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := truths(t, testkit.MatomoConfig{})
			s := &stand{truth: tr, wire: testkit.NewProxy(t, strings.TrimPrefix(tr.matomo.Serve(t), "http://"))}
			cfg := tr.cfg
			cfg.Endpoint = "http://" + s.wire.Addr() + "/matomo.php"
			s.running = launch(t, tr.matomo, cfg, tr.src, func(sink *Sink) { sink.client.transport.DialContext = s.dial })
			want := tr.page(0, 1)
			tr.src.waitSettled(soon(t), 1)
			found := func() (n uint64) {
				for _, c := range s.ins.reconciled {
					if c != nil {
						n += c.Get()
					}
				}
				return n
			}
			tt.ill(s)
			want = append(want, tr.page(1, 5)...)
			want = append(want, tr.page(6, 2)...)
			if tt.reason != ReasonNone {
				ctx := soon(t)
				for s.ins.falls[tt.reason].Get() == 0 {
					if !sleep(ctx, 5*time.Millisecond) {
						t.Fatalf("no fall for %s: %+v", tt.reason, s.standing())
					}
				}
			} else {
				tr.src.waitSettled(soon(t), 2) // the batch, which on a slow machine is of one hit
			}
			if tt.well != nil {
				tt.well(s)
			}
			s.Resume("ann") // without the wait for the next try
			tr.src.waitSettled(soon(t), len(want))
			tr.once(s.running, want)
			if got := found() > 0; got != tt.doubt {
				t.Errorf("the database was asked about hits: %v, want %v", got, tt.doubt)
			}
			s.stop(t)
		})
	}
}

func (s *stand) matomo() *testkit.Matomo { return s.truth.matomo }
