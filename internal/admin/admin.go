// Package admin is the private side of Sluice: the listener for health checks,
// metrics and the commands, and the client that the commands use.
//
// # Contract
//
// The listener answers questions and carries out orders of the operator; no hit
// passes through it, and nothing that it is asked for changes what is promised to
// visitors. What it shows of hits is masked unless the asker proves to be in
// control, and token_auth is shown by nothing but an export.
//
// Who may do what: health paths are for everybody who can reach the listener.
// Reading is for everybody when no token is configured, which is refused off the
// loopback, and for holders of the token otherwise. Changing something, and seeing
// hits unmasked, asks for the token, a client certificate, or the control key, a secret that the
// daemon writes into its data directory: who can read that can read the queue anyway.
//
// # Concurrency and lifetime
//
// [New] builds, [Server.Listen] binds, [Server.Run] serves until its context is
// done. All other methods may be called from any goroutine at any time.
package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// Timeouts of the listener. There is no overall limit on an answer, since an export
// of a large queue is one answer; [streamStall] bounds a client that stops reading.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 30 * time.Second
	idleTimeout   = 2 * time.Minute
	streamStall   = 30 * time.Second
	stopTimeout   = 2 * time.Second
	maxHeader     = 16 << 10
	maxBody       = 1 << 20
)

// ErrNotFound is what a [Reader] returns for an id that is not pending.
var ErrNotFound = errors.New("no such hit")

// A Queue tells the state of what is kept.
type Queue interface {
	// Stats returns exact figures; it takes no longer than a lock is held.
	Stats() Stats
	// Counters returns the sums per site and quarter of an hour.
	Counters() []Counter
	// Verify reads all that is kept and reports what is wrong. It may take minutes.
	Verify(ctx context.Context) (Report, error)
}

// A Reader shows single hits. Reading takes no lease and delays no delivery.
type Reader interface {
	// Peek yields pending hits, oldest first.
	Peek(ctx context.Context, f PeekFilter) iter.Seq2[hit.Pending, error]
	// Find returns one pending hit, or [ErrNotFound].
	Find(ctx context.Context, id hit.ID) (hit.Pending, error)
}

// DeadLetters holds the buried hits.
type DeadLetters interface {
	// Dead yields buried hits in the order of arrival. One that cannot be read is
	// an error and not the end.
	Dead(ctx context.Context, f DeadFilter) iter.Seq2[*hit.DeadLetter, error]
	// Requeue makes buried hits pending again and returns how many.
	Requeue(ctx context.Context, f DeadFilter) (int, error)
}

// A Drain is what feeds Matomo.
type Drain interface {
	Status() DrainStatus
	// Pause and Resume leave a line in the log that names who. Pause stops sending until the given time at the latest. It takes effect
	// before the next batch, and outlives no restart.
	Pause(who, why string, until time.Time)
	// Resume ends a pause; without one it does nothing.
	Resume(who string)
}

// A Check is one condition of readiness.
type Check struct {
	Name string
	// Probe returns nil, or in one sentence why hits cannot be accepted now. It
	// must not block.
	Probe func() error
}

// Config is what a [Server] is told about itself.
type Config struct {
	Listen string // HOST:PORT
	// Listener is a socket that somebody else has opened already, in place of Listen.
	Listener net.Listener
	// TLS makes the listener speak HTTPS; nil is plain HTTP. A client certificate that it
	// has verified puts the client in control, as the token does.
	TLS     *tls.Config
	Hosts   []string // further names under which it may be addressed
	Token   string   // "" when none is configured
	Control string   // the control key; "" gives control to holders of the token only
	Edge    string
	Version string
}

// Parts is what a [Server] tells about. All are needed but LogImports, Assets, Reloader, Gate, Checks and Metrics.
type Parts struct {
	Queue       Queue
	Reader      Reader
	DeadLetters DeadLetters
	Importer    Importer
	LogImports  LogImports // nil where none are taken
	Drain       Drain
	Assets      Assets       // nil where none are kept
	Reloader    Reloader     // nil where nothing can be reloaded
	Gate        http.Handler // below [GatePath]; nil where no day is judged
	Checks      []Check
	Metrics     []*metrics.Set
	Log         *slog.Logger
	Now         func() time.Time // nil = time.Now
}

// A Server is the private listener.
type Server struct {
	cfg   Config
	parts Parts
	now   func() time.Time
	log   *slog.Logger
	hosts map[string]bool
	pace  *pace
	http  *http.Server
	token atomic.Pointer[string] // "" when none is configured

	listener net.Listener // set by Listen
}

// New returns a Server that neither listens nor runs.
func New(cfg Config, parts Parts) (*Server, error) {
	if parts.Queue == nil || parts.Reader == nil || parts.DeadLetters == nil || parts.Importer == nil || parts.Drain == nil || parts.Log == nil {
		return nil, errors.New("admin: a part is missing")
	}
	s := &Server{
		cfg: cfg, parts: parts, now: parts.Now, log: parts.Log,
		hosts: make(map[string]bool), pace: &pace{},
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.SetToken(cfg.Token)
	for _, h := range cfg.Hosts {
		s.hosts[h] = true
	}
	s.http = &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(parts.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// SetToken changes the token for requests from now on; "" is none.
func (s *Server) SetToken(token string) { s.token.Store(&token) }

// Listen binds the address, so that a port in use is known before anything starts.
func (s *Server) Listen() (net.Addr, error) {
	l := s.cfg.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", s.cfg.Listen); err != nil {
			return nil, fmt.Errorf("admin listener: %w", err)
		}
	}
	if s.cfg.TLS != nil {
		l = tls.NewListener(l, s.cfg.TLS)
	}
	s.listener = l
	return l.Addr(), nil
}

// Run serves what [Server.Listen] has bound until ctx is done, and returns nil
// then. Answers under way have two seconds to finish.
func (s *Server) Run(ctx context.Context) error {
	if s.listener == nil {
		return errors.New("admin: Run before Listen")
	}
	served := make(chan error, 1) // one result, so that the goroutine never waits
	go func() { served <- s.http.Serve(s.listener) }()
	ticker := time.NewTicker(paceInterval)
	defer ticker.Stop()
	s.pace.sample(s.now(), s.parts.Queue.Stats())
	for {
		select {
		case <-ticker.C:
			s.pace.sample(s.now(), s.parts.Queue.Stats())
		case err := <-served:
			return fmt.Errorf("admin listener: %w", err)
		case <-ctx.Done():
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			if s.http.Shutdown(stop) != nil {
				s.http.Close() // A stream that will not end; the client sees it cut off.
			}
			return nil
		}
	}
}

// Handler is everything that the listener serves, guards included.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	s.routeHealth(mux)
	s.routeQueue(mux)
	s.routeDrain(mux)
	s.routeAssets(mux)
	s.routeLogImports(mux)
	s.routeDebug(mux)
	s.routeGate(mux)
	s.routeReload(mux)
	mux.HandleFunc("GET /metrics", s.reading(s.metrics))
	return s.guard(mux)
}
