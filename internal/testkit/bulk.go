package testkit

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"unicode/utf8"
)

// A bulk is a decoded bulk request. The zero value is what Matomo makes of a body
// that it cannot decode: no hits, no token.
type bulk struct {
	token   string
	hits    []bulkHit
	dropped int  // strings without a query: gone before hits are counted
	silent  bool // send_image is 0: answered with 204 and no body
}

type bulkHit struct {
	raw    string // the string's query, or the object's JSON text
	params Params
}

// isBulk is Matomo's own test: the literal stands anywhere but at the very start.
func isBulk(body []byte) bool {
	return bytes.Index(body, []byte(`"requests"`)) > 0 || bytes.Index(body, []byte(`'requests'`)) > 0
}

// decodeBulk reads a bulk body with PHP's strictness: one invalid byte of UTF-8
// or half a surrogate pair makes the whole of it undecodable.
func decodeBulk(body []byte) bulk {
	var b bulk
	body = bytes.Trim(body, " \t\n\r\x00\v")
	body = bytes.ReplaceAll(bytes.ReplaceAll(body, []byte("\n"), nil), []byte("\r"), nil)
	if !utf8.Valid(body) || loneSurrogate(body) {
		return b
	}
	var top map[string]json.RawMessage
	if json.Unmarshal(body, &top) != nil {
		return b
	}
	head := Params{"token_auth": decodeJSON(top["token_auth"]), "send_image": decodeJSON(top["send_image"])}
	b.token = head.String("token_auth")
	b.silent = head.String("send_image") == "0"
	for _, element := range elements(top["requests"]) {
		switch v := decodeJSON(element).(type) {
		case string:
			query, ok := urlQuery(v)
			if !ok {
				b.dropped++
				continue
			}
			b.hits = append(b.hits, bulkHit{query, parseQuery(query)})
		case map[string]any:
			b.hits = append(b.hits, bulkHit{string(element), Params(v)})
		default:
			b.hits = append(b.hits, bulkHit{})
		}
	}
	return b
}

// elements returns the values of a JSON array, or of an object, which PHP cannot
// tell from an array, in the order of the text; nothing for other values.
func elements(list json.RawMessage) []json.RawMessage {
	var values []json.RawMessage
	if json.Unmarshal(list, &values) == nil {
		return values
	}
	d := json.NewDecoder(bytes.NewReader(list))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil
	}
	for d.More() {
		var value json.RawMessage
		if _, err := d.Token(); err != nil || d.Decode(&value) != nil {
			return nil
		}
		values = append(values, value)
	}
	return values
}

// decodeJSON returns nil for anything but one JSON value.
func decodeJSON(body []byte) any {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	if _, err := d.Token(); err != io.EOF {
		return nil
	}
	return v
}

// loneSurrogate finds an escaped half of a surrogate pair, which PHP refuses.
func loneSurrogate(body []byte) bool {
	for rest := body; ; {
		i := bytes.IndexByte(rest, '\\')
		if i < 0 || i+1 >= len(rest) {
			return false
		}
		rest = rest[i:]
		switch half := surrogate(rest); {
		case half == 0:
			rest = rest[2:]
		case half == low, surrogate(rest[len(`\uXXXX`):]) != low:
			return true
		default:
			rest = rest[2*len(`\uXXXX`):]
		}
	}
}

const (
	high = 1
	low  = 2
)

// surrogate says which half the escape at the front of b is; 0 for neither.
func surrogate(b []byte) int {
	if len(b) < len(`\uXXXX`) || b[0] != '\\' || b[1] != 'u' || b[2]|0x20 != 'd' {
		return 0
	}
	switch c := b[3] | 0x20; {
	case c >= '8' && c <= '9' || c == 'a' || c == 'b':
		return high
	case c >= 'c' && c <= 'f':
		return low
	}
	return 0
}

// scanBulk finds token, hits and marks without decoding: for measurements, where
// the fake must not be the slow part. It takes the bodies that Sluice builds
// (one object, strings strictly encoded) and returns ok=false for anything else.
func scanBulk(body []byte, mark string) (token string, hits int, marks []string, ok bool) {
	_, rest, found := bytes.Cut(body, []byte(`"requests":[`))
	if !found {
		return "", 0, nil, false
	}
	if _, after, found := bytes.Cut(body, []byte(`"token_auth":"`)); found {
		if t, _, ok := bytes.Cut(after, []byte{'"'}); ok {
			token = string(t)
		}
	}
	for {
		start := bytes.IndexByte(rest, '"')
		if end := bytes.IndexByte(rest, ']'); start < 0 || end >= 0 && end < start {
			return token, hits, marks, end >= 0
		}
		rest = rest[start+1:]
		end := bytes.IndexByte(rest, '"')
		if end < 0 {
			return "", 0, nil, false
		}
		hits++
		if m := findMark(rest[:end], mark); m != "" {
			marks = append(marks, m)
		}
		rest = rest[end+1:]
	}
}

// findMark returns the last value of the parameter called mark, as it stands.
func findMark(query []byte, mark string) string {
	i := bytes.LastIndex(query, []byte(mark+"="))
	if i < 1 || query[i-1] != '?' && query[i-1] != '&' {
		return ""
	}
	value := query[i+len(mark)+1:]
	if end := bytes.IndexByte(value, '&'); end >= 0 {
		value = value[:end]
	}
	return strings.Clone(string(value))
}
