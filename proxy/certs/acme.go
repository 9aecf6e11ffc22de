package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/time/rate"
)

// ACME says how to get certificates from an authority.
type ACME struct {
	// Domains are the names to have certificates for, in lower case; the first is shown to
	// clients that ask for none or for another. All are obtained when Run begins. With
	// OnDemand each is obtained when a client asks for it, and *.example.org allows every
	// name that has one label more than example.org.
	Domains  []string
	OnDemand bool

	CA       string // URL of the directory; Let's Encrypt's when empty
	Staging  bool   // Let's Encrypt's staging directory; CA must be empty
	RootFile string // PEM with the authorities that CA's own certificate may come from; the system's when empty
	Email    string // contact; may be empty

	// KeyID and MACKey bind the account to one that the authority's operator made.
	// MACKey is in base64url without padding. Both may be empty.
	KeyID, MACKey string

	HTTP    bool // HTTP-01 may be used: [Keeper.AnswerChallenge] is reachable on port 80
	TLSALPN bool // TLS-ALPN-01 may be used: the listener is reachable on port 443

	// Storage keeps accounts, keys and certificates, and may be shared by several edges.
	// Files below Config.Dir when nil.
	Storage certmagic.Storage

	pace pace // for tests; zero fields take their defaults
}

// A pace is how often an authority is bothered.
type pace struct {
	look         time.Duration // between two looks at a certificate in use
	firstRetry   time.Duration // after a failure; doubled with each, up to longestRetry
	longestRetry time.Duration
	demandWait   time.Duration // how long a handshake waits for a certificate
	renewRatio   float64       // share of a certificate's life before its end in which it is renewed
}

// The pace of a real edge. Let's Encrypt takes 5 failed checks of a name an hour; after
// a first failure certmagic tries its staging directory first, which is not counted.
const (
	lookPause    = 10 * time.Minute
	firstRetry   = time.Minute
	longestRetry = time.Hour
	demandWait   = 5 * time.Second
	renewRatio   = 1. / 3
)

func (p pace) withDefaults() pace {
	if p.look == 0 {
		p.look = lookPause
	}
	if p.firstRetry == 0 {
		p.firstRetry = firstRetry
	}
	if p.longestRetry == 0 {
		p.longestRetry = longestRetry
	}
	if p.demandWait == 0 {
		p.demandWait = demandWait
	}
	if p.renewRatio == 0 {
		p.renewRatio = renewRatio
	}
	return p
}

const (
	// acmeDir is where files are kept, in Config.Dir.
	acmeDir = "acme"
	// alpnProtocol is what an authority's TLS-ALPN-01 handshake asks for.
	alpnProtocol = "acme-tls/1"
	// readTimeout bounds reading a storage that may be far away.
	readTimeout = 5 * time.Second
)

// An acmeSource serves from memory what an authority issued. certmagic obtains, stores
// and renews; when, and for which names, is decided here (manage.go, demand.go).
type acmeSource struct {
	cfg       ACME
	roots     *x509.CertPool
	storage   certmagic.Storage
	issuerKey string
	fallback  *tls.Certificate // shown while there is nothing better
	log       *slog.Logger
	metrics   *instruments
	limiter   *rate.Limiter // of new names on demand

	engine   atomic.Pointer[engine] // nil while run does not run
	requests chan string            // unbuffered: names on demand, from handshakes to run
	stopped  chan struct{}          // closed when run has ended

	mu      sync.RWMutex
	certs   map[string]*tls.Certificate // guarded by mu: in use, by name
	demands map[string]*demand          // guarded by mu
	wake    chan struct{}               // guarded by mu: closed and replaced to end all pauses
}

func openACME(cfg ACME, dir string, fallback *tls.Certificate, log *slog.Logger, m *instruments) (*acmeSource, error) {
	a := &acmeSource{
		cfg: cfg, storage: cfg.Storage, fallback: fallback, log: log, metrics: m,
		limiter:  rate.NewLimiter(rate.Every(demandEvery), demandBurst),
		requests: make(chan string), stopped: make(chan struct{}),
		certs: make(map[string]*tls.Certificate), demands: make(map[string]*demand), wake: make(chan struct{}),
	}
	a.cfg.pace = cfg.pace.withDefaults()
	switch {
	case len(cfg.Domains) == 0:
		return nil, errors.New("certificates: no names to have them for")
	case !cfg.HTTP && !cfg.TLSALPN:
		return nil, errors.New("certificates: no way to answer an authority's challenge")
	case cfg.Staging && cfg.CA != "":
		return nil, errors.New("certificates: staging is Let's Encrypt's, and another authority is named")
	}
	a.cfg.CA = cfg.directory()
	a.cfg.Domains = nil
	for _, name := range cfg.Domains {
		if !slices.Contains(a.cfg.Domains, name) {
			a.cfg.Domains = append(a.cfg.Domains, name)
		}
	}
	if !cfg.OnDemand && slices.ContainsFunc(cfg.Domains, isPattern) {
		return nil, errors.New("certificates: a name with * is for certificates on demand")
	}
	if cfg.RootFile != "" {
		data, err := os.ReadFile(cfg.RootFile)
		if err != nil {
			return nil, fmt.Errorf("certificates: authority's root: %w", err)
		}
		a.roots = x509.NewCertPool()
		if !a.roots.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("certificates: authority's root %q: holds no certificate in PEM", cfg.RootFile)
		}
	}
	if a.storage == nil {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("certificates: %w", err)
		}
		a.storage = &certmagic.FileStorage{Path: dir}
	}
	a.issuerKey = issuerKey(cfg)
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	for _, name := range a.cfg.Domains {
		// An expired one, too: it still says whose the edge is, and the authority may be down.
		if certificate, err := stored(ctx, a.storage, a.issuerKey, name); err == nil && !isPattern(name) {
			a.put(name, certificate)
		}
	}
	return a, nil
}

