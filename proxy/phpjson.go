package proxy

import (
	"bytes"
	"iter"
	"unicode/utf16"
	"unicode/utf8"
)

// maxJSONDepth is how many lists and objects PHP 8 nests with its default depth
// of 512.
const maxJSONDepth = 511

// A jsonValue is one value of a document that was found valid, with its text as
// it stands there.
type jsonValue struct {
	kind jsonKind
	raw  []byte
	at   int // where raw begins in the text of what holds the value
}

type jsonKind uint8

const (
	jsonNull jsonKind = iota
	jsonBool
	jsonNumber
	jsonString
	jsonList
	jsonObject
)

// parseJSON reads a whole document by the rules of PHP's json_decode, which are
// stricter than encoding/json's: any invalid UTF-8 or lone surrogate makes all of
// it undecodable, and so does a byte order mark. It reports false where PHP would
// return an error.
func parseJSON(b []byte) (jsonValue, bool) {
	s := jsonScanner{b: b}
	s.space()
	v, ok := s.value(0)
	if !ok {
		return jsonValue{}, false
	}
	s.space()
	return v, s.at == len(b)
}

// trimBulk prepares a body as BulkTracking does: PHP's trim, and no line breaks
// at all, not even within strings. It returns b itself when there are none.
func trimBulk(b []byte) []byte {
	b = bytes.Trim(b, " \t\n\r\x00\v")
	if bytes.IndexByte(b, '\n') < 0 && bytes.IndexByte(b, '\r') < 0 {
		return b
	}
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c != '\n' && c != '\r' {
			out = append(out, c)
		}
	}
	return out
}

// A jsonScanner walks over a document.
type jsonScanner struct {
	b  []byte
	at int
}

func (s *jsonScanner) space() {
	for s.at < len(s.b) {
		switch s.b[s.at] {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return
		}
	}
}

func (s *jsonScanner) peek() byte {
	if s.at < len(s.b) {
		return s.b[s.at]
	}
	return 0
}

// value reads the value that begins here. Depth is the number of lists and
// objects around it; it is bounded, and so is the recursion.
func (s *jsonScanner) value(depth int) (jsonValue, bool) {
	start := s.at
	var k jsonKind
	var ok bool
	switch c := s.peek(); {
	case c == '"':
		k, ok = jsonString, s.text()
	case c == '{':
		k, ok = jsonObject, s.members(depth)
	case c == '[':
		k, ok = jsonList, s.elements(depth)
	case c == '-' || '0' <= c && c <= '9':
		k, ok = jsonNumber, s.number()
	case c == 't':
		k, ok = jsonBool, s.word("true")
	case c == 'f':
		k, ok = jsonBool, s.word("false")
	case c == 'n':
		k, ok = jsonNull, s.word("null")
	}
	if !ok {
		return jsonValue{}, false
	}
	return jsonValue{kind: k, raw: s.b[start:s.at:s.at], at: start}, true
}

func (s *jsonScanner) word(w string) bool {
	if !bytes.HasPrefix(s.b[s.at:], []byte(w)) {
		return false
	}
	s.at += len(w)
	return true
}

// number reads -?(0|[1-9][0-9]*)(.[0-9]+)?([eE][+-]?[0-9]+)?
func (s *jsonScanner) number() bool {
	if s.peek() == '-' {
		s.at++
	}
	if s.peek() == '0' {
		s.at++
	} else if !s.digits() {
		return false
	}
	if s.peek() == '.' {
		s.at++
		if !s.digits() {
			return false
		}
	}
	if s.peek()|0x20 == 'e' {
		s.at++
		if c := s.peek(); c == '+' || c == '-' {
			s.at++
		}
		return s.digits()
	}
	return true
}

func (s *jsonScanner) digits() bool {
	start := s.at
	for s.at < len(s.b) && '0' <= s.b[s.at] && s.b[s.at] <= '9' {
		s.at++
	}
	return s.at > start
}

// text reads a string with its quotes.
func (s *jsonScanner) text() bool {
	s.at++
	for s.at < len(s.b) {
		switch c := s.b[s.at]; {
		case c == '"':
			s.at++
			return true
		case c == '\\':
			if !s.escape() {
				return false
			}
		case c < 0x20:
			return false
		case c < utf8.RuneSelf:
			s.at++
		default:
			r, size := utf8.DecodeRune(s.b[s.at:])
			if r == utf8.RuneError && size == 1 {
				return false
			}
			s.at += size
		}
	}
	return false
}

