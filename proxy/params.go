package proxy

import (
	"bytes"
	"math"
	"strconv"
	"strings"

	"sluice/internal/phpform"
)

// The parameters that decide something at arrival.
type param uint8

const (
	pSite param = iota
	pRec
	pToken
	pSendImage
	pIP // the first of those that need a token
	pCountry
	pRegion
	pCity
	pLatitude
	pLongitude
	pTime
	pTimeOffset
	pVisitor
	pUser
	pFirstParty
	pEventCategory
	pEventAction
	pContentName
	pGoal
	pPing
	pDownload
	pLink
	pCustomAction
	pUserAgent
	pBots
	paramCount
)

// paramOf gives the parameter of a name, and false for the many others. Names
// are compared byte by byte: PHP's variables know no upper case.
func paramOf(name []byte) (param, bool) {
	switch string(name) {
	case "idsite":
		return pSite, true
	case "rec":
		return pRec, true
	case "token_auth":
		return pToken, true
	case "send_image":
		return pSendImage, true
	case "cip":
		return pIP, true
	case "country":
		return pCountry, true
	case "region":
		return pRegion, true
	case "city":
		return pCity, true
	case "lat":
		return pLatitude, true
	case "long":
		return pLongitude, true
	case "cdt":
		return pTime, true
	case "cdo":
		return pTimeOffset, true
	case "cid":
		return pVisitor, true
	case "uid":
		return pUser, true
	case "_id":
		return pFirstParty, true
	case "e_c":
		return pEventCategory, true
	case "e_a":
		return pEventAction, true
	case "c_n":
		return pContentName, true
	case "idgoal":
		return pGoal, true
	case "ping":
		return pPing, true
	case "download":
		return pDownload, true
	case "link":
		return pLink, true
	case "ca":
		return pCustomAction, true
	case "ua":
		return pUserAgent, true
	case "bots":
		return pBots, true
	}
	return 0, false
}

// kind is a value's type as PHP has it.
type kind uint8

const (
	missing kind = iota // not there, or null
	text                // a string
	number              // an integer or float out of JSON
	boolean             // true or false out of JSON
	array               // a PHP array: a subscripted name, or a JSON list or object
)

// A value is one parameter's value, not yet decoded.
type value struct {
	kind    kind
	escaped bool   // raw is percent-encoded
	raw     []byte // a text's bytes, a number's or boolean's literal
}

// params are the values of a hit's deciding parameters.
type params struct {
	values [paramCount]value
	count  int // of all variables, known ones or not; 0 is an empty request

	// addressed: a pair of a query has the name cip, whether it counts or not.
	addressed bool
}

// readQuery fills p from a query or form, as PHP registers its variables.
func (p *params) readQuery(raw []byte) {
	*p = params{}
	for pair := range phpform.Pairs(raw) {
		if !pair.Removed {
			p.count++
		}
		at, ok := paramOf(pair.Name)
		if !ok {
			continue
		}
		p.addressed = p.addressed || at == pIP
		switch {
		case pair.Removed:
			p.values[at] = value{}
		case pair.Array:
			p.values[at] = value{kind: array}
		default:
			p.values[at] = value{kind: text, escaped: true, raw: pair.RawValue}
		}
	}
}

// text gives what Matomo reads as a string: nothing for a missing value, a
// boolean and an array.
func (v value) text() string {
	switch v.kind {
	case text:
		if v.escaped {
			return phpform.Unescape(v.raw)
		}
		return string(v.raw)
	case number:
		return numberText(v.raw)
	}
	return ""
}

// empty says whether the string that Matomo reads is empty to PHP: "" or "0".
// NUL bytes do not count, since Matomo drops them when it reads a string.
func (v value) empty() bool {
	switch v.kind {
	case text:
		if len(v.raw) == 0 || len(v.raw) == 1 && v.raw[0] == '0' {
			return true
		}
		if bytes.IndexByte(v.raw, '%') < 0 && bytes.IndexByte(v.raw, 0) < 0 {
			return false
		}
		return phpform.Empty(strings.ReplaceAll(v.text(), "\x00", ""))
	case number:
		return numberText(v.raw) == "0"
	}
	return true
}

// is says whether the value is exactly one string.
func (v value) is(s string) bool {
	if v.kind != text {
		return false
	}
	if string(v.raw) == s {
		return true
	}
	return v.escaped && bytes.IndexByte(v.raw, '%') >= 0 && phpform.Unescape(v.raw) == s
}

// int gives what Matomo reads as an integer: def when the value is missing or is
// not loosely equal to its own cast.
func (v value) int(def int64) int64 {
	switch v.kind {
	case text:
		if n, ok := digits(v.raw); ok {
			return n
		}
		if len(v.raw) == 0 {
			return def
		}
		if v.escaped {
			return phpform.Parse(append([]byte("v="), v.raw...)).Int("v", def)
		}
		return phpform.Parse(phpform.AppendEscaped([]byte("v="), v.raw)).Int("v", def)
	case number:
		if n, err := strconv.ParseInt(string(v.raw), 10, 64); err == nil {
			return n
		}
		f, _ := strconv.ParseFloat(string(v.raw), 64)
		if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
			return int64(f)
		}
		return def
	case boolean:
		// false is the empty string to PHP, and so a missing value.
		if string(v.raw) == "true" {
			return 1
		}
	}
	return def
}

// maxPlainDigits keeps every number of so many digits within 64 bits.
const maxPlainDigits = 18

// digits reads a number that is written with digits only.
func digits(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > maxPlainDigits {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// numberText is PHP's text of a number out of JSON. It is exact for integers;
// for floats only the empty "0" and the shape of plain decimals matter here.
func numberText(literal []byte) string {
	if n, err := strconv.ParseInt(string(literal), 10, 64); err == nil {
		return strconv.FormatInt(n, 10)
	}
	// The only error is that of range, and then the value is infinite as in PHP.
	f, _ := strconv.ParseFloat(string(literal), 64)
	return strconv.FormatFloat(f, 'f', -1, 64)
}

// phpNumber reads a string that PHP calls numeric: white space, a decimal number
// and white space.
func phpNumber(s string) (float64, bool) {
	s = strings.Trim(s, " \t\n\r\v\f")
	digit := false
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9':
			digit = true
		case c == '+' || c == '-' || c == '.' || (c == 'e' || c == 'E') && digit:
		default:
			return 0, false
		}
	}
	if !digit {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil && !math.IsInf(f, 0) {
		return 0, false
	}
	return f, true
}
