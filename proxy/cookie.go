package proxy

import (
	"bytes"
	"encoding/base64"
	"strings"
)

// cookie gives the undecoded value of a cookie as PHP finds it: parts are
// separated by ";", names lose their leading white space, and the first of two
// equal names wins.
func cookie(header []byte, name string) (value []byte, ok bool) {
	for len(header) > 0 {
		var part []byte
		part, header, _ = bytes.Cut(header, []byte(";"))
		part = bytes.TrimLeft(part, " \t\n\r\v\f")
		if len(part) < len(name) || string(part[:len(name)]) != name {
			continue
		}
		if part = part[len(name):]; len(part) == 0 {
			return part, true
		} else if part[0] == '=' {
			return part[1:], true
		}
	}
	return nil, false
}

// optedOut says whether a cookie is Matomo's opt-out (core/Tracker/IgnoreCookie.php
// and core/Cookie.php): the value "ignore" is the base64 text of "*". The signed
// form of Matomo before 4 cannot be verified without Matomo's salt; it is believed,
// since it can only keep its own sender from being recorded.
func optedOut(cookie []byte) bool {
	decoded := unescapeCookie(cookie)
	ignore := ""
	for part := range strings.SplitSeq(decoded, ":") {
		if name, v, ok := strings.Cut(part, "="); ok && name == "ignore" {
			ignore = v
		}
	}
	switch strings.ReplaceAll(string(looseBase64(ignore)), "\x00", "") {
	case "*":
		return true
	case `s:1:"*";`:
		i := strings.LastIndex(decoded, ":_=")
		return i >= 0 && len(decoded)-i == len(":_=")+signatureLength
	}
	return false
}

// signatureLength is that of a SHA-1 in hexadecimal digits.
const signatureLength = 40

// unescapeCookie decodes percent signs; PHP leaves a plus sign in a cookie alone.
func unescapeCookie(b []byte) string {
	if bytes.IndexByte(b, '%') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '%' && i+2 < len(b) {
			high, low := unhex(b[i+1]), unhex(b[i+2])
			if high >= 0 && low >= 0 {
				out = append(out, byte(high<<4|low))
				i += 2
				continue
			}
		}
		out = append(out, b[i])
	}
	return string(out)
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// looseBase64 decodes as PHP does: bytes outside the alphabet are skipped, and
// padding is not asked for.
func looseBase64(s string) []byte {
	alphabet := strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z', 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '+', r == '/':
			return r
		}
		return -1
	}, s)
	if len(alphabet)%4 == 1 {
		alphabet = alphabet[:len(alphabet)-1]
	}
	out, _ := base64.RawStdEncoding.DecodeString(alphabet) // nothing outside the alphabet is left
	return out
}
