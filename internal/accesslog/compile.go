package accesslog

import (
	"errors"
	"fmt"
	"strings"
)

// ErrSpec says that something is not a description of a format that can be read.
var ErrSpec = errors.New("not a log format that can be read")

// A piece of a description is a text, or a field if its text is empty.
type piece struct {
	text string
	item item
	pos  int // in the description
}

// cut takes a format's text apart: what stands between the marks, and what field makes of
// that which begins with one, with its size in bytes.
func cut(text string, mark byte, field func(pos int) ([]piece, int, error)) (pieces []piece, err error) {
	for pos := 0; pos < len(text); {
		made, size := []piece(nil), strings.IndexByte(text[pos:], mark)
		switch {
		case size < 0:
			size = len(text) - pos
			fallthrough
		case size > 0:
			made = []piece{{text: text[pos : pos+size]}}
		default:
			if made, size, err = field(pos); err != nil {
				return nil, err
			}
		}
		for i := range made {
			made[i].pos = pos
		}
		pieces = append(pieces, made...)
		pos += size
	}
	return pieces, nil
}

// compile makes a format of a description's pieces.
func compile(name string, pieces []piece, e escaping) (*Format, error) {
	t := &template{escape: e}
	pieces = merge(pieces)
	if len(pieces) > 0 {
		t.head = []byte(pieces[0].text)
	}
	for i, p := range pieces {
		if p.text != "" {
			continue
		}
		it := p.item
		if i+1 < len(pieces) {
			next := &pieces[i+1]
			if next.text != "" {
				it.until = []byte(next.text)
			} else if !it.meets(&next.item) {
				return nil, fmt.Errorf("%s: nothing stands between %s and %s at byte %d: %w", name, it.name, next.item.name, next.pos, ErrSpec)
			}
		}
		before := ""
		if i > 0 {
			before = pieces[i-1].text
		}
		it.quoted = strings.HasSuffix(before, `"`) && strings.HasPrefix(string(it.until), `"`)
		it.list = !it.quoted && it.list && strings.HasPrefix(string(it.until), " ")
		t.items = append(t.items, it)
	}
	holds, err := t.holdings()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &Format{name: name, grammar: t, holds: holds}, nil
}

// merge makes one of texts that follow each other, and of fields of no use.
func merge(pieces []piece) []piece {
	var merged []piece
	for _, p := range pieces {
		if len(merged) > 0 {
			last := &merged[len(merged)-1]
			if p.text != "" && last.text != "" {
				last.text += p.text
				continue
			}
			if p.text == "" && last.text == "" && p.item.kind == fieldOpaque && last.item.kind == fieldOpaque {
				continue
			}
		}
		merged = append(merged, p)
	}
	return merged
}

// meets says whether a field's end can be told without a text between it and the next.
func (it *item) meets(next *item) bool {
	switch {
	case it.kind == fieldCommon || it.kind == fieldTime || it.kind == fieldIsArgs:
		return true
	case next.kind == fieldTarget || next.kind == fieldPath:
		it.stop = '/'
	case next.kind == fieldQuery:
		it.stop = '?'
	case next.kind == fieldIsArgs:
		it.stop = '?'
		it.argsFollow = it.kind == fieldPath
	default:
		return false
	}
	return true
}

// holdings says what is in a line, and whether it is enough.
func (t *template) holdings() (holdings, error) {
	var h holdings
	var start, end stampPart
	target, took := false, false
	for i := range t.items {
		it := &t.items[i]
		switch it.kind {
		case fieldRequest, fieldTarget, fieldPath:
			target = true
		case fieldDuration:
			took = true
		case fieldBody:
			h.body = true
		case fieldHeader:
			h.headers = append(h.headers, headerName(string(it.header)))
		case fieldCommon, fieldTime:
			if it.end {
				end |= it.tells()
			} else {
				start |= it.tells()
			}
		}
	}
	whole := func(p stampPart) bool { return (&stamp{has: p}).logged() }
	used := start
	if !whole(start) {
		used = end
	}
	switch {
	case !whole(used):
		return h, fmt.Errorf("it has no time with a date: %w", ErrSpec)
	case !target:
		return h, fmt.Errorf("it has no request: %w", ErrSpec)
	}
	h.start = whole(start) || took
	h.local = used&(hasEpoch|hasZone) == 0
	return h, nil
}

// tells says which parts of a time a field has.
func (it *item) tells() stampPart {
	if it.kind == fieldCommon {
		return hasEpoch
	}
	var p stampPart
	for _, part := range it.layout {
		switch part.op {
		case 'Y':
			p |= hasYear
		case 'm', 'b':
			p |= hasMonth
		case 'd', 'e':
			p |= hasDay
		case 'H':
			p |= hasHour
		case 'z':
			p |= hasZone
		case opEpoch, opEpochMilli, opEpochMicro, opSecondsDot, opISO:
			p |= hasEpoch
		}
	}
	return p
}

// headerName gives a header's name as HTTP has it, in lower case.
func headerName(s string) string {
	return strings.ReplaceAll(strings.ToLower(s), "_", "-")
}
