package sink

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// What to do with hits of unknown outcome that nobody can look up.
const (
	Resend = "resend" // send them again: none is lost, some may be recorded twice
	Hold   = "hold"   // keep them and what stands behind them in their lanes
)

// The defaults of a Config.
const (
	DefaultLanes          = 4
	DefaultBatchHits      = 400
	DefaultBatchBytes     = 512 << 10
	DefaultRequestTimeout = time.Minute
	DefaultServerLimit    = 30 * time.Second
	DefaultGrace          = 30 * time.Second
	DefaultProbeInterval  = 5 * time.Second
	DefaultAheadHits      = 16384
	DefaultAheadBytes     = 32 << 20
)

// startHits is the size that the first batches may have; each delivered batch
// doubles it.
const startHits = 50

// A Config says where and how a Sink delivers. Zero values mean the defaults.
type Config struct {
	// Endpoint is the URL of Matomo's tracker, …/matomo.php.
	Endpoint string
	// Token is our token_auth. Without one nothing is sent.
	Token string
	// DSN is the MySQL account, in go-sql-driver's form; "" = none.
	DSN          string
	TablesPrefix string
	// ReaderDSN is an account on the server that Matomo's archiving reads from, to
	// ask how far it is behind; "" = the server of DSN is asked.
	ReaderDSN string

	Lanes      int // requests in flight at most
	BatchHits  int // hits of one request at most
	BatchBytes int // of one request's body; a larger hit travels alone
	OnUnknown  string

	// ForwardHeader is the header in which Matomo is told the visitor's address
	// with hits that brought a token of their own; "" = none. Matomo believes it
	// only if its proxy_client_headers[] and proxy_ips[] say so.
	ForwardHeader string

	// BulkRequiresAuth repeats Matomo's bulk_requests_require_authentication: then it
	// looks at the token of a bulk as a whole, and not at those of its hits.
	BulkRequiresAuth bool

	// VisitorCookie is the third-party cookie as the edge sets it. With it on,
	// batches are small: [Sink.Check] compares it with Matomo's.
	VisitorCookie VisitorCookie

	// AddressMask is how many bytes of an address Matomo leaves out when it recognises
	// visitors: 0 to 3, or [AutoMask] to ask its database, and 2 where that does not say.
	AddressMask string

	// RequestTimeout bounds one request. It must be longer than Matomo's server
	// lets a request run.
	RequestTimeout time.Duration
	// ServerLimit is how much longer than RequestTimeout a request may still run
	// in Matomo, for example because it waited for a free process. Hits of unknown
	// outcome wait for both.
	ServerLimit time.Duration
	// Grace is how long requests in flight may take after Run's ctx is done.
	Grace         time.Duration
	ProbeInterval time.Duration

	// AheadHits and AheadBytes bound what is in memory of leased hits. A lane that
	// is blocked keeps its share in there.
	AheadHits  int
	AheadBytes int

	// Pause is the pause that an earlier process was in, nil = none. KeepPause is told
	// of every pause, and with nil of its end by an operator, so that it outlives the
	// process; nil = it does not.
	Pause     *Pause
	KeepPause func(*Pause) error

	// Pending gives the number of hits that wait, for the estimate of when the
	// queue is empty; nil = no estimate.
	Pending func() int64

	waits waits // zero = realWaits; only tests of the package set it
}

func (c *Config) setDefaults() {
	set(&c.Lanes, DefaultLanes)
	set(&c.BatchHits, DefaultBatchHits)
	if c.VisitorCookie.On {
		c.BatchHits = min(c.BatchHits, maxCookieHits)
	}
	set(&c.BatchBytes, DefaultBatchBytes)
	set(&c.OnUnknown, Resend)
	set(&c.AddressMask, AutoMask)
	set(&c.RequestTimeout, DefaultRequestTimeout)
	set(&c.ServerLimit, DefaultServerLimit)
	set(&c.Grace, DefaultGrace)
	set(&c.ProbeInterval, DefaultProbeInterval)
	set(&c.AheadHits, DefaultAheadHits)
	set(&c.AheadBytes, DefaultAheadBytes)
	set(&c.waits, realWaits())
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Bounds of the settings.
const (
	maxLanes      = 64
	maxBatchHits  = 10000
	minBatchBytes = 4 << 10
	maxBatchBytes = 64 << 20
)

// validate joins all faults of the settings that are not checked by who uses them.
func (c *Config) validate() error {
	var faults []error
	check := func(name string, value, least, most int) {
		if value < least || value > most {
			faults = append(faults, fmt.Errorf("%s %d: want %d to %d", name, value, least, most))
		}
	}
	check("lanes", c.Lanes, 1, maxLanes)
	check("batch hits", c.BatchHits, 1, maxBatchHits)
	check("batch bytes", c.BatchBytes, minBatchBytes, maxBatchBytes)
	check("hits ahead", c.AheadHits, 1, 1<<24)
	check("bytes ahead", c.AheadBytes, 64<<10, 1<<32)
	if n, err := strconv.Atoi(c.AddressMask); c.AddressMask != AutoMask && (err != nil || n < 0 || n >= maxAddressMask) {
		faults = append(faults, fmt.Errorf("address mask %q: want %s or 0 to 3", c.AddressMask, AutoMask))
	}
	if c.OnUnknown != Resend && c.OnUnknown != Hold {
		faults = append(faults, fmt.Errorf("on-unknown %q: want %s or %s", c.OnUnknown, Resend, Hold))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"request timeout", c.RequestTimeout}, {"server limit", c.ServerLimit}, {"grace", c.Grace}, {"probe interval", c.ProbeInterval}} {
		if d.value < 0 {
			faults = append(faults, fmt.Errorf("%s %v: want a positive time", d.name, d.value))
		}
	}
	return errors.Join(faults...)
}

// doubtWait is how long after it began a request may be running.
func (c *Config) doubtWait() time.Duration { return c.RequestTimeout + c.ServerLimit }
