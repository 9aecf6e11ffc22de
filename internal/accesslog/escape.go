package accesslog

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// An escaping is how a server writes what it cannot write as it is.
type escaping uint8

const (
	escapeNone    escaping = iota
	escapeNginx            // \xHH (nginx: ngx_http_log_escape)
	escapeApache           // \" \\ \n \xhh (Apache: ap_escape_logitem)
	escapeEither           // of the two; no line is ambiguous
	escapeJSON             // as in JSON (nginx: ngx_escape_json)
	escapeHAProxy          // #HH (HAProxy: url_encode_map and hdr_encode_map)
)

// undo gives a value as the client sent it. What is no escape stays as it is.
func (r *Record) undo(s []byte, e escaping) []byte {
	mark := byte('\\')
	switch e {
	case escapeNone:
		return s
	case escapeHAProxy:
		mark = '#'
	}
	i := bytes.IndexByte(s, mark)
	if i < 0 {
		return s
	}
	if e == escapeJSON {
		return r.undoJSON(s, i)
	}
	at := len(r.buf)
	for ; i >= 0; i = bytes.IndexByte(s, mark) {
		r.buf = append(r.buf, s[:i]...)
		s = s[i:]
		c, n := decode(s, e)
		r.buf = append(r.buf, c)
		s = s[n:]
	}
	r.buf = append(r.buf, s...)
	return r.buf[at:]
}

// decode reads the escape that s begins with and says how long it is. A mark that
// begins none stands for itself.
func decode(s []byte, e escaping) (c byte, n int) {
	if e == escapeHAProxy {
		if c, ok := hexByte(s, 1); ok {
			return c, 3
		}
		return s[0], 1
	}
	if len(s) < 2 {
		return s[0], 1
	}
	if s[1] == 'x' {
		if c, ok := hexByte(s, 2); ok {
			return c, 4
		}
		return s[0], 1
	}
	if e == escapeNginx {
		return s[0], 1
	}
	switch s[1] {
	case '"', '\\':
		return s[1], 2
	case 'n':
		return '\n', 2
	case 't':
		return '\t', 2
	case 'r':
		return '\r', 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'v':
		return '\v', 2
	}
	return s[0], 1
}

func hexByte(s []byte, at int) (byte, bool) {
	if len(s) < at+2 {
		return 0, false
	}
	high, low := hexDigit(s[at]), hexDigit(s[at+1])
	return byte(high<<4 | low), high|low >= 0
}

// hexDigit gives -1 for what is no digit.
func hexDigit(c byte) int {
	switch {
	case isDigit(c):
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

// undoJSON undoes JSON's escapes, the first of which is at i. It takes \xHH too, which
// nginx writes into JSON if nobody has told it what it is writing.
func (r *Record) undoJSON(s []byte, i int) []byte {
	at := len(r.buf)
	for ; i >= 0; i = bytes.IndexByte(s, '\\') {
		r.buf = append(r.buf, s[:i]...)
		s = s[i:]
		if len(s) < 2 {
			break
		}
		n := 2
		switch s[1] {
		case '"', '\\', '/':
			r.buf = append(r.buf, s[1])
		case 'u':
			var c rune
			if c, n = jsonRune(s); c == utf8.RuneError {
				r.Inexact = true
			}
			r.buf = utf8.AppendRune(r.buf, c)
		default: // of which \v is not JSON's, and never comes
			var c byte
			c, n = decode(s, escapeEither)
			r.buf = append(r.buf, c)
		}
		s = s[n:]
	}
	r.buf = append(r.buf, s...)
	return r.buf[at:]
}

// jsonRune reads \uXXXX, or two of them that are one character.
func jsonRune(s []byte) (rune, int) {
	const size = len(`\u0000`)
	c, ok := hexRune(s)
	if !ok {
		return '\\', 1
	}
	if !utf16.IsSurrogate(c) {
		return c, size
	}
	if low, ok := hexRune(s[size:]); ok {
		if c := utf16.DecodeRune(c, low); c != utf8.RuneError {
			return c, 2 * size
		}
	}
	return utf8.RuneError, size
}

func hexRune(s []byte) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	high, ok := hexByte(s, 2)
	low, ok2 := hexByte(s, 4)
	return rune(high)<<8 | rune(low), ok && ok2
}
