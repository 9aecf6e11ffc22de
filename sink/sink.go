package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
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
	// Reread gives hits again that were leased before and have not been settled, in
	// the order of ids; what cannot be read any more is left out.
	Reread(ctx context.Context, ids []hit.ID) ([]hit.Pending, error)
	// Journal notes durably that hits are about to be sent. When the process ends
	// before they are settled or given back, they are leased as uncertain. The memo
	// is kept with them: a few bytes that [Source.Memo] gives back.
	Journal(ids []hit.ID, memo []byte) (batch uint64, err error)
	// Memo gives the memo of a batch whose entry in the journal is open, of this
	// process or an earlier one; nil when there is none.
	Memo(batch uint64) []byte
	// Settle notes what became of hits and ends the batch's entry in the journal;
	// hits of the batch that it does not name were not delivered. Batch 0 stands
	// for hits outside of any batch. The batch may be an earlier process's.
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
	reader  *database // nil = archiving reads where db is
	prober  *prober
	recon   *reconciler // nil without a MySQL account
	clients *clientTokens
	load    load
	rate    rate
	shown   shown
	watched watched
	upgrade upgrades
	strain  strain
	orders  sync.Mutex // held while an operator's order is carried out and kept
	window  *window
	mask    addressMask
	queued  queuedWatch
}

// New checks cfg and returns an idle Sink. It opens no connection; Run does.
func New(cfg Config, src Source, log *slog.Logger, set *metrics.Set) (*Sink, error) {
	cfg.setDefaults()
	s := &Sink{
		cfg: cfg, src: src, log: log.With("part", "sink"), clock: &clock{},
		clients: newClientTokens(cfg.AheadHits), window: newWindow(cfg.AheadHits, cfg.AheadBytes),
	}
	var err1, err2, err3 error
	s.client, err1 = newClient(cfg.Endpoint, cfg.RequestTimeout, cfg.Lanes+2, s.clock)
	if err1 == nil {
		s.client.forwardHeader = cfg.ForwardHeader
	}
	if cfg.DSN != "" {
		if s.db, err2 = newDatabase(cfg.DSN, cfg.TablesPrefix); err2 == nil {
			s.recon, err2 = newReconciler(&cfg, src)
		}
	}
	if cfg.ReaderDSN != "" && s.db != nil {
		if s.reader, err3 = newDatabase(cfg.ReaderDSN, cfg.TablesPrefix); err3 != nil {
			err3 = fmt.Errorf("reader: %w", err3)
		}
	}
	if err := errors.Join(cfg.validate(), err1, err2, err3); err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	mask := guessedMask
	if cfg.AddressMask != AutoMask {
		mask, _ = strconv.Atoi(cfg.AddressMask) // validated
	}
	s.mask.set(uint8(mask))
	s.brk = newBreaker(s.log, cfg.waits)
	if p := cfg.Pause; p != nil && p.Until.After(time.Now()) {
		s.brk.pause = p
	}
	s.probe.kind = tokenUnknown
	var ask asker = noAsker{}
	switch {
	case s.db != nil:
		s.prober = &prober{db: s.db, reader: s.reader}
		ask = databaseAsker{s.db}
	case cfg.Token != "":
		ask = apiAsker{client: s.client, token: cfg.Token, probe: &s.probe}
	}
	if cfg.Token == "" {
		s.probe.kind = tokenNone
	}
	s.sites = newSites(ask)
	s.ins = newInstruments(s, set)
	s.clients.ins, s.clients.whole = s.ins, cfg.BulkRequiresAuth
	s.brk.opened = s.ins.opened
	return s, nil
}

// Sites gives what the sink knows about Matomo's sites.
func (s *Sink) Sites() *Sites { return s.sites }

// Healthy reports whether hits flow: the breaker is closed and nobody paused it.
func (s *Sink) Healthy() bool { return s.brk.sending() }

// Pause stops the drain until a time; hits are kept. A time that is not in the
// future changes nothing. A pause outlives the process if Config.KeepPause keeps it.
func (s *Sink) Pause(who, why string, until time.Time) {
	now := time.Now()
	if !until.After(now) {
		return
	}
	s.orders.Lock()
	defer s.orders.Unlock()
	p := &Pause{Who: who, Why: why, Since: now, Until: until}
	s.brk.setPause(p)
	s.keepPause(p)
	s.log.Info("the drain is paused", "who", who, "why", why, "until", until.UTC())
}

// Resume ends a pause and tries at once. It also takes the operator's word that an
// upgrade of Matomo is over, and that the versions of its database and its code, as
// they are, fit together; what changes or locks tables still holds the drain.
func (s *Sink) Resume(who string) {
	s.orders.Lock()
	defer s.orders.Unlock()
	s.brk.setPause(nil)
	s.keepPause(nil)
	if s.upgrade.accept() {
		s.log.Warn("the upgrade of Matomo is taken for done", "who", who)
	}
	s.brk.hurry()
	s.log.Info("the drain is resumed", "who", who)
}

func (s *Sink) keepPause(p *Pause) {
	if s.cfg.KeepPause == nil {
		return
	}
	if err := s.cfg.KeepPause(p); err != nil {
		s.log.Warn("a pause or its end could not be stored; a restart does not know of it", "err", err)
	}
}

// Run drains until ctx is done, then gives requests in flight up to Config.Grace
// to finish and returns nil. It returns an error only when the source fails, since
// then nothing can be delivered or kept. Call Run once.
func (s *Sink) Run(ctx context.Context) error {
	defer s.client.transport.CloseIdleConnections()
	if s.db != nil {
		defer s.db.close()       // nothing was written through it
		defer s.recon.db.close() // as above
	}
	if s.reader != nil {
		defer s.reader.close() // as above
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
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.sites.run(ctx) })   // until ctx is done
	wg.Go(func() { s.watchQueued(ctx) }) // until ctx is done
	if s.cfg.Token == "" {
		<-ctx.Done()
		return nil
	}
	first, done := context.WithTimeout(ctx, maskPatience)
	s.learnMask(first)
	done()
	d := newDispatcher(s, time.Now())
	wg.Go(func() { s.watchMask(ctx) }) // until ctx is done
	wg.Go(func() { s.supervise(ctx) }) // until ctx is done
	wg.Go(func() { s.askTokens(ctx) }) // until ctx is done
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
