package accesslog

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
)

var (
	// ErrUndetected says that no format fits a log.
	ErrUndetected = errors.New("no known log format")
	// ErrNoLines says that a log has nothing but empty lines and directives.
	ErrNoLines = errors.New("there are no lines")
)

// enoughPercent is how many of a log's lines must be in a format. The others may be of
// another format before a server was told to write this one, or cut.
const enoughPercent = 90

// Detect finds the format of a log from its first lines, of which a few hundred are
// enough. It is the most specific one that nine of ten lines are in. Empty lines,
// directives, and lines that no format could be, for a NUL in them or their length, do not
// count, and a line with a request that is none or with a local time is in the format.
// The error wraps [ErrUndetected] and tells of the format that most lines are in, and
// what is wrong with the first that is not; or it wraps [ErrNoLines], too.
func Detect(sample [][]byte) (*Format, error) {
	var nearest trial
	var name string
	for _, n := range names {
		f, err := Named(n)
		if err != nil {
			return nil, err
		}
		t := f.try(sample)
		if t.lines > 0 && t.fit*100 >= t.lines*enoughPercent && t.fit > t.faulty {
			t.describe(f)
			return f, nil
		}
		if t.fit > nearest.fit || name == "" {
			nearest, name = t, n
		}
	}
	switch {
	case nearest.lines == 0 && nearest.damaged == nil:
		return nil, fmt.Errorf("%w: %w", ErrUndetected, ErrNoLines)
	case nearest.lines == 0:
		return nil, fmt.Errorf("%w: no line could be of any, the first because of %w", ErrUndetected, nearest.damaged)
	case nearest.fit == 0:
		return nil, fmt.Errorf("%w: none of the first %d lines is in any", ErrUndetected, nearest.lines)
	case nearest.first == nil:
		return nil, fmt.Errorf("%w: of the first %d lines %d have no request", ErrUndetected, nearest.lines, nearest.faulty)
	}
	return nil, fmt.Errorf("%w: the nearest is %s with %d of the first %d lines, and of the others the first has %w", ErrUndetected, name, nearest.fit, nearest.lines, nearest.first)
}

// A trial is how a format fits a log.
type trial struct {
	lines  int
	fit    int
	faulty int   // of those that fit; have no good request or no good time
	first  error // of those that do not fit
	// damaged is what is wrong with the first that could be of no format.
	damaged error

	records int // that were read
	starts  int
	local   bool
	body    bool
	headers []string // in every record
}

func (f *Format) try(sample [][]byte) trial {
	var t trial
	var r Record
	p := f.NewParser()
	for _, s := range sample {
		if isDirective(s) {
			_ = p.Parse(s, &r) // may change the columns, and is no record
			continue
		}
		err := p.Parse(s, &r)
		if errors.Is(err, ErrEmpty) {
			continue
		}
		if errors.Is(err, ErrNUL) || errors.Is(err, ErrTooLong) {
			t.damaged = cmp.Or(t.damaged, err)
			continue
		}
		t.lines++
		switch {
		case err == nil:
			t.fit++
			t.note(&r)
		case errors.Is(err, ErrZone):
			t.fit++
			t.local = true
		case errors.Is(err, ErrRequest):
			t.fit++
			t.faulty++
		case t.first == nil:
			t.first = err
		}
	}
	return t
}

func isDirective(s []byte) bool { return bytes.HasPrefix(s, []byte("#")) }

// note keeps what is in all records.
func (t *trial) note(r *Record) {
	t.records++
	if r.Start {
		t.starts++
	}
	t.body = t.body || r.Body != nil
	if t.records == 1 {
		for i := range r.headers {
			t.headers = append(t.headers, headerName(string(r.headers[i].name)))
		}
		return
	}
	kept := t.headers[:0]
	for _, name := range t.headers {
		if _, logged := r.Header(name); logged {
			kept = append(kept, name)
		}
	}
	t.headers = kept
}

// describe tells a format that has learnt nothing of itself what the log has.
func (t *trial) describe(f *Format) {
	if _, ok := f.grammar.(*template); ok {
		return
	}
	f.holds.start = f.holds.start || (t.records > 0 && t.starts == t.records)
	f.holds.local = f.holds.local || t.local
	f.holds.body = t.body
	if f.holds.headers == nil {
		f.holds.headers = t.headers
	}
}
