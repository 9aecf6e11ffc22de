package phpform

import (
	"bytes"
	"strings"
)

// hexValue has the value of a hexadecimal digit plus one, and 0 for other bytes.
var hexValue = func() (v [256]byte) {
	for i, c := range []byte("0123456789abcdef") {
		v[c] = byte(i + 1)
	}
	for i, c := range []byte("ABCDEF") {
		v[c] = byte(i + 11)
	}
	return v
}()

// unreserved tells the bytes that strict percent-encoding leaves alone.
var unreserved = func() (u [256]bool) {
	const literal = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	for _, c := range []byte(literal) {
		u[c] = true
	}
	return u
}()

const hexDigits = "0123456789ABCDEF"

// Unescape is PHP's urldecode: "+" becomes a space, and a percent sign that two
// hexadecimal digits do not follow is kept.
func Unescape(s []byte) string {
	if bytes.IndexByte(s, '%') < 0 && bytes.IndexByte(s, '+') < 0 {
		return string(s)
	}
	return string(appendUnescaped(make([]byte, 0, len(s)), s))
}

func unescapeString(s string) string {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); {
		var c byte
		c, i = decodeAt(s, i)
		b.WriteByte(c)
	}
	return b.String()
}

func appendUnescaped(dst, s []byte) []byte {
	for i := 0; i < len(s); {
		var c byte
		c, i = decodeAt(s, i)
		dst = append(dst, c)
	}
	return dst
}

// decodeAt gives the byte that is written at s[i], and the index behind it.
func decodeAt[T string | []byte](s T, i int) (c byte, next int) {
	c = s[i]
	if c == '+' {
		return ' ', i + 1
	}
	if c == '%' && i+2 < len(s) {
		if high, low := hexValue[s[i+1]], hexValue[s[i+2]]; high != 0 && low != 0 {
			return (high-1)<<4 | (low - 1), i + 3
		}
	}
	return c, i + 1
}

// AppendEscaped appends s in strict percent-encoding: only letters, digits and
// "-._~" stand for themselves.
func AppendEscaped[T string | []byte](dst []byte, s T) []byte {
	for i := range len(s) {
		dst = appendEscapedByte(dst, s[i])
	}
	return dst
}

func appendEscapedByte(dst []byte, c byte) []byte {
	if unreserved[c] {
		return append(dst, c)
	}
	return append(dst, '%', hexDigits[c>>4], hexDigits[c&15])
}

// AppendReencoded appends the pairs of a query that [Pairs] gives, each decoded
// and encoded again as [AppendEscaped] does, in the same order and joined by
// "&". PHP reads the result as it reads raw. Pairs that PHP ignores are left out,
// a pair without "=" gets one, and a name ends before a NUL. There are never more
// than MaxVars pairs, and there may be as many: PHP ignores whatever is appended
// to a query of MaxVars pairs.
func AppendReencoded(dst, raw []byte) []byte {
	s := scanQuery(raw)
	for first := true; s.next(); first = false {
		if !first {
			dst = append(dst, '&')
		}
		name := s.pair.RawName
		for i := 0; i < len(name); {
			var c byte
			if c, i = decodeAt(name, i); c == 0 {
				break
			}
			dst = appendEscapedByte(dst, c)
		}
		dst = append(dst, '=')
		value := s.pair.RawValue
		for i := 0; i < len(value); {
			var c byte
			c, i = decodeAt(value, i)
			dst = appendEscapedByte(dst, c)
		}
	}
	return dst
}
