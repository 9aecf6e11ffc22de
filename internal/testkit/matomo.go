package testkit

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Tokens that a Matomo made with the zero config knows.
const (
	SuperToken       = "a0000000000000000000000000000001" // superuser
	AdminToken       = "a0000000000000000000000000000002" // write access to site 1 only
	SecureSuperToken = "a0000000000000000000000000000003" // superuser, but in a form body only
)

// DefaultMark is the name of the parameter by which tests tell hits apart. No
// Matomo knows it, so it may stand in any hit.
const DefaultMark = "tkmark"

// MatomoConfig says what a fake Matomo holds. The zero value has four sites
// (UTC, Europe/Berlin, America/New_York, Pacific/Auckland) with a goal 1 in each,
// and the three tokens above.
type MatomoConfig struct {
	Sites  []Site
	Tokens map[string]Token
	// Mark is the parameter whose value names a hit; "" = DefaultMark.
	Mark string
	// CountOnly is for measurements: bulk requests with strictly encoded strings
	// are counted and their marks remembered, nothing is decoded or judged, and
	// every hit counts as recorded. Poison and the exceptions of single hits (bad
	// site and the like) do not exist then; scripted answers do.
	CountOnly bool
	// TrustForwarded takes the visitor's address from the last entry of
	// X-Forwarded-For, as proxy_client_headers[] does.
	TrustForwarded bool
	// NoTransactions is bulk_requests_use_transaction=0: what precedes a poison hit
	// stays recorded.
	NoTransactions bool
	// DoNotTrack is the privacy option that excludes hits with DNT: 1.
	DoNotTrack bool
	// RequireAuth is bulk_requests_require_authentication=1.
	RequireAuth bool
	// NoAuth is tracking_requests_require_authentication=0: everybody may do everything.
	NoAuth bool
	// Rows also keep what is committed in a real database; nil = they do not.
	Rows *Rows
	// InfoPage is the HTML for requests without parameters; nil = a short one.
	InfoPage []byte
	// Fallback answers all paths that are neither tracker nor Reporting API; nil =
	// 404.
	Fallback http.Handler
	// Now is the clock; nil = time.Now. SetClock shifts it.
	Now func() time.Time
}

// A Site is one website of a fake Matomo.
type Site struct {
	ID       int64
	Timezone string
	Goals    []int64
}

// A Token says what a token_auth may do.
type Token struct {
	Super      bool
	SecureOnly bool    // valid in a form body only, if it is a superuser's
	Sites      []int64 // sites with write or admin access
	WriteOnly  bool    // write access to Sites, not admin
	View       []int64 // sites with view access
}

// Database says how the fake's database does.
type Database uint8

const (
	DatabaseUp Database = iota
	// DatabaseDown fails every bulk, canaries too, and every hit that is not
	// excluded. It also says that the server of [Rows] may be gone: a request that
	// began before is then answered as Matomo does when it loses its database. At any
	// other time such a loss fails the test.
	DatabaseDown
	// DatabaseReadOnly fails only what would write, so a canary still passes.
	DatabaseReadOnly
)

// A Matomo is an http.Handler that answers as Matomo 5 does, records what it was
// sent, and lies on request: see [Matomo.Next], [Matomo.Always],
// [Matomo.Choose], [Matomo.Poison] and the constructors of [Answer].
//
// A bulk request is one transaction: all of its hits are recorded at one moment,
// or none.
type Matomo struct {
	cfg    MatomoConfig
	sites  map[int64]Site
	closed chan struct{} // closed by Close: ends every hanging answer

	requests atomic.Uint64
	received atomic.Int64
	recorded atomic.Int64

	mu      sync.Mutex
	state   state
	script  script
	records records
	logins  map[string][]time.Time // wrong tokens, by the address that they were booked on
	// forgotten are the orders to forget reports that were carried out.
	forgotten []Invalidation
	changed   chan struct{} // closed and replaced at every change of records
	done      bool
}

// state is what tests switch while requests run.
type state struct {
	paused     bool // record_statistics=0
	queued     bool // QueuedTracking is on
	blocked    bool // the client's address is locked out by failed logins
	database   Database
	outages    int // how often it went down
	clock      time.Duration
	perRequest time.Duration
	perHit     time.Duration
	bodyLimit  int64
	version    string // of the code, as the Reporting API says
	tokens     map[string]Token
}

