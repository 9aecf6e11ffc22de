package accesslog

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// MaxLength is how many bytes a line may have, without its line end.
const MaxLength = 1_000_000

// Why a line is no record. Each comes wrapped in a [*ParseError], but for
// ErrDirective and ErrEmpty, which are no faults.
var (
	ErrDirective = errors.New("a directive, not a record")
	ErrEmpty     = errors.New("an empty line")
	ErrTooLong   = errors.New("too long")
	ErrNUL       = errors.New("a NUL byte")
	ErrShort     = errors.New("the line ends early")
	ErrMismatch  = errors.New("not as the format has it")
	ErrTime      = errors.New("an impossible time")
	ErrZone      = errors.New("a local time, and no zone is known")
	ErrRequest   = errors.New("no HTTP request")
	ErrNoFields  = errors.New("no #Fields line before it")
)

// A ParseError says what is wrong with a line and where. Its text holds nothing of
// the line.
type ParseError struct {
	Field string // as the format calls it, "line" for the whole
	Pos   int    // in bytes from the beginning of the line
	Err   error  // one of the package's errors
}

func (e *ParseError) Error() string {
	return fmt.Sprintf("%s at byte %d: %v", e.Field, e.Pos, e.Err)
}

func (e *ParseError) Unwrap() error { return e.Err }

func fault(field string, pos int, err error) error {
	return &ParseError{Field: field, Pos: pos, Err: err}
}

// A Scheme is how a request came in.
type Scheme uint8

// The schemes.
const (
	SchemeUnknown Scheme = iota
	SchemeHTTP
	SchemeHTTPS
)

// A Record is a request as a server has logged it. Slices are nil for what is not
// logged, and nothing may be appended to one. After an error a record holds nothing of
// use.
type Record struct {
	// Time is in UTC. It is when the request began if Start says so, and otherwise
	// when it was logged, which is when it had been answered.
	Time      time.Time
	Start     bool
	Precision time.Duration // of Time, such as [time.Second]

	Host     []byte // with a port, if one is logged
	Remote   []byte // the address of the client as the server saw it, without a port
	Method   []byte
	Target   []byte // path and query, and of "http://host/path" the path alone
	Protocol []byte
	Scheme   Scheme
	Status   int    // 0 if not logged
	Body     []byte // of the request; nginx has it only if it had it in memory

	// Hits is how many hits Sluice stored for the request, by its own log, and -1
	// by any other, or if the request did not track.
	Hits int

	// Inexact says that a value is not what was sent: the server wrote U+FFFD in place
	// of bytes that are not UTF-8, or a header has more values than are read.
	Inexact bool

	headers  []header
	joined   int  // values that were added to the last of them
	complete bool // a header that is not in headers was not sent
	buf      []byte
}

type header struct {
	name  []byte
	value []byte // nil if it was not sent
}

// Header gives a request header's value. It is nil if the log says that the client
// has not sent it, and logged is false if the log does not say. Upper and
// lower case are the same, as are "-" and "_". A header sent more than once has its
// values joined with ", ".
func (r *Record) Header(name string) (value []byte, logged bool) {
	for i := range r.headers {
		if sameName(r.headers[i].name, name) {
			return r.headers[i].value, true
		}
	}
	return nil, r.complete && !isRedacted(name)
}

func (r *Record) reset() {
	r.headers, r.buf = r.headers[:0], r.buf[:0]
	*r = Record{Hits: -1, headers: r.headers, buf: r.buf}
}

// addHeader takes a value for a header.
func (r *Record) addHeader(name, value []byte) {
	r.headers = append(r.headers, header{name, value})
	if sameName(name, "host") && r.Host == nil && len(value) > 0 {
		r.Host = value
	}
}

// maxJoined is how many values of one header are taken. With more a long line would
// take for ever.
const maxJoined = 20

// joinHeader takes one more value of the header that came last, or one of another.
func (r *Record) joinHeader(name, value []byte) {
	if n := len(r.headers); n > 0 && bytes.Equal(r.headers[n-1].name, name) {
		h := &r.headers[n-1]
		if r.joined++; r.joined > maxJoined {
			r.Inexact = true
			return
		}
		at := len(r.buf)
		r.buf = append(append(append(r.buf, h.value...), ", "...), value...)
		h.value = r.buf[at:]
		return
	}
	r.joined = 0
	r.addHeader(name, value)
}

func sameName(a []byte, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i, c := range a {
		if foldName(c) != foldName(b[i]) {
			return false
		}
	}
	return true
}

func foldName(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	case c == '_':
		return '-'
	}
	return c
}
