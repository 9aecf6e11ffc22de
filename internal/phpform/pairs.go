package phpform

import (
	"bytes"
	"iter"
	"strings"
)

// PHP's limits, as its php.ini has them by default.
const (
	MaxVars  = 1000 // max_input_vars: pairs of one query
	MaxDepth = 64   // max_input_nesting_level: subscripts of one name
)

// A Pair is one name and value of a query.
type Pair struct {
	RawName, RawValue []byte // undecoded bytes as they stand in the input

	// Name is the variable's top-level name as PHP registers it. It points into
	// the input when nothing had to be decoded or changed.
	Name []byte

	Array bool // the name had a subscript, so the variable is an array, or is removed

	// Removed says that the name had more than MaxDepth subscripts: PHP removes
	// the variable that earlier pairs have set. Array is true as well.
	Removed bool
}

// Pairs gives the pairs of a query that PHP registers, and those that remove a
// variable, in order. It does not allocate for a name that stands in the input
// as PHP registers it. The pairs are valid as long as raw is not changed.
func Pairs(raw []byte) iter.Seq[Pair] {
	return func(yield func(Pair) bool) { each(raw, yield) }
}

func each(raw []byte, yield func(Pair) bool) {
	s := scanQuery(raw)
	for s.next() {
		if !yield(s.pair) {
			return
		}
	}
}

// A scanner walks over the pairs of a query or a form body.
type scanner struct {
	raw  []byte
	pos  int  // where the next pair begins
	left int  // pairs that PHP still reads
	form bool // empty pairs count

	pair       Pair
	start, end int // of pair in raw
	value      int // where the value begins; end when there is none
}

func scanQuery(raw []byte) scanner {
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		raw = raw[:i]
	}
	return scanner{raw: raw, left: MaxVars}
}

// scanForm reads as PHP does for a body: it counts empty pairs, and notices that
// there are too many only after it has registered one more.
func scanForm(raw []byte) scanner {
	return scanner{raw: raw, left: MaxVars + 1, form: true}
}

// plainNameByte tells the bytes that stand for themselves in a name. "=" and "&"
// end a name.
var plainNameByte = func() (plain [256]bool) {
	for c := range plain {
		plain[c] = strings.IndexByte("=&%+. [\x00", byte(c)) < 0
	}
	return plain
}()

// next moves to the next pair that changes a variable.
func (s *scanner) next() bool {
	raw := s.raw
	for s.left > 0 && s.pos < len(raw) {
		start := s.pos
		if raw[start] == '&' {
			s.pos++
			if s.form {
				s.left--
			}
			continue
		}
		s.left--

		eq, plain := start, true
		for ; eq < len(raw); eq++ {
			c := raw[eq]
			if plainNameByte[c] {
				continue
			}
			if c == '=' || c == '&' {
				break
			}
			plain = false
		}
		end, value := eq, eq
		if eq < len(raw) && raw[eq] == '=' {
			value++
			if i := bytes.IndexByte(raw[value:], '&'); i >= 0 {
				end = value + i
			} else {
				end = len(raw)
			}
		}
		s.pos = end + 1

		name := raw[start:eq:eq]
		p := Pair{RawName: name, RawValue: raw[value:end:end], Name: name}
		if !plain {
			p.Name, p.Array, p.Removed = register(name)
		}
		if len(p.Name) == 0 {
			continue
		}
		s.pair, s.start, s.value, s.end = p, start, value, end
		return true
	}
	return false
}

// register gives the variable that PHP registers under an undecoded name. The
// name is empty when PHP ignores the pair. It may point into raw.
func register(raw []byte) (name []byte, array, removed bool) {
	decoded := raw
	if bytes.IndexByte(raw, '%') >= 0 || bytes.IndexByte(raw, '+') >= 0 {
		decoded = appendUnescaped(nil, raw)
	}
	if i := bytes.IndexByte(decoded, 0); i >= 0 {
		decoded = decoded[:i]
	}
	decoded = bytes.TrimLeft(decoded, " ")

	open := bytes.IndexByte(decoded, '[')
	if open == 0 {
		return nil, false, false
	}
	if open < 0 {
		open = len(decoded)
	}
	name = mangled(decoded[:open])
	if protected(name, decoded) {
		return nil, false, false
	}
	if open == len(decoded) {
		return name, false, false
	}
	switch depth := subscripts(decoded[open:]); {
	case depth > MaxDepth:
		return name, true, true
	case depth > 0:
		return name, true, false
	}
	name = mangled(decoded)
	if protected(name, decoded) {
		return nil, false, false
	}
	return name, false, false
}

// mangled replaces the bytes that PHP does not allow in names. It copies name
// only when there is one.
func mangled(name []byte) []byte {
	if !bytes.ContainsAny(name, " .[") {
		return name
	}
	name = bytes.Clone(name)
	for i, c := range name {
		if c == ' ' || c == '.' || c == '[' {
			name[i] = '_'
		}
	}
	return name
}

// protected tells a name that looks like a prefixed cookie only since it was
// mangled. PHP ignores it wherever it stands, not only in cookies.
func protected(name, before []byte) bool {
	if len(name) < len("__Host-") || name[0] != '_' {
		return false
	}
	for _, prefix := range [...]string{"__Host-", "__Secure-"} {
		if hasPrefix(name, prefix) && !hasPrefix(before, prefix) {
			return true
		}
	}
	return false
}

func hasPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix
}

// subscripts counts the subscripts at the head of s, which begins with "[". It
// is 0 when the first one is not closed, and stops counting above MaxDepth. A
// later subscript counts as soon as it is opened.
func subscripts(s []byte) int {
	for depth := 1; ; depth++ {
		if depth > MaxDepth {
			return depth
		}
		at := 1
		if at < len(s) && isSpace(s[at]) {
			at++
		}
		// A "]" may stand right behind the space as well as further on.
		end := bytes.IndexByte(s[min(at, len(s)):], ']')
		if end < 0 {
			return depth - 1
		}
		s = s[at+end+1:]
		if len(s) == 0 || s[0] != '[' {
			return depth
		}
	}
}

// isSpace is C's isspace in PHP's locale.
func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }
