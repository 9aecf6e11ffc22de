package phpform

import (
	"bytes"
	"hash/maphash"
)

// Kind says what PHP holds under a name.
type Kind uint8

// The kinds of a variable.
const (
	Missing Kind = iota
	Scalar
	Array
)

// String gives the kind's name, for logs and tests.
func (k Kind) String() string {
	switch k {
	case Missing:
		return "missing"
	case Scalar:
		return "scalar"
	case Array:
		return "array"
	}
	return "unknown"
}

// A Form is what PHP makes of one query. It is never changed after [Parse].
type Form struct {
	raw     string  // what the entries point into
	entries []entry // in order of the input; the last of a name decides
	index   *index  // nil when the entries are few
}

// An entry is one pair of a form.
type entry struct {
	name              string // as PHP registers it
	start, value, end int    // of the pair in raw; the value begins at value
	kind              Kind   // Missing when the pair removes the variable
}

// Parse reads a query as PHP does. It keeps no part of raw.
func Parse(raw []byte) *Form { return parse(scanQuery(raw)) }

func parse(s scanner) *Form {
	f := &Form{raw: string(s.raw)}
	if len(s.raw) == 0 {
		return f
	}
	f.entries = make([]entry, 0, min(bytes.Count(s.raw, []byte("&"))+1, s.left))
	for s.next() {
		e := entry{start: s.start, value: s.value, end: s.end, kind: Scalar}
		switch {
		case s.pair.Removed:
			e.kind = Missing
		case s.pair.Array:
			e.kind = Array
		}
		if len(s.pair.Name) == len(s.pair.RawName) && string(s.pair.Name) == f.raw[s.start:s.start+len(s.pair.RawName)] {
			e.name = f.raw[s.start : s.start+len(s.pair.RawName)]
		} else {
			e.name = string(s.pair.Name)
		}
		f.entries = append(f.entries, e)
	}
	if len(f.entries) > maxLinear {
		f.index = newIndex(f.entries)
	}
	return f
}

// find gives the pair that decides about name, or nil. That is the last one: a
// pair replaces whatever of another kind stands under its name, and an array
// stays an array when more is put into it.
func (f *Form) find(name string) *entry {
	if f.index != nil {
		return f.index.find(f.entries, name)
	}
	for i := len(f.entries) - 1; i >= 0; i-- {
		if f.entries[i].name == name {
			return &f.entries[i]
		}
	}
	return nil
}

// Kind says what PHP holds under name.
func (f *Form) Kind(name string) Kind {
	if e := f.find(name); e != nil {
		return e.kind
	}
	return Missing
}

// Raw gives the decoded bytes of a scalar, and "" for the other kinds.
func (f *Form) Raw(name string) (string, Kind) {
	e := f.find(name)
	if e == nil {
		return "", Missing
	}
	if e.kind != Scalar {
		return "", e.kind
	}
	return unescapeString(f.raw[e.value:e.end]), Scalar
}

// String reads a parameter as Matomo reads one of type string with the default
// "": it is "" when the variable is missing or an array. The value is not escaped
// for HTML; the package comment says what that means.
func (f *Form) String(name string) string {
	value, _ := f.Raw(name)
	return value
}

// Int reads a parameter as Matomo reads one of type int. It is def when the
// variable is missing, empty or an array, and when its value is not loosely equal
// to the integer that PHP casts it to: "1", " 01", "+1 ", "1.0" and "1e0" are 1,
// while "1a", "0x1", "1.5" and integers beyond 64 bits are def.
func (f *Form) Int(name string, def int64) int64 {
	value, kind := f.Raw(name)
	if kind != Scalar {
		return def
	}
	if i, ok := looseInt(value); ok {
		return i
	}
	return def
}

// Empty is PHP's empty for a string.
func Empty(s string) bool { return s == "" || s == "0" }

// maxLinear is how many entries are searched one by one: up to there that costs
// less than building an index.
const maxLinear = 64

// An index finds entries by name in constant time. It keeps a form of a thousand
// pairs from costing a thousand comparisons for each name that is looked up.
type index struct {
	seed  maphash.Seed
	slots []uint16 // number of an entry plus one; 0 is free
}

// newIndex takes at most MaxVars+1 entries, which fit the slots' type.
func newIndex(entries []entry) *index {
	size := 2 * maxLinear
	for size < 2*len(entries) {
		size *= 2
	}
	x := &index{seed: maphash.MakeSeed(), slots: make([]uint16, size)}
	for i := range entries {
		*x.slot(entries, entries[i].name) = uint16(i + 1)
	}
	return x
}

// slot gives the slot that holds name, or the free one where it belongs. There
// is always a free one, since half of the slots are.
func (x *index) slot(entries []entry, name string) *uint16 {
	mask := uint64(len(x.slots) - 1)
	for at := maphash.String(x.seed, name) & mask; ; at = (at + 1) & mask {
		slot := &x.slots[at]
		if *slot == 0 || entries[*slot-1].name == name {
			return slot
		}
	}
}

func (x *index) find(entries []entry, name string) *entry {
	if slot := *x.slot(entries, name); slot != 0 {
		return &entries[slot-1]
	}
	return nil
}
