package assets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Errors of orders.
var (
	// ErrNoCopy: nothing is kept of the path.
	ErrNoCopy = errors.New("there is no copy of this path")
	// ErrNoVersion: the path has no such version.
	ErrNoVersion = errors.New("there is no such version")
	// ErrOff: no copies are kept.
	ErrOff = errors.New("no copies are kept: assets.cache is off")
)

// PreviousVersion stands for the version before the live one in [Cache.Pin].
const PreviousVersion = "previous"

// purgeTime bounds a purge of everything.
const purgeTime = time.Minute

// An Asset is what [Cache.List] tells of a file.
type Asset struct {
	Path      string
	Kind      string
	Hash      string // of what is served
	Bytes     int    // as it is
	Smallest  int    // in the smallest encoding
	Fetched   time.Time
	Checked   time.Time // when the origin last confirmed it; zero when it never did
	Stale     bool
	Asked     time.Time // when a client last asked
	Live      string    // hash of what the origin has; "" when it has none
	Previous  string    // hash of the version before, "" without one
	Pinned    bool
	Encodings []string
}

// List gives all files, by path.
func (c *Cache) List() []Asset {
	files := c.files()
	list := make([]Asset, 0, len(files))
	now := c.now()
	for _, path := range slices.Sorted(maps.Keys(files)) {
		f := files[path]
		v, stale := c.state(f, now)
		if v == nil {
			continue
		}
		a := Asset{
			Path: path, Kind: kindNames[f.kind], Hash: v.hash, Bytes: len(v.identity.body), Smallest: len(v.identity.body),
			Fetched: time.Unix(0, v.meta.Fetched).UTC(), Stale: stale > 0, Pinned: v.pinned,
		}
		if at := f.checked.Load(); at != 0 {
			a.Checked = time.Unix(0, at).UTC()
		}
		if at := f.asked.Load(); at != 0 {
			a.Asked = time.Unix(0, at).UTC()
		}
		if reps := v.encoded.Load(); reps != nil {
			for _, r := range *reps {
				a.Smallest = min(a.Smallest, len(r.body))
				a.Encodings = append(a.Encodings, r.encoding)
			}
		}
		f.mu.Lock()
		if f.live != nil {
			a.Live = f.live.hash
		}
		if f.previous != nil {
			a.Previous = f.previous.hash
		}
		f.mu.Unlock()
		list = append(list, a)
	}
	return list
}

// A Purged is what became of one file.
type Purged struct {
	Path    string
	Outcome string // unchanged, replaced, deleted, refused, failed, unstable, unsure or absent
	Hash    string // of what is served now
}

// Purge compares files with the origin's at once, byte by byte: that of path, or all
// when path is "". A copy is replaced only by what passes the checks and was seen
// twice, so that no visitor is left without one. It blocks until that is done, at
// most a minute, and returns [ErrNoCopy] or [ErrOff] when there is nothing to compare.
func (c *Cache) Purge(ctx context.Context, path string) ([]Purged, error) {
	if c.cfg.Off {
		return nil, ErrOff
	}
	ctx, cancel := context.WithTimeout(ctx, purgeTime)
	defer cancel()
	c.mu.Lock()
	delete(c.refused, path)
	if path == "" {
		clear(c.refused)
	}
	c.mu.Unlock()
	paths := []string{path}
	if path == "" {
		paths = slices.Sorted(maps.Keys(c.files()))
	} else if c.find(path) == nil {
		return nil, fmt.Errorf("purge %q: %w", path, ErrNoCopy)
	}
	results := make([]Purged, len(paths))
	var wg sync.WaitGroup
	turns := make(chan struct{}, workers)
	for i, path := range paths {
		turns <- struct{}{}
		// It ends with the looks, which ctx bounds.
		wg.Go(func() {
			results[i] = c.purge(ctx, path)
			<-turns
		})
	}
	wg.Wait()
	return results, nil
}

// purge looks at one file until it is sure of it.
func (c *Cache) purge(ctx context.Context, path string) Purged {
	f := c.find(path)
	if f == nil {
		return Purged{Path: path, Outcome: string(absent)}
	}
	got := failed
	moment := min(urgentMoment, c.cfg.Moment)
	for range maxTries {
		if got = c.check(ctx, f, checking{force: true, moment: moment}); got != unsure {
			break
		}
		wait(ctx, moment)
	}
	p := Purged{Path: path, Outcome: string(got)}
	if v := f.serving.Load(); v != nil {
		p.Hash = v.hash
	}
	return p
}

// Pin has a version served whatever the origin has, until [Cache.Unpin] and over
// restarts. which is [PreviousVersion], the beginning of a hash, or "" for what is
// served now. It returns an error when the pin could not be stored.
func (c *Cache) Pin(path, which string) (hash string, err error) {
	f, err := c.fileFor(path)
	if err != nil {
		return "", err
	}
	f.busy.Lock()
	defer f.busy.Unlock()
	v, err := c.version(f, which)
	if err != nil {
		return "", fmt.Errorf("pin %q: %w", path, err)
	}
	if err := c.disk.put(v.meta, pinRole, v.identity.body); err != nil {
		c.diskFailed(err)
		return "", fmt.Errorf("pin %q: %w", path, err)
	}
	v.pinned = true
	f.mu.Lock()
	f.pin = v
	f.publishLocked()
	f.mu.Unlock()
	c.wantEncodings(v)
	c.log.Warn("a version of a file is pinned and served whatever Matomo has; it stays so until it is unpinned", "path", path, "hash", v.hash)
	return v.hash, nil
}

// version finds a version of a file and gives it as one of its own.
func (c *Cache) version(f *file, which string) (*version, error) {
	f.mu.Lock()
	live, pin, previous := f.live, f.pin, f.previous
	f.mu.Unlock()
	is := func(hash string) bool { return which != "" && strings.HasPrefix(hash, which) }
	for _, v := range []*version{pin, live} {
		if v != nil && (which == "" || is(v.hash)) {
			return newVersion(f.kind, v.meta, v.identity.body), nil
		}
	}
	if previous == nil || which != PreviousVersion && !is(previous.hash) {
		return nil, ErrNoVersion
	}
	m, body, err := c.disk.get(f.path, previousRole)
	if err != nil {
		return nil, err
	}
	v := newVersion(f.kind, m, body)
	if v.hash != previous.hash {
		return nil, ErrNoVersion
	}
	return v, nil
}

// Unpin ends a pin. A path that is not pinned is left as it is.
func (c *Cache) Unpin(path string) error {
	f, err := c.fileFor(path)
	if err != nil {
		return err
	}
	f.busy.Lock()
	defer f.busy.Unlock()
	if !f.pinned() {
		return nil
	}
	if err := c.disk.remove(path, pinRole); err != nil {
		c.diskFailed(err)
		return fmt.Errorf("unpin %q: %w", path, err)
	}
	f.mu.Lock()
	f.pin = nil
	f.publishLocked()
	gone := f.live == nil
	f.mu.Unlock()
	if gone {
		c.drop(f)
	}
	c.log.Info("a file is no longer pinned", "path", path)
	return nil
}

func (c *Cache) fileFor(path string) (*file, error) {
	if c.cfg.Off {
		return nil, ErrOff
	}
	f := c.find(path)
	if f == nil {
		return nil, fmt.Errorf("%q: %w", path, ErrNoCopy)
	}
	return f, nil
}
