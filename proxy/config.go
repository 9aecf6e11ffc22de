package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"sluice/internal/hit"
)

// An Appender stores request sets durably. The real one is the queue.
//
// Append returns nil only when the sets are on disk, synced; it stores all of
// them or none. It must not keep the sets, nor anything that they point to,
// after it has returned: the proxy uses the memory again. It may be called from
// any number of goroutines.
//
// An error whose method TooLarge() bool answers true says that no queue of this
// kind could ever take the sets. One whose method Uncertain() bool answers true
// says that they may be on disk all the same, so they must not go to Matomo on
// another way.
type Appender interface {
	Append(ctx context.Context, sets ...*hit.RequestSet) error
}

// SiteAnswer says what is known of a site.
type SiteAnswer uint8

const (
	// SiteUnknown: nobody could say; the hit is taken.
	SiteUnknown SiteAnswer = iota
	// SiteExists: Matomo has or had the site.
	SiteExists
	// SiteAbsent: Matomo's own list, read after the question was put, does not
	// have the site.
	SiteAbsent
)

// Sites says whether a site exists. It answers [SiteUnknown] unless it asked
// Matomo's own list after the call began; only [SiteExists] may come from memory.
// It is called for every hit, from any goroutine, so the common case must not
// block.
type Sites interface {
	Lookup(ctx context.Context, site int64) SiteAnswer
}

// What [Config.Expose] may say.
const (
	ExposeAll          = "all"           // everything that is not tracking goes to Matomo
	ExposeTrackingOnly = "tracking-only" // everything that is not tracking is 404
)

// Listeners are sockets that somebody else has opened already. One that is not nil
// takes the place of binding Config.Listen or Config.ListenHTTP, which must be set all
// the same. Run closes them.
type Listeners struct{ HTTPS, HTTP *net.TCPListener }

// Config is what a [Server] needs to know. Fields without a remark are required
// or off when empty.
type Config struct {
	Listen     string // address of the HTTPS listener; "" is off
	ListenHTTP string // address of the plain listener; "" is off

	Listeners Listeners

	TLSConfig *tls.Config // required with Listen

	// AnswerChallenge answers an authority's HTTP-01 request on the plain listener and
	// reports true, or writes nothing and reports false when the token is not one of
	// this edge's: then the request is Matomo's. Nil knows no tokens.
	AnswerChallenge func(w http.ResponseWriter, r *http.Request) bool

	Upstream *url.URL       // Matomo's address, with its base path
	Trusted  []netip.Prefix // peers whose forwarding headers are believed
	Expose   string         // [ExposeAll] when empty
	Host     string         // [HostClient] when empty
	Way      Upstream       // to Matomo; zero fields take their defaults

	// AddressHeader is a header of the operator's own from which Matomo learns the
	// visitor's address, besides X-Forwarded-For; "" is none. Nobody else may send it.
	AddressHeader string

	HTTP      string // [HTTPServe] when empty
	HTTPSPort int    // to which [HTTPRedirect] sends; 443 when zero

	// See [Tunables].
	ProxyProtocol   []netip.Prefix
	ResponseHeaders []Header
	HSTS            time.Duration
	Limits          Limits // zero fields take their defaults

	RateLimits RateLimits
	AccessLog  AccessLog

	// MaskAddress is how many bytes of a visitor's address, 0 to 4, are set to zero
	// before it is stored, by the rules of Matomo's own anonymizing: of an IPv6
	// address 64, 80, 104 or all bits. With more than 0 no hit goes past the queue,
	// since it would bring Matomo the whole address.
	MaskAddress int

	// CollapseRetries stores a hit once that matomo.js sends again because it did not
	// get the answer.
	CollapseRetries bool

	CookieIgnoreName  string // matomo_ignore when empty
	CookieVisitorName string // _pk_uid when empty

	// ThirdPartyCookie is Matomo's use_third_party_id_cookie: the visitor's id is
	// read from the cookie, and answers to hits that are stored set it. The other
	// three repeat Matomo's cookie_path, cookie_domain and cookie_expire.
	ThirdPartyCookie bool
	CookiePath       string
	CookieDomain     string
	CookieExpire     time.Duration // 393 days when zero, as in Matomo

	// DoNotTrack is Matomo's option to heed the headers DNT and X-Do-Not-Track.
	// Hits of such visitors are stored all the same, since a plugin may decide
	// otherwise, but are answered as Matomo does.
	DoNotTrack bool

	// KeepHeaders names further headers that are stored with a hit, in lower case
	// and sorted. None may be one that the proxy reads itself.
	KeepHeaders []string

	// CustomTimestampAge is the age at which a custom time needs a token; a day
	// when zero, as in Matomo.
	CustomTimestampAge time.Duration

	// OpenTracking is Matomo's tracking_requests_require_authentication = 0: hits may say
	// another address, place or time without a token.
	OpenTracking bool
	// BulkRequiresAuth is Matomo's bulk_requests_require_authentication = 1: a bulk
	// without a token is refused, and all hits of one need it.
	BulkRequiresAuth bool

	ShutdownDelay time.Duration // how long to go on serving after the stop signal
	Grace         time.Duration // how long requests in hand may take after that

	Now func() time.Time // the wall clock; time.Now when nil

	// PassThrough says whether a hit of a site may go straight to Matomo, past
	// the queue, when the queue refuses it. Nil is never.
	PassThrough func(site int64) bool

	// Ready says why hits could not be stored now. Nil is always ready.
	Ready func() error

	// Files are Matomo's public files. Nil passes requests for them on like all others.
	Files Files
}

