package assets

import (
	"net/http"
	"strconv"
	"time"
)

// A Query is a plain GET of which only this much matters. Its bytes are not kept.
type Query struct {
	Path           []byte
	AcceptEncoding []byte // nil without one, as the next two
	NoneMatch      []byte // If-None-Match
	ModifiedSince  []byte // If-Modified-Since
	Now            time.Time
	Last           bool // the connection ends with the answer
}

// Wire gives a whole answer in HTTP/1.1, with its status, when that can be given from
// memory at once; nil leaves the request to [Cache.Serve]. The bytes must not be
// changed. It neither blocks nor asks anybody.
func (c *Cache) Wire(q Query) (b []byte, status int) {
	if c.cfg.Off {
		return nil, 0
	}
	f := (*c.table.Load())[string(q.Path)]
	if f == nil {
		return nil, 0
	}
	v, stale := c.state(f, q.Now)
	if v == nil || c.tooOld(stale) || stale > 0 && c.worthALook(f, q.Now) {
		return nil, 0
	}
	rep := v.choose(string(q.AcceptEncoding))
	if len(rep.body) > maxWire {
		return nil, 0
	}
	f.note(q.Now)
	c.wantEncodings(v)
	if stale > 0 {
		c.metrics.stale.Inc()
	} else {
		c.metrics.hit.Inc()
	}
	m := moment{q.Now, stale, q.Last}
	if rep.matches(string(q.NoneMatch), string(q.ModifiedSince)) {
		return rep.wire(m, true), http.StatusNotModified
	}
	return rep.wire(m, false), http.StatusOK
}

// Names says whether a path is a file's of which there may be a copy.
func Names(path []byte) bool {
	k := kindOf(path)
	return k != none && k != preview
}

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }
