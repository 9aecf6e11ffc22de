package assets

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/durable"
)

// Defaults and bounds of [Config].
const (
	DefaultRevalidate = 30 * time.Second
	DefaultMaxSize    = 256 << 20

	// defaultMoment lies between two looks at bytes that are new: longer than Matomo
	// takes to write a file.
	defaultMoment = time.Second
	// maxFiles bounds the files of all paths together. An instance has two trackers,
	// some images and a few containers a site.
	maxFiles = 4096
	// maxPending bounds paths that are asked for the first time at once.
	maxPending = 64
	// refusedFor is how long a path that is no file is passed on without a look.
	refusedFor = 10 * time.Second
	maxRefused = 4096
)

// Config is what a [Cache] needs to know.
type Config struct {
	Dir    string   // where copies are kept
	Origin *url.URL // whose files they are, with its base path
	// Off passes everything on and keeps nothing.
	Off bool

	Tunables

	FetchTimeout time.Duration // of one answer of the origin; 15 s when 0
	Moment       time.Duration // between two equal looks; a second when 0
	Transport    http.RoundTripper
	Now          func() time.Time
}

// Tunables is what can be changed while a [Cache] runs.
type Tunables struct {
	Revalidate time.Duration // how often a file in use is compared with the origin's; [DefaultRevalidate] when 0
	MaxStale   time.Duration // how old a copy may be that is served; 0 is no limit
	MaxSize    int64         // bytes on disk and in memory together; [DefaultMaxSize] when 0
}

// A Cache holds copies of the origin's files.
type Cache struct {
	// Set by New.
	cfg     Config
	log     *slog.Logger
	metrics *instruments
	client  *http.Client
	disk    disk
	optOut  *memory
	jobs    chan *file    // files to be looked at; one that finds no room is looked at later
	encode  chan *version // versions to be encoded, as above

	tuned   atomic.Pointer[Tunables]
	table   atomic.Pointer[map[string]*file] // replaced under mu
	stopped atomic.Bool                      // no worker is there any more

	mu      sync.Mutex
	pending map[string]*file     // asked for the first time
	refused map[string]time.Time // passed on until then
	downAt  time.Time            // when the origin did not answer, zero while it does
	retryAt time.Time            // when it is tried again
}

// A file is a path with its copies.
type file struct {
	path string
	kind kind

	serving atomic.Pointer[version] // pin, or else live
	asked   atomic.Int64            // when a client last asked, Unix nanoseconds
	checked atomic.Int64            // when the origin last confirmed live, Unix nanoseconds

	// busy is held while the origin is asked and what it said is carried out, so that
	// one file's copies change one after the other.
	busy sync.Mutex

	mu       sync.Mutex
	live     *version
	pin      *version
	previous *described // nil without one
	saved    bool       // live is on the disk
	touched  time.Time  // when the disk was last told of checked

	candidate   string    // hash of bytes that were seen once
	candidateAt time.Time // when they were first seen
	tries       int       // looks that saw other bytes than the look before
	missingAt   time.Time // when the origin first said that the file is gone
	rejected    string    // hash of what was last refused, so that it is logged once
	due         time.Time // when the next look is
	attempted   time.Time // when the last look was
	flight      *flight
}

// A described version is on the disk only.
type described struct {
	hash string
	meta meta
	size int64
}

// A flight is one look that any number of requests wait for.
type flight struct {
	done   chan struct{} // closed by the worker
	urgent atomic.Bool   // somebody waits, so that a second look must follow at once
}

