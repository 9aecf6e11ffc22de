package phpform

import "strings"

// Merge gives a query that PHP reads as $_GET + $_POST of a request with the
// query get and the form body post: a variable of the query hides the body's of
// the same name, arrays as a whole. It returns get itself when the body adds
// nothing, and new bytes otherwise.
//
// PHP limits each side on its own, but what it reads from one query is limited to
// MaxVars pairs. When both sides have more together, pairs that later ones
// replace are left out; when that is not enough, the result is cut to its first
// MaxVars pairs. Several pairs of one array count each.
func Merge(get, post []byte) []byte {
	if len(post) == 0 {
		return get
	}
	query, body := Parse(get), parse(scanForm(post))
	added := body.entries[:0]
	for _, e := range body.entries {
		if query.Kind(e.name) == Missing {
			added = append(added, e)
		}
	}
	if len(added) == 0 {
		return get
	}
	body.entries = added
	if len(query.entries)+len(body.entries) > MaxVars {
		query.entries = unreplaced(query.entries)
		body.entries = unreplaced(body.entries)
	}
	dst := make([]byte, 0, len(get)+len(post)+1)
	left := MaxVars
	dst, left = query.appendPairs(dst, left)
	dst, _ = body.appendPairs(dst, left)
	return dst
}

// appendPairs appends the pairs as they stand in the input, up to left of them,
// and returns how many more may follow. A raw NUL, which ends a query, is encoded.
func (f *Form) appendPairs(dst []byte, left int) ([]byte, int) {
	for _, e := range f.entries[:min(left, len(f.entries))] {
		if len(dst) > 0 {
			dst = append(dst, '&')
		}
		pair := f.raw[e.start:e.end]
		if strings.IndexByte(pair, 0) >= 0 {
			pair = strings.ReplaceAll(pair, "\x00", "%00")
		}
		dst = append(dst, pair...)
		left--
	}
	return dst, left
}

// unreplaced drops the entries whose effect a later entry of the same name
// undoes, and the removals, which then have nothing to remove. It changes the
// slice's elements.
func unreplaced(entries []entry) []entry {
	decided := make(map[string]bool) // names that a later scalar or removal has settled
	at := len(entries)
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		if decided[e.name] {
			continue
		}
		decided[e.name] = e.kind != Array
		if e.kind == Missing {
			continue
		}
		at--
		entries[at] = e
	}
	return entries[at:]
}
