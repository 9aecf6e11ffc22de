package assets

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// staleHeader tells how many seconds ago the origin last confirmed what an answer
// holds. It is absent while that is as it should be.
const staleHeader = "X-Sluice-Stale"

// hashDigits is how much of a version's SHA-256 names it, in hex digits.
const hashDigits = 16

// A version is one content of a file. It does not change once it is made, but for its
// encodings, which come later.
type version struct {
	kind kind
	meta meta
	hash string // of the body, hashDigits long
	// settled is false when a change may not show in the validators.
	settled bool
	pinned  bool // served whatever the origin has

	identity *rep
	encoded  atomic.Pointer[[]*rep] // smallest first; nil until they are made
	queued   atomic.Bool            // they are being made, or it was tried
}

// A rep is a version in one encoding, with everything that its answers have in
// common.
type rep struct {
	encoding string // "" is identity
	etag     string
	modified string // Last-Modified, or ""
	body     []byte
	header   http.Header
	bare     http.Header // of an answer without body
	ok, same []byte      // heads of 200 and 304 without what each answer has for itself
	wires    [2]atomic.Pointer[wire]
}

// A wire is a whole answer in HTTP/1.1 that is good for one second.
type wire struct {
	second   int64
	ok, same []byte
}

// maxWire bounds the bodies of which whole answers are kept, in bytes.
const maxWire = 256 << 10

func hashOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])[:hashDigits]
}

func newVersion(k kind, m meta, body []byte) *version {
	v := &version{kind: k, meta: m, hash: hashOf(body), settled: true}
	v.identity = v.rep("", body)
	return v
}

// tags tell encodings apart in strong ETags.
var tags = map[string]string{"": "", "gzip": "-gz", "br": "-br", "zstd": "-zst"}

// rep makes the version's answers in one encoding.
func (v *version) rep(encoding string, body []byte) *rep {
	r := &rep{encoding: encoding, etag: `"` + v.hash + tags[encoding] + `"`, modified: v.meta.LastModified, body: body}
	type line struct{ name, value string }
	common := []line{{"Cache-Control", v.meta.CacheControl}, {"Etag", r.etag}}
	if r.modified != "" {
		common = append(common, line{"Last-Modified", r.modified})
	}
	if compressible(v.kind, v.meta.Path) {
		common = append(common, line{"Vary", "Accept-Encoding"})
	}
	full := append(common[:len(common):len(common)], line{"Content-Type", contentType(v.kind, v.meta.Path)}, line{"X-Content-Type-Options", "nosniff"})
	if encoding != "" {
		full = append(full, line{"Content-Encoding", encoding})
	} else {
		full = append(full, line{"Accept-Ranges", "bytes"})
	}
	if v.kind == script {
		full = append(full, line{"Content-Disposition", "inline; filename=matomo.js"})
	}
	if hasSuffix(v.meta.Path, ".svg") {
		// An image shown on its own must run nothing, whatever the check has missed.
		full = append(full, line{"Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox"})
	}
	full = append(full, line{"Content-Length", strconv.Itoa(len(body))})

	head := func(first string, lines []line) ([]byte, http.Header) {
		b, h := []byte(first), make(http.Header, len(lines))
		for _, l := range lines {
			b = append(append(append(append(b, l.name...), ": "...), l.value...), "\r\n"...)
			h[l.name] = []string{l.value}
		}
		return b, h
	}
	r.ok, r.header = head("HTTP/1.1 200 OK\r\n", full)
	r.same, r.bare = head("HTTP/1.1 304 Not Modified\r\n", common)
	return r
}

// A moment is when an answer is given, and how old what it holds is.
type moment struct {
	now   time.Time
	stale time.Duration // 0 when the origin confirmed it in time
	last  bool          // the connection ends with the answer
}

// wire gives a whole answer. The bytes must not be changed.
func (r *rep) wire(m moment, notModified bool) []byte {
	second := m.now.Unix()
	slot := &r.wires[0]
	if m.stale > 0 {
		slot = &r.wires[1]
	}
	w := slot.Load()
	if m.last || w == nil || w.second != second {
		w = &wire{second: second, ok: r.assemble(r.ok, r.body, m), same: r.assemble(r.same, nil, m)}
		if !m.last {
			slot.Store(w)
		}
	}
	if notModified {
		return w.same
	}
	return w.ok
}

func (r *rep) assemble(head, body []byte, m moment) []byte {
	const room = 128 // date, age, end of the connection
	b := make([]byte, 0, len(head)+len(body)+room)
	b = append(b, head...)
	if m.stale > 0 {
		b = strconv.AppendInt(append(b, staleHeader+": "...), int64(m.stale/time.Second), 10)
		b = append(b, "\r\n"...)
	}
	b = m.now.UTC().AppendFormat(append(b, "Date: "...), http.TimeFormat)
	b = append(b, "\r\n"...)
	if m.last {
		b = append(b, "Connection: close\r\n"...)
	}
	return append(append(b, "\r\n"...), body...)
}

// size is what a version takes of memory, in bytes, whole answers included.
func (v *version) size() int64 {
	n := int64(len(v.identity.body))
	if reps := v.encoded.Load(); reps != nil {
		for _, r := range *reps {
			const withAnswer = 2
			n += withAnswer * int64(len(r.body))
		}
	}
	return n
}
