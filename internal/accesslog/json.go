package accesslog

import "bytes"

// A jsonScan reads one object. It takes what is in objects within it as if it stood
// in the outer one, under the names of both with a dot between them.
type jsonScan struct {
	s       []byte
	path    []byte // in lower case
	grammar *jsonGrammar
	r       *Record
	found   [jsonFields]jsonValue
	scan    scan
}

type jsonValue struct {
	raw    []byte // between the quotes, if it is a text
	text   bool
	pos    int
	rank   uint8 // of the key; the lowest is taken
	inside bool
}

// maxDepth is how deep objects and lists may be within each other.
const maxDepth = 20

// read reads the whole line.
func (j *jsonScan) read(g *jsonGrammar, s []byte, r *Record) error {
	*j = jsonScan{s: s, path: j.path[:0], grammar: g, r: r}
	pos := j.blank(0)
	if s[min(pos, len(s)-1)] != '{' {
		return fault("line", 0, ErrMismatch)
	}
	pos, err := j.object(pos, 0)
	if err != nil {
		return fault("line", pos, err)
	}
	if pos = j.blank(pos); pos != len(s) {
		return fault("line", pos, ErrMismatch)
	}
	return nil
}

func (j *jsonScan) blank(pos int) int {
	for pos < len(j.s) && (j.s[pos] == ' ' || j.s[pos] == '\t') {
		pos++
	}
	return pos
}

// expect passes a character with the blanks around it.
func (j *jsonScan) expect(pos int, c byte) (int, error) {
	if pos = j.blank(pos); pos == len(j.s) {
		return pos, ErrShort
	}
	if j.s[pos] != c {
		return pos, ErrMismatch
	}
	return j.blank(pos + 1), nil
}

// object reads an object that begins at pos. Positions are those of faults if there
// are any, here and below.
func (j *jsonScan) object(pos, depth int) (int, error) {
	if depth > maxDepth {
		return pos, ErrMismatch
	}
	j.grammar.enter(j)
	outer := len(j.path)
	pos, err := j.expect(pos, '{')
	if err != nil {
		return pos, err
	}
	if pos < len(j.s) && j.s[pos] == '}' {
		return pos + 1, nil
	}
	for {
		key, next, err := j.text(pos)
		if err != nil {
			return next, err
		}
		if pos, err = j.expect(next, ':'); err != nil {
			return pos, err
		}
		if outer > 0 {
			j.path = append(j.path, '.')
		}
		for _, c := range key {
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			j.path = append(j.path, c)
		}
		if pos, err = j.value(pos, key, depth); err != nil {
			return pos, err
		}
		j.path = j.path[:outer]
		if pos = j.blank(pos); pos < len(j.s) && j.s[pos] == '}' {
			return pos + 1, nil
		}
		if pos, err = j.expect(pos, ','); err != nil {
			return pos, err
		}
	}
}

// list reads a list. Each value in it counts as one of the list's key.
func (j *jsonScan) list(pos int, key []byte, depth int) (int, error) {
	if depth > maxDepth {
		return pos, ErrMismatch
	}
	pos, err := j.expect(pos, '[')
	if err != nil {
		return pos, err
	}
	if pos < len(j.s) && j.s[pos] == ']' {
		return pos + 1, nil
	}
	for {
		if pos, err = j.value(pos, key, depth); err != nil {
			return pos, err
		}
		if pos = j.blank(pos); pos < len(j.s) && j.s[pos] == ']' {
			return pos + 1, nil
		}
		if pos, err = j.expect(pos, ','); err != nil {
			return pos, err
		}
	}
}

func (j *jsonScan) value(pos int, key []byte, depth int) (int, error) {
	if pos == len(j.s) {
		return pos, ErrShort
	}
	switch j.s[pos] {
	case '{':
		return j.object(pos, depth+1)
	case '[':
		return j.list(pos, key, depth+1)
	case '"':
		raw, next, err := j.text(pos)
		if err != nil {
			return next, err
		}
		j.grammar.leaf(j, key, jsonValue{raw: raw, text: true, pos: pos})
		return next, nil
	}
	end := pos
	for end < len(j.s) && bytes.IndexByte([]byte(",]} \t"), j.s[end]) < 0 {
		end++
	}
	switch {
	case end == len(j.s):
		return end, ErrShort
	case !isLiteral(j.s[pos:end]):
		return pos, ErrMismatch
	}
	j.grammar.leaf(j, key, jsonValue{raw: j.s[pos:end], pos: pos})
	return end, nil
}

// isLiteral says whether a value without quotes could be one. nginx writes a hyphen for
// a number that it does not have.
func isLiteral(s []byte) bool {
	switch string(s) {
	case "true", "false", "null", "-":
		return true
	}
	for _, c := range s {
		if !isDigit(c) && bytes.IndexByte([]byte("+-.eE"), c) < 0 {
			return false
		}
	}
	return len(s) > 0
}

// text reads what is between quotes.
func (j *jsonScan) text(pos int) ([]byte, int, error) {
	if pos == len(j.s) {
		return nil, pos, ErrShort
	}
	if j.s[pos] != '"' {
		return nil, pos, ErrMismatch
	}
	for end := pos + 1; ; end++ {
		n := bytes.IndexByte(j.s[end:], '"')
		if n < 0 {
			return nil, len(j.s), ErrShort
		}
		end += n
		if !isEscaped(j.s[pos+1:end], escapeJSON) {
			return j.s[pos+1 : end], end + 1, nil
		}
	}
}
