package proxy

import (
	"bytes"
	"net/http"
	"time"
)

// Files are the files that Matomo's visitors load. Whoever has them may be called
// from any goroutine.
type Files interface {
	// Claims says whether a request that does not track is for such a file, also with
	// [ExposeTrackingOnly]. It must not block.
	Claims(r *http.Request) bool
	// Serve answers it, or has next do so.
	Serve(w http.ResponseWriter, r *http.Request, next http.Handler)
	// Named says whether a path without a query may be a file's. It is asked before the
	// rest of a request is read, so it must be quick.
	Named(path []byte) bool
	// Wire gives a whole answer in HTTP/1.1 with its status, nil when Serve has to. It
	// must not block. The bytes are not changed.
	Wire(q FileQuery) (b []byte, status int)
}

// A FileQuery is a plain GET of a file. Its bytes alias a connection's buffer.
type FileQuery struct {
	Path           []byte
	AcceptEncoding []byte // nil without one, as the next two
	NoneMatch      []byte // If-None-Match
	ModifiedSince  []byte // If-Modified-Since
	Now            time.Time
	Last           bool // the connection ends with the answer
}

// fileHeaders reads the headers of a plain GET of a file: all but those that ask for
// a part of it, or that make the answer depend on what the client has in another way.
func (r *request) fileHeaders(rest []byte, h *head) bool {
	path := r.file.Path
	r.file = FileQuery{Path: path}
	for len(rest) > 0 {
		line := rest
		var ok bool
		if rest, ok = r.parseHeader(line, h); !ok {
			return false
		}
		at := 0
		for line[at] != ':' {
			at++
		}
		name, v := line[:at], trimSpace(line[at+1:len(line)-len(rest)-2])
		var field *[]byte
		switch len(name) {
		case 5:
			if is(name, "range") {
				return false
			}
		case 8:
			if is(name, "if-match") || is(name, "if-range") {
				return false
			}
		case 13:
			if is(name, "if-none-match") {
				field = &r.file.NoneMatch
			}
			if is(name, "authorization") {
				return false
			}
		case 15:
			if is(name, "accept-encoding") {
				field = &r.file.AcceptEncoding
			}
		case 17:
			if is(name, "if-modified-since") {
				field = &r.file.ModifiedSince
			}
		case 19:
			if is(name, "if-unmodified-since") {
				return false
			}
		}
		if field == nil {
			continue
		}
		if *field != nil {
			return false
		}
		*field = v
	}
	return h.length <= 0
}

// serveFile answers a request for a file from memory. It says false when that cannot
// be done, and nothing was written then.
func (c *fastConn) serveFile(h head, tuned *tuned, began time.Time) (ok, last bool, err error) {
	s, r := c.s, &c.request
	now := s.now(time.Now())
	q := r.file
	q.Now, q.Last = now, s.stopping.Load()
	b, status := s.cfg.Files.Wire(q)
	if b == nil {
		return false, false, nil
	}
	if refused, limited := s.overRate(r); limited {
		refused.extra = tuned.extra(r.https)
		c.out = refused.append(c.out[:0], nil, s.date(now), q.Last)
		b, status = c.out, refused.status
		err = c.write(b, nil)
	} else if extra := tuned.extra(r.https); extra != nil {
		var body []byte
		c.out, body = extra.spliced(c.out[:0], b)
		err = c.write(c.out, body)
	} else {
		err = c.write(b, nil)
	}
	s.metrics.code(status)
	if format := tuned.access; format != nil {
		head := bytes.Index(b, []byte("\r\n\r\n")) + len("\r\n\r\n")
		c.logFile(format, status, len(b)-head, began)
	}
	c.start += h.size
	return true, q.Last, err
}
