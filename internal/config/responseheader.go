package config

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// A ResponseHeader is a header of answers, its name as Go's HTTP library spells it.
type ResponseHeader struct{ Name, Value string }

func (h ResponseHeader) String() string { return h.Name + ": " + h.Value }

// maxResponseHeaders bounds the list: every answer carries all of it.
const maxResponseHeaders = 32

// maxResponseValue is in bytes; a large policy for content has some hundred.
const maxResponseValue = 2 << 10

// Headers that would change where an answer ends, what it is or who may read it, or
// that an answer has with a value of its own.
var (
	ownHeaders = []string{
		"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "date", "set-cookie", "set-cookie2",
		"cache-control", "retry-after", "vary", "etag", "last-modified", "expires", "age", "location", "allow",
		"accept-ranges", "www-authenticate", "x-accel-redirect", "x-sendfile",
	}
	ownPrefixes = []string{"content-", "access-control-", "proxy-"}
	// policies are not about a body, whatever they are called.
	policies = []string{"content-security-policy", "content-security-policy-report-only"}
)

// anotherHeader is what follows a comma that parts two headers. The address of a
// policy, such as https://, is no header.
var anotherHeader = regexp.MustCompile(`^[ \t]*[A-Za-z0-9-]+:([^/]|$)`)

// decodeResponseHeaders adds to what the flag gave before.
func decodeResponseHeaders(text string, _ *kong.Tag, target reflect.Value) error {
	list := target.Interface().([]ResponseHeader)
	for part := range splitHeaders(text) {
		h, err := parseResponseHeader(part)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(list, func(other ResponseHeader) bool { return strings.EqualFold(other.Name, h.Name) }) {
			return fmt.Errorf("%s stands there twice: want each header once", h.Name)
		}
		list = append(list, h)
	}
	if len(list) > maxResponseHeaders {
		return fmt.Errorf("want at most %d headers", maxResponseHeaders)
	}
	target.Set(reflect.ValueOf(list))
	return nil
}

func parseResponseHeader(text string) (h ResponseHeader, err error) {
	name, value, found := strings.Cut(text, ":")
	name, value = strings.Trim(name, " \t"), strings.Trim(value, " \t")
	lower := strings.ToLower(name)
	switch {
	case !found || !validHeader(lower):
		return h, fmt.Errorf("%q: want headers such as X-Frame-Options: DENY, parted by commas", text)
	case value == "" || len(value) > maxResponseValue:
		return h, fmt.Errorf("%s: want a value of 1 to %d bytes", name, maxResponseValue)
	case strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c > '~' }):
		return h, fmt.Errorf("%s: want a value of printable ASCII in one line", name)
	case lower == "strict-transport-security":
		return h, fmt.Errorf("%s: want proxy.hsts instead, which sends it over HTTPS only", name)
	case slices.Contains(ownHeaders, lower) || !slices.Contains(policies, lower) &&
		slices.ContainsFunc(ownPrefixes, func(p string) bool { return strings.HasPrefix(lower, p) }):
		return h, fmt.Errorf("%s says what an answer is, where it ends or who may keep it: want a header that is the same for all answers", name)
	}
	return ResponseHeader{name, value}, nil
}

// splitHeaders parts a list at the commas behind which another header begins; all
// other commas belong to values.
func splitHeaders(text string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		start := 0
		for i := range len(text) + 1 {
			if i < len(text) && (text[i] != ',' || !anotherHeader.MatchString(text[i+1:])) {
				continue
			}
			if part := strings.Trim(text[start:i], " \t"); part != "" && !yield(part) {
				return
			}
			start = i + 1
		}
	}
}
