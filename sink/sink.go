package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// A Source is where hits come from and where their outcome goes. Its methods are
// called from several goroutines at once.
type Source interface {
	// Lease blocks until at least one hit that was not leased before is pending,
	// or ctx is done. It gives 1 to max hits in the order of arrival, each once in
	// the life of the process. Their bytes are never changed.
	Lease(ctx context.Context, max int) ([]hit.Pending, error)
	// Journal notes durably that hits are about to be sent. When the process ends
	// before they are settled or given back, they are leased as uncertain.
	Journal(ids []hit.ID) (batch uint64, err error)
	// Settle notes what became of hits and ends the batch's entry in the journal;
	// hits of the batch that it does not name were not delivered. Batch 0 stands
	// for hits outside of any batch.
	Settle(batch uint64, s []hit.Settlement) error
}

// A Sink drains a Source into Matomo.
type Sink struct {
	cfg     Config
	src     Source
	log     *slog.Logger
	ins     *instruments
	client  *client
	clock   *clock
	brk     *breaker
	probe   canary
	sites   *Sites
	db      *database // nil without a MySQL account
	prober  *prober
	clients *clientTokens
	load    load
	rate    rate
	shown   shown
	watched watched
	window  *window
}

// New checks cfg and returns an idle Sink. It opens no connection; Run does.
func New(cfg Config, src Source, log *slog.Logger, set *metrics.Set) (*Sink, error) {
	cfg.setDefaults()
	s := &Sink{
		cfg: cfg, src: src, log: log.With("part", "sink"), clock: &clock{},
		clients: newClientTokens(), window: newWindow(cfg.AheadHits, cfg.AheadBytes),
	}
	var err1, err2 error
	s.client, err1 = newClient(cfg.Endpoint, cfg.RequestTimeout, cfg.Lanes+2, s.clock)
	if err1 == nil {
		s.client.forwardHeader = cfg.ForwardHeader
	}
	if cfg.DSN != "" {
		s.db, err2 = newDatabase(cfg.DSN, cfg.TablesPrefix)
	}
	if err := errors.Join(cfg.validate(), err1, err2); err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	s.brk = newBreaker(s.log)
	s.probe.kind = tokenUnknown
	var ask asker = noAsker{}
	switch {
	case s.db != nil:
		s.prober = &prober{db: s.db}
		ask = databaseAsker{s.db}
	case cfg.Token != "":
		ask = apiAsker{client: s.client, token: cfg.Token}
	}
	if cfg.Token == "" {
		s.probe.kind = tokenNone
	}
	s.sites = newSites(ask)
	s.ins = newInstruments(s, set)
	return s, nil
}

// Sites gives what the sink knows about Matomo's sites.
func (s *Sink) Sites() *Sites { return s.sites }

// Healthy reports whether hits flow: the breaker is closed and nobody paused it.
func (s *Sink) Healthy() bool { return s.brk.sending() }

// Pause stops the drain until a time; hits are kept. A time that is not in the
// future changes nothing. A pause does not outlive the process.
func (s *Sink) Pause(who, why string, until time.Time) {
	now := time.Now()
	if !until.After(now) {
		return
	}
	s.brk.setPause(&Pause{Who: who, Why: why, Since: now, Until: until})
	s.log.Info("the drain is paused", "who", who, "why", why, "until", until.UTC())
}

// Resume ends a pause.
func (s *Sink) Resume(who string) {
	s.brk.setPause(nil)
	s.log.Info("the pause of the drain is ended", "who", who)
}

// Run drains until ctx is done, then gives requests in flight up to Config.Grace
// to finish and returns nil. It returns an error only when the source fails, since
// then nothing can be delivered or kept. Call Run once.
func (s *Sink) Run(ctx context.Context) error {
	defer s.client.transport.CloseIdleConnections()
	if s.db != nil {
		defer s.db.close() // nothing was written through it
	}
	if s.cfg.Token == "" {
		s.brk.open(ReasonAuth, detailNoToken, 0)
		s.log.Warn("there is no token, so nothing is sent; hits are kept", "next", "set matomo.token-file")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Requests in flight outlive ctx by at most the grace period.
	work, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	d := newDispatcher(s, time.Now())
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.sites.run(ctx) }) // until ctx is done
	if s.cfg.Token == "" {
		<-ctx.Done()
		return nil
	}
	wg.Go(func() { s.supervise(ctx) }) // until ctx is done
	wg.Go(func() { d.lease(ctx) })     // until ctx is done or the source fails
	err := d.run(ctx, work)
	cancel()
	grace := time.AfterFunc(s.cfg.Grace, abort)
	defer grace.Stop()
	return errors.Join(err, d.finish())
}

// sleep waits for d; it reports false when ctx was done first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
