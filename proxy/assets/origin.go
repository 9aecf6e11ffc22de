package assets

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	dialTimeout = 5 * time.Second
	// fetchTimeout bounds one answer of the origin with its body.
	fetchTimeout = 15 * time.Second
	// maxHeaderValue bounds a header of the origin that is kept, in bytes.
	maxHeaderValue = 256
	// workers is how many files are asked for at the same time: enough to look at a
	// thousand within a minute, too few to be a burden.
	workers = 8
)

// newTransport makes the way to the origin. It has no cookies, and nothing on it is
// decompressed: bytes are kept as they come.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  fetchTimeout,
		MaxIdleConnsPerHost:    workers,
		IdleConnTimeout:        time.Minute,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// An answer is what the origin says about a file.
type answer struct {
	status int
	mime   string
	body   []byte // of a 200
	meta   meta
	// settled is false when the file may change once more without its validators
	// showing it: they have a resolution of a second.
	settled bool
}

var (
	errTooLarge = errors.New("the file is too large")
	errEncoded  = errors.New("the origin encodes the file although it was asked not to")
	errUpstream = errors.New("the origin's own upstream does not answer")
)

// fetch asks the origin for a file, with the validators of known unless that is nil.
// No redirect is followed. A body that is shorter than announced is an error.
func (c *Cache) fetch(ctx context.Context, path string, k kind, known *meta) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.FetchTimeout)
	defer cancel()
	target := *c.cfg.Origin
	target.Path, target.RawPath, target.RawQuery, target.Fragment = strings.TrimSuffix(target.Path, "/")+path, "", "", ""
	target.User = nil
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", path, err)
	}
	req.Header.Set("User-Agent", "Sluice")
	req.Header.Set("Accept-Encoding", "identity")
	if known != nil {
		setIf(req.Header, "If-None-Match", known.ETag)
		setIf(req.Header, "If-Modified-Since", known.LastModified)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", path, err)
	}
	defer resp.Body.Close()
	a := &answer{status: resp.StatusCode, mime: resp.Header.Get("Content-Type")}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return nil, fmt.Errorf("ask for %s: %w: status %d", path, errUpstream, resp.StatusCode)
	default:
		return a, nil
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, fmt.Errorf("ask for %s: %w", path, errEncoded)
	}
	limit := sizeLimit(k)
	if resp.ContentLength > limit {
		return nil, fmt.Errorf("ask for %s: %w", path, errTooLarge)
	}
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1)); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(a.body)) > limit {
		return nil, fmt.Errorf("ask for %s: %w", path, errTooLarge)
	}
	now := c.now()
	a.meta = meta{
		Path: path, ETag: kept(resp.Header.Get("Etag")), LastModified: keptTime(resp.Header.Get("Last-Modified")),
		CacheControl: cacheControl(resp.Header), Fetched: now.UnixNano(),
	}
	a.settled = settled(resp.Header, now)
	return a, nil
}

func setIf(h http.Header, name, value string) {
	if value != "" {
		h.Set(name, value)
	}
}

// kept gives a header's value if it can be sent on as it is, else "".
func kept(v string) string {
	if len(v) > maxHeaderValue {
		return ""
	}
	for i := range len(v) {
		if v[i] < ' ' || v[i] > '~' {
			return ""
		}
	}
	return v
}

func keptTime(v string) string {
	t, err := http.ParseTime(v)
	if err != nil {
		return ""
	}
	return t.UTC().Format(http.TimeFormat)
}

// defaultCacheControl is what Matomo's own nginx configuration says of its files.
const defaultCacheControl = "public, max-age=3600"

// cacheControl gives what clients are told about keeping the file: the origin's own
// words. An Expires, which is a moment, becomes the time that it leaves.
func cacheControl(h http.Header) string {
	said := kept(strings.Join(h.Values("Cache-Control"), ", "))
	lower := strings.ToLower(said)
	for _, word := range []string{"max-age", "no-store", "no-cache"} {
		if strings.Contains(lower, word) {
			return said
		}
	}
	expires, err := http.ParseTime(h.Get("Expires"))
	date, dateErr := http.ParseTime(h.Get("Date"))
	if err != nil || dateErr != nil {
		return cmp.Or(said, defaultCacheControl)
	}
	if said != "" {
		said += ", "
	}
	return fmt.Sprintf("%smax-age=%d", said, max(0, int64(expires.Sub(date)/time.Second)))
}

// settled says whether a change after this answer would show in the validators.
func settled(h http.Header, now time.Time) bool {
	modified, err := http.ParseTime(h.Get("Last-Modified"))
	if err != nil {
		return true
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return now.Sub(modified) >= 2*time.Second
}
