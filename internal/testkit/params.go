package testkit

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
)

// PHP's defaults for what it takes from one query: the rest is dropped.
const (
	maxInputVars    = 1000
	maxNestingLevel = 64
)

// Params is the parameters of one hit as PHP has them. A value is a string, a
// json.Number, a bool, nil, or, for an array, a Params (subscripts as names) or,
// out of JSON, a []any.
type Params map[string]any

// String reads a scalar as Matomo does: what is missing, null, empty, an array or
// a boolean is "".
func (p Params) String(name string) string {
	switch v := p[name].(type) {
	case string:
		return v
	case json.Number:
		return phpNumber(v)
	}
	return ""
}

// Int reads an integer as Matomo does: what is not loosely equal to its own
// integer cast, and what is missing, is def. A boolean is 0 or 1.
func (p Params) Int(name string, def int64) int64 {
	if b, ok := p[name].(bool); ok {
		if b {
			return 1
		}
		return 0
	}
	f, ok := numeric(p.String(name))
	if !ok || f != math.Trunc(f) || math.Abs(f) >= math.MaxInt64 {
		return def
	}
	return int64(f)
}

// isEmpty is PHP's empty() of a string.
func isEmpty(s string) bool { return s == "" || s == "0" }

// numeric is PHP's is_numeric with the value.
func numeric(s string) (float64, bool) {
	s = strings.Trim(s, " \t\n\r\v\f")
	if s == "" || strings.ContainsAny(s, "xXpPiInN_") {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil
}

// phpNumber is the text that PHP makes of a number out of JSON.
func phpNumber(n json.Number) string {
	if _, err := strconv.ParseInt(n.String(), 10, 64); err == nil {
		return n.String()
	}
	f, err := n.Float64()
	if err != nil {
		return n.String()
	}
	return strconv.FormatFloat(f, 'G', -1, 64)
}

// parseQuery reads a query as PHP's parse_str does. It is written apart from the
// parser that ships, so that one can judge the other.
func parseQuery(query string) Params {
	p := Params{}
	vars := 0
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		if vars++; vars > maxInputVars {
			break
		}
		name, value, _ := strings.Cut(pair, "=")
		setVariable(p, phpUnescape(name), phpUnescape(value))
	}
	return p
}

// setVariable registers one variable under the name that PHP makes of it.
func setVariable(p Params, name, value string) {
	name, _, _ = strings.Cut(name, "\x00")
	name = strings.TrimLeft(name, " ")
	if name == "" || name[0] == '[' {
		return
	}
	base, rest, _ := strings.Cut(name, "[")
	subscripts, ok := splitSubscripts(rest, len(base) < len(name))
	if !ok {
		// An opening bracket without its partner is an ordinary byte to mangle, and so
		// are those after it.
		base, subscripts = base+"_"+strings.ReplaceAll(rest, "[", "_"), nil
	}
	base = strings.NewReplacer(".", "_", " ", "_").Replace(base)
	if len(subscripts) > maxNestingLevel {
		return
	}
	for _, s := range subscripts {
		next, isParams := p[base].(Params)
		if !isParams {
			next = Params{}
			p[base] = next
		}
		if s == "" {
			s = strconv.Itoa(len(next))
		}
		p, base = next, s
	}
	p[base] = value
}

// splitSubscripts reads "a][b]" as a and b. What follows the last closing bracket
// is dropped.
func splitSubscripts(rest string, bracket bool) (subscripts []string, ok bool) {
	if !bracket {
		return nil, true
	}
	for {
		one, after, closed := strings.Cut(rest, "]")
		if !closed {
			return subscripts, len(subscripts) > 0
		}
		subscripts = append(subscripts, one)
		if after == "" || after[0] != '[' {
			return subscripts, true
		}
		rest = after[1:]
	}
}

// phpUnescape is PHP's urldecode: plus is a space, a broken escape stays.
func phpUnescape(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '+':
			b = append(b, ' ')
		case s[i] == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			v, _ := strconv.ParseUint(s[i+1:i+3], 16, 8) // both digits are checked
			b = append(b, byte(v))
			i += 2
		default:
			b = append(b, s[i])
		}
	}
	return string(b)
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// urlQuery is the query that PHP's parse_url finds in s, with control characters
// replaced as it replaces them; false when it finds none or gives up.
func urlQuery(s string) (string, bool) {
	rest := s
	if scheme, after, ok := strings.Cut(s, "://"); ok && !strings.ContainsAny(scheme, "?#/") && scheme != "file" {
		rest = "//" + after
	}
	if host, ok := strings.CutPrefix(rest, "//"); ok && (host == "" || strings.ContainsRune("/?#", rune(host[0]))) {
		return "", false
	}
	s, _, _ = strings.Cut(s, "#")
	_, query, ok := strings.Cut(s, "?")
	if !ok || isEmpty(query) {
		return "", false
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return '_'
		}
		return r
	}, query), true
}
