package sink

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

// object appends the element of a hit that came as a JSON object: its text
// verbatim, with the overrides as further members before the closing brace. In
// PHP the last of several members of one name wins. An empty object stays empty:
// Matomo counts it and does nothing.
//
// What PHP may read differently from Go travels alone, so that it cannot spoil a
// whole request; what is not one balanced object is never put into a request,
// since its text could say anything there with our token.
func (e *encoder) object(it *item) {
	text := bytes.Trim(it.Params, " \t\r\n")
	// Matomo removes line breaks from the whole body before it decodes it.
	clean := bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, text)
	if !utf8.Valid(text) {
		clean = nil
	}
	if clean == nil || !balanced(clean) {
		it.malformed, it.alone = true, true
		return
	}
	members := map[string]json.RawMessage{}
	plain := json.Unmarshal(clean, &members) == nil
	if plain && len(members) == 0 {
		e.scratch = append(e.scratch, "{}"...)
		return
	}
	e.collect(it, objectReader(members))
	if !plain || !pairedSurrogates(clean) || depth(clean) > maxObjectDepth {
		it.alone = true
	}
	b := append(e.scratch, clean[:len(clean)-1]...)
	more := !emptyObject(clean)
	for _, p := range e.extra.pairs {
		if more {
			b = append(b, ',')
		}
		more = true
		b = appendJSONString(b, p.name)
		b = append(b, ':')
		b = appendJSONString(b, p.value)
	}
	e.scratch = append(b, '}')
}

// maxObjectDepth is how deep an object may nest: PHP decodes 512 levels, of which
// the envelope takes two.
const maxObjectDepth = 500

func emptyObject(text []byte) bool {
	return len(bytes.Trim(text[1:len(text)-1], " \t")) == 0
}

// An objectReader reads the members of a JSON object as Matomo does.
type objectReader map[string]json.RawMessage

func (o objectReader) empty(name string) bool {
	switch value := string(bytes.TrimSpace(o[name])); value {
	case "", "null", "false", `""`, `"0"`, "0", "-0", "0.0", "-0.0", "{}", "[]":
		return true
	}
	return false
}

// text gives "" for what Matomo's type string takes as absent, and anything else
// for what it takes as given.
func (o objectReader) text(name string) string {
	value := bytes.TrimSpace(o[name])
	if len(value) == 0 {
		return ""
	}
	switch value[0] {
	case 'n', 't', 'f', '{', '[': // null, booleans, objects and lists
		return ""
	case '"':
		var s string
		if json.Unmarshal(value, &s) != nil {
			return ""
		}
		return s
	}
	return string(value)
}

func (o objectReader) hints() (string, bool) {
	value := bytes.TrimSpace(o["uadata"])
	switch string(value) {
	case "", "null", "false", `""`:
		return "", false
	}
	if value[0] == '"' {
		return o.text("uadata"), true
	}
	return string(value), true
}

func (o objectReader) addressed() string { return o.text("cip") }

// balanced reports whether text is one JSON object as far as strings and brackets
// go, and nothing behind it.
func balanced(text []byte) bool {
	if len(text) < 2 || text[0] != '{' || text[len(text)-1] != '}' {
		return false
	}
	var open []byte
	quoted := false
	for i := 0; i < len(text); i++ {
		c := text[i]
		if quoted {
			switch c {
			case '\\':
				i++
			case '"':
				quoted = false
			}
			continue
		}
		switch c {
		case '"':
			quoted = true
		case '{', '[':
			open = append(open, c+2) // the closing bracket of both kinds
		case '}', ']':
			if len(open) == 0 || open[len(open)-1] != c {
				return false
			}
			open = open[:len(open)-1]
			if len(open) == 0 && i != len(text)-1 {
				return false
			}
		}
	}
	return !quoted && len(open) == 0
}

// depth gives how deep a balanced text nests.
func depth(text []byte) int {
	now, most, quoted := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			most = max(most, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return most
}

// pairedSurrogates reports whether every escaped surrogate of a JSON text is half
// of a pair; PHP refuses the whole text otherwise.
func pairedSurrogates(text []byte) bool {
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		i++
		if i+4 >= len(text) || text[i] != 'u' {
			continue
		}
		switch kind := surrogate(text[i+1:]); {
		case kind == low:
			return false
		case kind == high:
			rest := text[i+5:]
			if len(rest) < 6 || rest[0] != '\\' || rest[1] != 'u' || surrogate(rest[2:]) != low {
				return false
			}
			i += 6
		}
		i += 4
	}
	return true
}

type surrogateKind uint8

const (
	none surrogateKind = iota
	high
	low
)

func surrogate(hex []byte) surrogateKind {
	if len(hex) < 4 || hex[0] != 'd' && hex[0] != 'D' {
		return none
	}
	switch c := hex[1] | 0x20; {
	case hex[1] == '8' || hex[1] == '9' || c == 'a' || c == 'b':
		return high
	case c >= 'c' && c <= 'f':
		return low
	}
	return none
}