// errTorn says that what is stored of a certificate does not fit together.
var errTorn = errors.New("certificate and key in storage do not fit together")

func stored(ctx context.Context, storage certmagic.Storage, issuerKey, name string) (*tls.Certificate, error) {
	chain, err := storage.Load(ctx, certmagic.StorageKeys.SiteCert(issuerKey, name))
	if err != nil {
		return nil, err
	}
	key, err := storage.Load(ctx, certmagic.StorageKeys.SitePrivateKey(issuerKey, name))
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, errTorn // the cause may show a part of the key
	}
	return &certificate, nil
}

// put takes a certificate into use.
func (a *acmeSource) put(name string, certificate *tls.Certificate) {
	a.mu.Lock()
	a.certs[name] = certificate
	a.mu.Unlock()
}

func (a *acmeSource) lookup(name string) *tls.Certificate {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.certs[name]
}

// get answers a handshake: with the certificate of the name, obtained now if it may be,
// else with that of the first name, else with the self-signed one. Clients that check
// end the handshake by themselves then, and say why; those that do not, such as a
// balancer's health check, are served.
func (a *acmeSource) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == alpnProtocol {
		return a.challenge(hello)
	}
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if certificate := a.lookup(name); certificate != nil {
		return certificate, nil
	}
	if name != "" && a.cfg.OnDemand && a.allowed(name) {
		if certificate := a.demand(hello.Context(), name); certificate != nil {
			return certificate, nil
		}
	}
	if certificate := a.lookup(a.cfg.Domains[0]); certificate != nil {
		return certificate, nil
	}
	a.metrics.fallbacks.Inc()
	return a.fallback, nil
}

// challenge gives the certificate by which an authority knows this edge, if it has
// asked for one.
func (a *acmeSource) challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	e := a.engine.Load()
	if e == nil || !a.cfg.TLSALPN || !a.allowed(strings.ToLower(hello.ServerName)) {
		return nil, errors.New("no challenge of ours")
	}
	return e.config.GetCertificate(hello)
}

func (a *acmeSource) answerChallenge(w http.ResponseWriter, r *http.Request) bool {
	e := a.engine.Load()
	if e == nil || !a.cfg.HTTP {
		return false
	}
	host := r.Host
	if bare, _, err := net.SplitHostPort(host); err == nil {
		host = bare
	}
	return a.allowed(strings.ToLower(host)) && e.issuer.HandleHTTPChallenge(w, r)
}

func isPattern(name string) bool { return strings.HasPrefix(name, "*.") }

// allowed reports whether a name, in lower case, is one of the configured.
func (a *acmeSource) allowed(name string) bool {
	for _, domain := range a.cfg.Domains {
		if name == domain && !isPattern(domain) {
			return true
		}
		if rest, ok := strings.CutPrefix(domain, "*"); ok {
			label, ok := strings.CutSuffix(name, rest)
			if ok && validLabel(label) {
				return true
			}
		}
	}
	return false
}

// maxLabel is the longest label that DNS carries.
const maxLabel = 63

// validLabel keeps what cannot be a host name from the authority and the disk.
func validLabel(label string) bool {
	if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for _, c := range []byte(label) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func (a *acmeSource) each(show func(string, *x509.Certificate)) {
	a.mu.RLock()
	leaves := make(map[string]*x509.Certificate, len(a.certs))
	for name, certificate := range a.certs {
		leaves[name] = certificate.Leaf
	}
	a.mu.RUnlock()
	for _, name := range a.cfg.Domains {
		if _, ok := leaves[name]; !ok && !a.cfg.OnDemand {
			leaves[name] = nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(leaves)) {
		show(name, leaves[name])
	}
}

// reload ends all pauses: each name is looked at again.
func (a *acmeSource) reload() error {
	a.mu.Lock()
	close(a.wake)
	a.wake = make(chan struct{})
	for _, d := range a.demands {
		if !d.retryAt.IsZero() {
			d.retryAt = time.Unix(0, 0)
		}
	}
	a.mu.Unlock()
	return nil
}