// NewMatomo returns a fake that serves nothing yet: give it to an httptest.Server
// and call [Matomo.Close] before that server's Close, or use [Matomo.Serve].
func NewMatomo(cfg MatomoConfig) *Matomo {
	if cfg.Sites == nil {
		for i, zone := range []string{"UTC", "Europe/Berlin", "America/New_York", "Pacific/Auckland"} {
			cfg.Sites = append(cfg.Sites, Site{ID: int64(i + 1), Timezone: zone, Goals: []int64{1}})
		}
	}
	if cfg.Tokens == nil {
		cfg.Tokens = map[string]Token{
			SuperToken:       {Super: true},
			AdminToken:       {Sites: []int64{1}},
			SecureSuperToken: {Super: true, SecureOnly: true},
		}
	}
	if cfg.Mark == "" {
		cfg.Mark = DefaultMark
	}
	if cfg.InfoPage == nil {
		cfg.InfoPage = []byte("This resource is part of Matomo, and a fake one answers here.<br>\n")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &Matomo{
		cfg:     cfg,
		sites:   make(map[int64]Site),
		closed:  make(chan struct{}),
		changed: make(chan struct{}),
		state:   state{version: Version, tokens: make(map[string]Token)},
		logins:  make(map[string][]time.Time),
		records: newRecords(),
	}
	for _, s := range cfg.Sites {
		m.sites[s.ID] = s
	}
	maps.Copy(m.state.tokens, cfg.Tokens)
	return m
}

// Serve starts a plain HTTP server on loopback that ends with the test, and
// returns its base URL without a slash at the end.
func (m *Matomo) Serve(tb testing.TB) string {
	tb.Helper()
	srv := httptest.NewServer(m)
	tb.Cleanup(func() {
		m.Close()
		srv.Close()
	})
	return srv.URL
}

// Close ends all hanging answers. It may be called more than once.
func (m *Matomo) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.done {
		m.done = true
		close(m.closed)
	}
}

// SetRecording(false) is record_statistics=0: nothing is recorded, single hits get
// 503 (or a 204 that looks like success), bulks 200 with "tracked":0.
func (m *Matomo) SetRecording(on bool) { m.change(func(s *state) { s.paused = !on }) }

// SetQueuedTracking(true) lets the QueuedTracking plugin take every request
// without queuedtracking=0 in its URL: the hits are recorded and the answer is an
// image, also to a bulk.
func (m *Matomo) SetQueuedTracking(on bool) { m.change(func(s *state) { s.queued = on }) }

// SetBlocked(true) locks every client out as if after too many failed logins: every
// bulk with a token gets 500. Wrong tokens do the same to the one address that they
// are booked on, see [Matomo.Failures].
func (m *Matomo) SetBlocked(on bool) { m.change(func(s *state) { s.blocked = on }) }

// SetDatabase takes the database away or gives it back. With [Rows] it is called before
// the server is stopped, and when that has been started again.
func (m *Matomo) SetDatabase(d Database) {
	m.change(func(s *state) {
		s.database = d
		if d == DatabaseDown {
			s.outages++
		}
	})
}

// lostDatabase reports that hits could not be recorded, unless the test has said that
// this may be.
func (m *Matomo) lostDatabase(x *Exchange) {
	if m.snapshot().outages == x.state.outages {
		m.cfg.Rows.tb.Errorf("the database is lost: %v", x.lost)
	}
}

// SetVersion sets what the Reporting API says is the code's version; "" lets it answer
// 503, as Matomo's pages do while its database waits to be upgraded.
func (m *Matomo) SetVersion(version string) { m.change(func(s *state) { s.version = version }) }

// SetClock shifts Matomo's clock by d: its Date header, and what it calls the
// future.
func (m *Matomo) SetClock(d time.Duration) { m.change(func(s *state) { s.clock = d }) }

// SetLatency makes every request take perRequest and every hit in it perHit more.
// A client that goes away does not end the work, as with PHP.
func (m *Matomo) SetLatency(perRequest, perHit time.Duration) {
	m.change(func(s *state) { s.perRequest, s.perHit = perRequest, perHit })
}

// SetBodyLimit answers bodies of more than n bytes with 413; 0 = no limit.
func (m *Matomo) SetBodyLimit(n int64) { m.change(func(s *state) { s.bodyLimit = n }) }

// SetToken gives a token rights; nil revokes it.
func (m *Matomo) SetToken(token string, rights *Token) {
	m.change(func(s *state) {
		if rights == nil {
			delete(s.tokens, token)
			return
		}
		s.tokens[token] = *rights
	})
}

func (m *Matomo) change(f func(*state)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.state)
}

// snapshot copies the state; its tokens are looked up with [Matomo.rights].
func (m *Matomo) snapshot() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *Matomo) rights(token string) (Token, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.state.tokens[token]
	return t, ok
}

func (m *Matomo) now(s *state) time.Time { return m.cfg.Now().Add(s.clock) }