const (
	defaultCustomTimestampAge = 24 * time.Hour
	defaultCookieExpire       = 393 * 24 * time.Hour
	defaultHTTPSPort          = 443
	maxPort                   = 1<<16 - 1
)

// withDefaults fills in what the caller left open and names every fault.
func (c Config) withDefaults() (Config, error) {
	t, err := c.tunables().withDefaults()
	c.Trusted, c.Limits, c.RateLimits, c.AccessLog = t.Trusted, t.Limits, t.RateLimits, t.AccessLog
	c.ProxyProtocol, c.ResponseHeaders, c.HSTS = t.ProxyProtocol, t.ResponseHeaders, t.HSTS
	setDefault(&c.CustomTimestampAge, defaultCustomTimestampAge)
	setDefault(&c.Expose, ExposeAll)
	setDefault(&c.Host, HostClient)
	setDefault(&c.HTTP, HTTPServe)
	setDefault(&c.HTTPSPort, defaultHTTPSPort)
	setDefault(&c.CookieIgnoreName, "matomo_ignore")
	setDefault(&c.CookieVisitorName, "_pk_uid")
	setDefault(&c.CookieExpire, defaultCookieExpire)

	var wayErr error
	c.Way, wayErr = c.Way.withDefaults()
	faults := []error{err, wayErr}
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("proxy: "+format, args...))
	}
	if c.Listen != "" && c.TLSConfig == nil {
		fault("the HTTPS listener needs a certificate")
	}
	if c.Listeners.HTTPS != nil && c.Listen == "" || c.Listeners.HTTP != nil && c.ListenHTTP == "" {
		fault("a socket for a listener that is off")
	}
	switch {
	case c.Upstream == nil:
		fault("no address of Matomo")
	case c.Upstream.Scheme != "http" && c.Upstream.Scheme != "https":
		fault("address of Matomo: scheme %q, want http or https", c.Upstream.Scheme)
	case c.Upstream.Host == "":
		fault("address of Matomo: no host")
	}
	if c.Expose != ExposeAll && c.Expose != ExposeTrackingOnly {
		fault("expose %q, want %q or %q", c.Expose, ExposeAll, ExposeTrackingOnly)
	}
	if c.Host != HostUpstream && c.Host != HostClient {
		fault("host %q, want %q or %q", c.Host, HostUpstream, HostClient)
	}
	if c.HTTP != HTTPServe && c.HTTP != HTTPRedirect {
		fault("plain listener %q, want %q or %q", c.HTTP, HTTPServe, HTTPRedirect)
	}
	if c.HTTPSPort < 1 || c.HTTPSPort > maxPort {
		fault("port %d of HTTPS, want 1 to %d", c.HTTPSPort, maxPort)
	}
	if c.MaskAddress < 0 || c.MaskAddress > maxMask {
		fault("%d bytes of addresses to mask, want 0 to %d", c.MaskAddress, maxMask)
	}
	for _, name := range c.KeepHeaders {
		var h headers
		if h.field([]byte(name)) != nil || isHint([]byte(name)) || strings.ToLower(name) != name {
			fault("header %q cannot be kept", name)
		}
	}
	if !slices.IsSorted(c.KeepHeaders) {
		fault("the headers to keep are not sorted")
	}
	for _, d := range []time.Duration{c.CustomTimestampAge, c.CookieExpire, c.ShutdownDelay, c.Grace} {
		if d < 0 {
			fault("a duration is negative")
			break
		}
	}
	return c, errors.Join(faults...)
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}
