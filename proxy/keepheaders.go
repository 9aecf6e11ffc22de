package proxy

import "slices"

// maxKeptValue is the longest value that is kept of a header, in bytes. A longer
// one counts as absent: repeated to Matomo it would not fit what web servers take
// of a header, and the hit could never be delivered.
const maxKeptValue = 4 << 10

// wanted says whether a header is one of a list of names in lower case.
func wanted(names []string, name []byte) bool {
	for _, n := range names {
		if is(name, n) {
			return true
		}
	}
	return false
}

// keepHeader notes a header if it is one of [Config.KeepHeaders]. It answers false
// for the second one of a name, which net/http joins.
func (r *request) keepHeader(name, value []byte) bool {
	if !wanted(r.keep, name) {
		return true
	}
	if slices.ContainsFunc(r.kept, func(k hint) bool { return compareNames(k.name, name) == 0 }) {
		return false
	}
	r.kept = append(r.kept, hint{name, value})
	return true
}

// appendKept appends the headers that were found, in the form of
// [hit.Environment.Headers].
func appendKept(b []byte, found []hint, names []string) []byte {
	if len(found) == 0 {
		return b
	}
	for _, name := range names {
		for _, h := range found {
			if is(h.name, name) && len(h.value) > 0 && len(h.value) <= maxKeptValue {
				b = append(append(append(append(b, name...), ": "...), h.value...), '\n')
			}
		}
	}
	return b
}