func (s *jsonScanner) escape() bool {
	if s.at+1 >= len(s.b) {
		return false
	}
	c := s.b[s.at+1]
	s.at += 2
	switch c {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return true
	case 'u':
		r, ok := s.hex4()
		if !ok {
			return false
		}
		if !utf16.IsSurrogate(r) {
			return true
		}
		if s.peek() != '\\' || s.at+1 >= len(s.b) || s.b[s.at+1] != 'u' {
			return false
		}
		s.at += 2
		low, ok := s.hex4()
		return ok && utf16.DecodeRune(r, low) != utf8.RuneError
	}
	return false
}

func (s *jsonScanner) hex4() (r rune, ok bool) {
	if len(s.b)-s.at < 4 {
		return 0, false
	}
	for range 4 {
		d := unhex(s.b[s.at])
		if d < 0 {
			return 0, false
		}
		r = r<<4 | rune(d)
		s.at++
	}
	return r, true
}

func (s *jsonScanner) elements(depth int) bool {
	if depth == maxJSONDepth {
		return false
	}
	s.at++
	s.space()
	if s.peek() == ']' {
		s.at++
		return true
	}
	for {
		s.space()
		if _, ok := s.value(depth + 1); !ok {
			return false
		}
		s.space()
		switch s.peek() {
		case ',':
			s.at++
		case ']':
			s.at++
			return true
		default:
			return false
		}
	}
}

func (s *jsonScanner) members(depth int) bool {
	if depth == maxJSONDepth {
		return false
	}
	s.at++
	s.space()
	if s.peek() == '}' {
		s.at++
		return true
	}
	for {
		s.space()
		if s.peek() != '"' || !s.text() {
			return false
		}
		s.space()
		if s.peek() != ':' {
			return false
		}
		s.at++
		s.space()
		if _, ok := s.value(depth + 1); !ok {
			return false
		}
		s.space()
		switch s.peek() {
		case ',':
			s.at++
		case '}':
			s.at++
			return true
		default:
			return false
		}
	}
}

// children gives the elements of a list, with nil names, or the members of an
// object in order with their decoded names. Equal names come as often as they
// stand there. The value must come from [parseJSON].
func (v jsonValue) children() iter.Seq2[[]byte, jsonValue] {
	return func(yield func([]byte, jsonValue) bool) {
		if v.kind != jsonList && v.kind != jsonObject {
			return
		}
		s := jsonScanner{b: v.raw, at: 1}
		for {
			s.space()
			if c := s.peek(); c == ']' || c == '}' {
				return
			}
			var name []byte
			if v.kind == jsonObject {
				start := s.at
				s.text()
				name = decodeJSONString(s.b[start:s.at])
				s.space()
				s.at++ // the colon
				s.space()
			}
			child, ok := s.value(0)
			if !ok || !yield(name, child) {
				return
			}
			s.space()
			if s.peek() == ',' {
				s.at++
			}
		}
	}
}

// member gives the last member of a name, which is the one that PHP keeps.
func (v jsonValue) member(name string) (found jsonValue, ok bool) {
	if v.kind != jsonObject {
		return jsonValue{}, false
	}
	for n, child := range v.children() {
		if string(n) == name {
			found, ok = child, true
		}
	}
	return found, ok
}

// isEmpty says whether a list or object has no children.
func (v jsonValue) isEmpty() bool {
	for range v.children() {
		return false
	}
	return true
}

// decodeJSONString gives the bytes of a valid string, which it may alias.
func decodeJSONString(quoted []byte) []byte {
	b := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(b, '\\') < 0 {
		return b
	}
	out := make([]byte, 0, len(b))
	s := jsonScanner{b: b}
	for s.at < len(b) {
		if b[s.at] != '\\' {
			out = append(out, b[s.at])
			s.at++
			continue
		}
		c := b[s.at+1]
		s.at += 2
		switch c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, _ := s.hex4() // valid, since the document was
			if utf16.IsSurrogate(r) {
				s.at += 2
				low, _ := s.hex4()
				r = utf16.DecodeRune(r, low)
			}
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, c)
		}
	}
	return out
}

// param gives the value as a parameter of a hit has it.
func (v jsonValue) param() value {
	switch v.kind {
	case jsonString:
		return value{kind: text, raw: decodeJSONString(v.raw)}
	case jsonNumber:
		return value{kind: number, raw: v.raw}
	case jsonBool:
		return value{kind: boolean, raw: v.raw}
	case jsonList, jsonObject:
		return value{kind: array}
	}
	return value{}
}

// readObject fills p from an object of a client's bulk. Its names are taken as
// they are: PHP changes names in queries only.
func (p *params) readObject(v jsonValue) {
	*p = params{}
	for name, child := range v.children() {
		p.count++
		if at, ok := paramOf(name); ok {
			p.values[at] = child.param()
		}
	}
}
