package phpform

import (
	"math"
	"strconv"
	"strings"
)

// A number is what PHP finds at the head of a string.
type number struct {
	whole    bool  // nothing but white space follows, so the string is numeric
	integer  bool  // i holds it; f does otherwise
	i        int64 // in the range of PHP's integers
	f        float64
	overflow bool // begins with more digits than an integer has
}

// Intval is PHP's cast of a string to int: the number at its head, without its
// fraction and held within 64 bits. It is 0 when there is none, and when it is too
// large for a float.
func Intval(s string) int64 {
	n, ok := readNumber(s)
	if !ok {
		return 0
	}
	return n.cast()
}

// looseInt is Matomo's check of an int parameter: the value, after Matomo has
// escaped it, must be loosely equal to its own cast.
func looseInt(s string) (int64, bool) {
	n, ok := readNumber(s)
	if !ok || !n.whole {
		// Matomo escapes only what is not numeric, and may make it so by that.
		if s, ok = unsanitized(s); !ok {
			return 0, false
		}
		if n, ok = readNumber(s); !ok || !n.whole {
			return 0, false
		}
	}
	i := n.cast()
	if n.integer {
		return i, true
	}
	// PHP compares as floats, except that an integer never equals the text of one
	// that overflowed.
	return i, !n.overflow && n.f == float64(i)
}

func (n number) cast() int64 {
	switch {
	case n.integer:
		return n.i
	case math.IsInf(n.f, 0):
		return 0
	case n.f >= math.MaxInt64: // 2^63 as a float
		return math.MaxInt64
	case n.f <= math.MinInt64:
		return math.MinInt64
	}
	return int64(n.f)
}

// minOverflowDigits is the number of digits before the point, without leading
// zeros, from which PHP takes a number for an integer that overflowed, whatever
// follows them.
const minOverflowDigits = 20

// readNumber reads the number at the head of s: white space, a sign, digits with
// or without a point, and an exponent. It reports false when there is none.
func readNumber(s string) (n number, ok bool) {
	for len(s) > 0 && isSpace(s[0]) {
		s = s[1:]
	}
	at := 0
	if at < len(s) && (s[at] == '-' || s[at] == '+') {
		at++
	}
	digits := skipDigits(s, at) - at
	significant := strings.TrimLeft(s[at:at+digits], "0")
	n.overflow = len(significant) >= minOverflowDigits
	at += digits
	n.integer = true
	if at < len(s) && s[at] == '.' {
		end := skipDigits(s, at+1)
		if digits == 0 && end == at+1 {
			return number{}, false
		}
		digits += end - at - 1
		at = end
		n.integer = false
	}
	if digits == 0 {
		return number{}, false
	}
	if at < len(s) && s[at]|0x20 == 'e' {
		exponent := at + 1
		if exponent < len(s) && (s[exponent] == '-' || s[exponent] == '+') {
			exponent++
		}
		if end := skipDigits(s, exponent); end > exponent {
			at = end
			n.integer = false
		} else if n.integer && exponent > at+1 && len(significant) == minOverflowDigits-1 {
			return signWithoutExponent(s[:at], significant), true
		}
	}
	rest := at
	for rest < len(s) && isSpace(s[rest]) {
		rest++
	}
	n.whole = rest == len(s)
	if !n.integer {
		// The only error is that of range, and then the value is infinite as in PHP.
		n.f, _ = strconv.ParseFloat(s[:at], 64)
		return n, true
	}

	// PHP recognizes the least integer only where the string ends with it.
	i, err := strconv.ParseInt(s[:at], 10, 64)
	if err == nil && (i > math.MinInt64 || at == len(s)) {
		n.i = i
		return n, true
	}
	n.integer, n.overflow = false, true
	n.f, _ = strconv.ParseFloat(s[:at], 64)
	return n, true
}

// signWithoutExponent reads an integer of 19 digits that "e" and a sign without
// digits follow. PHP then decides by the digits from the second on whether it
// fits, and lets it wrap around when it wrongly thinks so.
func signWithoutExponent(s, digits string) (n number) {
	const limit = "922337203685477580" // the first 18 digits of 2^63
	if digits[1:] < limit {
		u, _ := strconv.ParseUint(digits, 10, 64) // 19 digits always fit.
		if s[0] == '-' {
			u = -u
		}
		return number{integer: true, i: int64(u)}
	}
	n.overflow = true
	n.f, _ = strconv.ParseFloat(s, 64)
	return n
}

func skipDigits(s string, at int) int {
	for at < len(s) && '0' <= s[at] && s[at] <= '9' {
		at++
	}
	return at
}

// unsanitized gives what Matomo's escaping leaves of a value when that can be a
// number: it decodes numeric entities and then drops NUL bytes. It reports false
// when nothing changes or something remains that no number has.
func unsanitized(s string) (string, bool) {
	if !strings.ContainsAny(s, "&\x00") {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		switch s[i] {
		case 0:
			i++
		case '&':
			c, size := numericEntity(s[i:])
			if size == 0 {
				return "", false
			}
			b.WriteByte(c)
			i += size
		default:
			b.WriteByte(s[i])
			i++
		}
	}
	return b.String(), true
}

// numericEntity reads an entity such as "&#49;" or "&#x31;" that stands for a
// byte of a number. The size is 0 when s does not begin with one.
func numericEntity(s string) (c byte, size int) {
	digits, ok := strings.CutPrefix(s, "&#")
	if !ok {
		return 0, 0
	}
	end := strings.IndexByte(digits, ';')
	if end < 0 {
		return 0, 0
	}
	digits = digits[:end]
	size = len("&#") + end + len(";")
	base := 10
	if len(digits) > 0 && digits[0]|0x20 == 'x' {
		digits, base = digits[1:], 16
	}
	code, err := strconv.ParseUint(digits, base, 32)
	if err != nil || code > 'e' || strings.IndexByte("0123456789+-.eE \t\n\r", byte(code)) < 0 {
		return 0, 0
	}
	return byte(code), size
}
