package accesslog

import (
	"errors"
	"fmt"
	"time"
)

// A Record is one request as a server has logged it. Its bytes are good until the next
// line is parsed.
type Record struct {
	// Time is when the request came, or was logged where the format does not tell.
	Time   time.Time
	Host   []byte // nil if not logged
	Remote []byte // the client's address, without a port
	Method []byte
	Target []byte // path and query, byte for byte as the client sent them
	Status int    // 0: not logged
	HTTPS  bool
	// Body is the request's, if Format.HasBody.
	Body []byte
	// Stored is how many hits Sluice itself has stored for the request, -1 if the log is
	// not its own.
	Stored int

	names  []string // of headers that the format holds, in lower case
	values [][]byte // nil: absent
	text   []byte   // of what had to be unescaped
}

// Headers calls f for each header that the request had, with its name in lower case.
func (r *Record) Headers(f func(name string, value []byte)) {
	for i, v := range r.values {
		if len(v) > 0 {
			f(r.names[i], v)
		}
	}
}

// Why a line is no record. Nothing of a line is in an error: it holds visitors' data.
var (
	// ErrDirective: the line says something about the lines that follow.
	ErrDirective = errors.New("directive")
	// ErrShape: the line is not of the format.
	ErrShape = errors.New("not of the format")
	// ErrTime: its time cannot be read, or cannot be.
	ErrTime = errors.New("its time is none")
	// ErrRequest: its request line is none.
	ErrRequest = errors.New("its request is none")
)

// A fieldError says where in a line something is wrong.
type fieldError struct {
	kind  error
	field string
	at    int // byte of the line, from 0
}

func (e *fieldError) Error() string {
	return fmt.Sprintf("%v: %s at byte %d", e.kind, e.field, e.at)
}

func (e *fieldError) Unwrap() error { return e.kind }

// A Format parses lines. It is for one goroutine and one file: [Format.Fresh] gives
// another.
type Format struct {
	// Name is how users call it.
	Name string
	// Headers are the names, in lower case, of the request's headers that it holds.
	Headers []string
	// HasBody: it holds the bodies of requests.
	HasBody bool
	// Ends: its times are those of the end of requests.
	Ends bool
	// Zone is that of times that do not say theirs; nil where all do.
	Zone *time.Location

	parse func(f *Format, line []byte, r *Record) error
	spec  []token
	clock clock
}

// Fresh gives a format that knows nothing of the lines parsed before.
func (f *Format) Fresh() *Format {
	g := *f
	g.clock = clock{}
	return &g
}

// Parse reads a line, without its end. With an error r holds nothing.
func (f *Format) Parse(line []byte, r *Record) error {
	values, text := r.values, r.text
	*r = Record{Stored: -1, names: f.Headers, values: values[:0], text: text[:0]}
	for range f.Headers {
		r.values = append(r.values, nil)
	}
	err := f.parse(f, line, r)
	switch {
	case err != nil:
		return err
	case r.Time.Year() < minYear || r.Time.Year() > maxYear:
		return &fieldError{ErrTime, "year", 0}
	case len(r.Method) == 0 || len(r.Target) == 0:
		return &fieldError{ErrRequest, "request", 0}
	}
	return nil
}

// Years of requests that can be: Matomo is of 2007, and takes no hit of the future.
const (
	minYear = 2007
	maxYear = 2199
)

func (f *Format) has(header string) int {
	for i, h := range f.Headers {
		if h == header {
			return i
		}
	}
	return -1
}

// isRequest reports whether an error is about the request that a line tells of, and not
// about the line.
func isRequest(err error) bool { return errors.Is(err, ErrRequest) }
