package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

// How matomo.js repeats itself (js/piwik.js of Matomo 5: sendXmlHttpRequest,
// sendPostRequestViaSendBeacon, getImage). Only an XMLHttpRequest is watched. Its
// hits stand in the body of a POST to the tracker's address. When it ends without
// a status from 200 to 299, the script sends once more, and never a third time:
//
//   - a single hit as an image: GET of the same address, with "?" or "&" and the
//     same text behind it, in which the first "send_image=0" is "send_image=1";
//   - a hit or a bulk, while the page is being left, as a beacon: a POST of the
//     same bytes.
//
// Beacons and images are never repeated. The text has "r", six random digits, the
// page view's "pv_id", the visitor's "_id", and the visitor's clock to the second.

const (
	// collapseWindow is how long after a hit was stored its retry is known.
	collapseWindow = 10 * time.Second
	// maxFirsts bounds the memory of all requests whose retry could come to some
	// 12 MiB.
	maxFirsts = 1 << 16
)

// A retryKey stands for all that a request and its retry have in common.
type retryKey [sha256.Size]byte

// A first is a request whose retry could come. It has at most one.
type first struct {
	key  retryKey
	next *first // the one that came after it

	// Guarded by the table's mu. Ended is closed when the outcome is known; it is
	// made by who waits for that.
	done, stored bool
	storedAt     time.Time
	ended        chan struct{}
}

// retries knows the requests whose retry could come. All methods may be called
// from any goroutine.
type retries struct {
	known atomic.Int64 // len(byKey), to be read without mu

	mu             sync.Mutex
	byKey          map[retryKey]*first // guarded by mu
	oldest, newest *first              // guarded by mu: all of byKey, and others that wait to be let go
	listed         int                 // guarded by mu: length of that list
}

func newRetries() *retries { return &retries{byKey: make(map[retryKey]*first)} }

// expect says that the retry of a request may come, from here on. The caller must
// call settle.
func (t *retries) expect(key retryKey) *first {
	f := &first{key: key}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byKey[key] = f
	if t.newest == nil {
		t.oldest = f
	} else {
		t.newest.next = f
	}
	t.newest = f
	t.listed++
	t.forgetLocked(time.Now())
	return f
}

// settle tells what became of a request. One that was not stored is forgotten, so
// that its retry is stored.
func (t *retries) settle(f *first, stored bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.done, f.stored, f.storedAt = true, stored, time.Now()
	if !stored && t.byKey[f.key] == f {
		delete(t.byKey, f.key)
		t.known.Store(int64(len(t.byKey)))
	}
	if f.ended != nil {
		close(f.ended)
	}
}

// take gives the request that one with this key repeats, if it is known and was
// not taken before. Its end may have to be awaited.
func (t *retries) take(key retryKey) *first {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byKey[key]
	if f == nil {
		return nil
	}
	now := time.Now()
	delete(t.byKey, key)
	t.forgetLocked(now)
	if f.expired(now) {
		return nil
	}
	if !f.done {
		f.ended = make(chan struct{})
	}
	return f
}

// expired says whether a request was stored too long ago. While it is being
// stored it does not age: its client may have been given up on by a proxy.
func (f *first) expired(now time.Time) bool {
	return f.stored && now.Sub(f.storedAt) >= collapseWindow
}

// forgetLocked lets go of what cannot be taken any more, and of the oldest when
// there are too many.
func (t *retries) forgetLocked(now time.Time) {
	for t.oldest != nil {
		f := t.oldest
		live := t.byKey[f.key] == f
		if live && !f.expired(now) && t.listed <= maxFirsts {
			break
		}
		if live {
			delete(t.byKey, f.key)
		}
		t.oldest = f.next
		t.listed--
	}
	if t.oldest == nil {
		t.newest = nil
	}
	t.known.Store(int64(len(t.byKey)))
}