// New checks cfg and returns a Cache that holds nothing.
func New(cfg Config, log *slog.Logger, set *metrics.Set) (*Cache, error) {
	switch {
	case cfg.Origin == nil:
		return nil, errors.New("assets: no address of the origin")
	case cfg.Origin.Scheme != "http" && cfg.Origin.Scheme != "https":
		return nil, fmt.Errorf("assets: origin's scheme %q, want http or https", cfg.Origin.Scheme)
	case cfg.Origin.Host == "":
		return nil, errors.New("assets: the origin has no host")
	case cfg.Dir == "":
		return nil, errors.New("assets: no directory")
	}
	cfg.Tunables = cfg.Tunables.withDefaults()
	setDefault(&cfg.FetchTimeout, fetchTimeout)
	setDefault(&cfg.Moment, defaultMoment)
	if cfg.Revalidate < 0 || cfg.MaxStale < 0 || cfg.MaxSize < 0 || cfg.FetchTimeout < 0 || cfg.Moment < 0 {
		return nil, errors.New("assets: a limit is negative")
	}
	if cfg.Transport == nil {
		cfg.Transport = newTransport()
	}
	const waiting = 256 // looks that wait for a worker
	c := &Cache{
		cfg: cfg, log: log.With("part", "assets"),
		client: &http.Client{
			Transport: cfg.Transport,
			// What moves elsewhere is not the origin's.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		disk: disk{dir: cfg.Dir, write: durable.WriteFile},
		jobs: make(chan *file, waiting), encode: make(chan *version, waiting),
		pending: make(map[string]*file), refused: make(map[string]time.Time),
	}
	c.tuned.Store(&cfg.Tunables)
	c.table.Store(new(make(map[string]*file)))
	c.metrics = newInstruments(set, c)
	c.optOut = newMemory(c)
	return c, nil
}

func (t Tunables) withDefaults() Tunables {
	setDefault(&t.Revalidate, DefaultRevalidate)
	setDefault(&t.MaxSize, DefaultMaxSize)
	return t
}

// Tune puts t into effect, none of which may be negative. It may be called at any time.
func (c *Cache) Tune(t Tunables) {
	t = t.withDefaults()
	c.tuned.Store(&t)
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c *Cache) now() time.Time {
	if c.cfg.Now != nil {
		return c.cfg.Now()
	}
	return time.Now()
}

// Load reads what earlier processes kept. Damaged copies are set aside. A directory
// that cannot be used is logged, and everything then lives in memory. Call Load once,
// before anything else.
func (c *Cache) Load() {
	if c.cfg.Off {
		return
	}
	files := make(map[string]*file)
	var total int64
	err := c.disk.load(func(s storedCopy) {
		if s.role == rememberRole {
			c.optOut.restore(s)
			return
		}
		k := kindOf(s.meta.Path)
		if total += int64(len(s.body)); k == none || k == preview || total > c.tuned.Load().MaxSize {
			return
		}
		f := files[s.meta.Path]
		if f == nil {
			f = &file{path: s.meta.Path, kind: k}
			files[s.meta.Path] = f
		}
		f.restore(s, c.now())
	}, func(name string, err error) {
		c.metrics.damaged.Inc()
		c.log.Warn("a damaged copy is set aside and fetched anew", "file", filepath.Join(c.cfg.Dir, name), "err", err)
	})
	if err != nil {
		c.diskFailed(err)
	}
	for path, f := range files {
		if !f.settle(c) {
			delete(files, path)
		}
	}
	c.table.Store(&files)
	if len(files) > 0 {
		c.log.Info("copies of Matomo's files read", "files", len(files))
	}
}

// restore takes a copy from the disk into its role.
func (f *file) restore(s storedCopy, now time.Time) {
	switch s.role {
	case liveRole:
		f.live, f.saved = newVersion(f.kind, s.meta, s.body), true
		f.checked.Store(min(s.checked.UnixNano(), now.UnixNano()))
		f.asked.Store(f.checked.Load())
	case pinRole:
		f.pin = newVersion(f.kind, s.meta, s.body)
		f.pin.pinned = true
	case previousRole:
		f.previous = &described{hashOf(s.body), s.meta, int64(len(s.body))}
	}
}

// settle makes a file whole after all its copies were read: a crash may have left the
// previous one only. It answers false for a file with nothing to serve.
func (f *file) settle(c *Cache) bool {
	if f.live == nil && f.pin == nil && f.previous != nil {
		m, body, err := c.disk.get(f.path, previousRole)
		if err != nil {
			return false
		}
		f.live, f.previous = newVersion(f.kind, m, body), nil
		f.checked.Store(m.Fetched)
	}
	f.publishLocked()
	return f.serving.Load() != nil
}

// publishLocked makes what is to be served what is served.
func (f *file) publishLocked() {
	v := f.live
	if f.pin != nil {
		v = f.pin
	}
	f.serving.Store(v)
}

// Run looks at the origin's files and encodes copies until ctx is done, and returns
// nil then. Call it once, after [Cache.Load].
func (c *Cache) Run(ctx context.Context) error {
	if c.cfg.Off {
		<-ctx.Done()
		return nil
	}
	var wg sync.WaitGroup
	for range workers {
		// It ends with ctx.
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case f := <-c.jobs:
					c.fly(ctx, f)
				}
			}
		})
	}
	// It ends with ctx, one encoding later at most.
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case v := <-c.encode:
				c.makeEncodings(ctx, v)
			}
		}
	})
	tick := time.NewTicker(min(250*time.Millisecond, c.cfg.Revalidate/4))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			c.stopped.Store(true)
			wg.Wait()
			c.client.CloseIdleConnections()
			c.abandon()
			return nil
		case <-tick.C:
			c.schedule()
			c.makeRoom()
		}
	}
}