// wasStored waits until a taken request is stored or is not. It answers the
// context's error when that is done before.
func (f *first) wasStored(ctx context.Context) (bool, error) {
	if f.ended != nil {
		select {
		case <-f.ended:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return f.stored, nil
}

// keepOnce stores the scratch's hits as keep does if they are within the rates,
// unless the request is the retry of one whose hits are stored: that takes from no
// rate. It waits for one that is being stored.
func (e *endpoint) keepOnce(ctx context.Context, r *request, s *scratch) (failure answer, ok bool) {
	switch {
	case e.retries == nil:
	case r.mayBeRetry():
		if e.retries.known.Load() == 0 {
			break
		}
		f := e.retries.take(e.retryKey(r, s))
		if f == nil {
			break
		}
		stored, err := f.wasStored(ctx)
		if err != nil {
			e.metrics.refused.Add(len(s.set.Hits))
			return fault(http.StatusServiceUnavailable, unavailable, r.method == "GET"), false
		}
		if stored {
			e.metrics.collapsed.Add(len(s.set.Hits))
			return answer{}, true
		}
	case r.mayBeRetried() && allIdentified(s.set.Hits):
		if refusal, ok := e.admits(r, s.set.Hits); !ok {
			return refusal, false
		}
		f := e.retries.expect(e.retryKey(r, s))
		defer func() { e.retries.settle(f, ok) }() // also after a panic, then as not stored
		return e.keep(ctx, r, s)
	}
	if refusal, ok := e.admits(r, s.set.Hits); !ok {
		return refusal, false
	}
	return e.keep(ctx, r, s)
}

// What browsers say of a request in Sec-Fetch-Mode, over HTTPS. No script can set
// it.
const (
	modeCORS   = "cors"    // an XMLHttpRequest
	modeNoCORS = "no-cors" // an image, a beacon
)

// mayBeRetried says whether a request could be the first of a pair: a POST that is
// not known to be a beacon. Scripts other than matomo.js leave its body empty.
func (r *request) mayBeRetried() bool {
	return (r.hasForm() || r.method == "POST" && len(r.body) == 0) && (r.fetchMode == nil || string(r.fetchMode) == modeCORS)
}

// mayBeRetry says whether a request could be the second of a pair. A beacon looks
// like the request that it repeats, but for its mode: without one it is stored.
func (r *request) mayBeRetry() bool {
	switch string(r.fetchMode) {
	case modeNoCORS:
		return r.hasForm() || r.isImage()
	case "":
		return r.fetchMode == nil && r.isImage()
	}
	return false
}

func (r *request) isImage() bool {
	return r.method == "GET" && len(r.body) == 0
}

func (r *request) hasForm() bool {
	return len(r.body) > 0 && bodyTypeOf(r.method, r.contentType) == formBody
}

// allIdentified says whether every hit can be told from any other: it has a random
// number of its own, a page view or a visitor, and no rights but ours.
func allIdentified(hits []hit.Hit) bool {
	for i := range hits {
		if hits[i].Form != hit.Query || hits[i].Rights != hit.Ours || !identified(hits[i].Params) {
			return false
		}
	}
	return true
}

func identified(query []byte) bool {
	var random, view, id, cid, user bool
	for pair := range phpform.Pairs(query) {
		given := !pair.Array && len(pair.RawValue) > 0
		switch string(pair.Name) {
		case "r":
			random = given
		case "pv_id":
			view = given
		case "_id":
			id = given
		case "cid":
			cid = given
		case "uid":
			user = given
		}
	}
	return random && (view || id || cid || user)
}

// retryKey hashes a request in the form that its retry as an image has: whether the
// browser tells modes, the visitor's address and browser, then the query and the
// body as one query.
func (e *endpoint) retryKey(r *request, s *scratch) (key retryKey) {
	if s.digest == nil {
		s.digest = sha256.New()
	}
	s.digest.Reset()
	var modes byte
	if r.fetchMode != nil {
		modes = 1
	}
	address := e.clientAddress(r, s.set.Environment.ClientIP)
	b := append(s.preamble[:0], modes, byte(len(address)))
	b = append(b, address...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.userAgent)))
	s.digest.Write(append(b, r.userAgent...))

	text := r.query
	if len(r.body) > 0 {
		if len(r.query) > 0 {
			writeAsQuery(s.digest, r.query)
			s.digest.Write(joint)
		}
		text = r.body
	}
	before, after, found := bytes.Cut(text, withoutImage)
	writeAsQuery(s.digest, before)
	if found {
		s.digest.Write(withImage)
	}
	writeAsQuery(s.digest, after)
	s.preamble = s.digest.Sum(b[:0])
	copy(key[:], s.preamble)
	return key
}

var (
	joint        = []byte("&")
	withoutImage = []byte("send_image=0")
	withImage    = []byte("send_image=1")
)

// writeAsQuery hashes bytes as a browser writes them into the query of an image's
// address (URL Standard, special-query percent-encode set). matomo.js encodes its
// values itself but leaves the apostrophe.
func writeAsQuery(d hash.Hash, b []byte) {
	run := 0
	for i, c := range b {
		if !rewritten[c] {
			continue
		}
		d.Write(b[run:i])
		d.Write(escapes[c][:])
		run = i + 1
	}
	d.Write(b[run:])
}

// rewritten are the bytes that a browser does not leave in a query; escapes is
// what it writes for them.
var rewritten, escapes = queryEscapes()

func queryEscapes() (set [256]bool, text [256][3]byte) {
	const digits = "0123456789ABCDEF"
	set = byteSet(` "#<>'`)
	for c := range set {
		set[c] = set[c] || c < ' ' || c >= 0x7f
		text[c] = [3]byte{'%', digits[c>>4], digits[c&15]}
	}
	return set, text
}