// abandon ends the looks that no worker takes any more.
func (c *Cache) abandon() {
	for {
		select {
		case f := <-c.jobs:
			c.land(f)
		default:
			return
		}
	}
}

// find gives the file of a path, nil when there is no copy.
func (c *Cache) find(path string) *file { return (*c.table.Load())[path] }

// files gives all files.
func (c *Cache) files() map[string]*file { return *c.table.Load() }

// add puts a file into the table.
func (c *Cache) add(f *file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, f.path)
	old := c.files()
	if old[f.path] == f {
		return
	}
	table := maps.Clone(old)
	table[f.path] = f
	c.table.Store(&table)
}

// drop takes a file out of the table.
func (c *Cache) drop(f *file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	table := maps.Clone(c.files())
	if table[f.path] == f {
		delete(table, f.path)
		c.table.Store(&table)
	}
}

// makeRoom forgets the files that nobody has asked for the longest, until the rest is
// within the limits. Pinned ones stay, and so do those that are being looked at.
func (c *Cache) makeRoom() {
	files := c.files()
	sizes := make(map[*file]int64, len(files))
	var total int64
	for _, f := range files {
		sizes[f] = f.size()
		total += sizes[f]
	}
	c.metrics.bytes.Store(total)
	if total <= c.tuned.Load().MaxSize && len(files) <= maxFiles {
		return
	}
	byAge := slices.SortedFunc(maps.Keys(sizes), func(a, b *file) int { return cmp.Compare(a.asked.Load(), b.asked.Load()) })
	left := len(files)
	for _, f := range byAge {
		if total <= c.tuned.Load().MaxSize && left <= maxFiles {
			return
		}
		if f.pinned() || !f.busy.TryLock() {
			continue
		}
		c.drop(f)
		if err := c.disk.remove(f.path, liveRole, previousRole); err != nil {
			c.diskFailed(err)
		}
		f.busy.Unlock()
		total -= sizes[f]
		left--
		c.metrics.evicted.Inc()
	}
}

// size is what a file takes on disk and in memory together, in bytes.
func (f *file) size() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var n int64
	for _, v := range []*version{f.live, f.pin} {
		if v != nil {
			n += int64(len(v.identity.body)) + v.size()
		}
	}
	if f.previous != nil {
		n += f.previous.size
	}
	return n
}

func (f *file) pinned() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pin != nil
}

// diskFailed notes that a copy could not be kept. It is still served.
func (c *Cache) diskFailed(err error) {
	if c.metrics.diskErrors.Get() == 0 {
		c.log.Warn("copies of Matomo's files cannot be stored; they are served from memory and lost at a restart", "err", err)
	}
	c.metrics.diskErrors.Inc()
}
