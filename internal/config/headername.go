package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

const (
	// maxHeaderGroups bounds sink.header-groups: each header multiplies the groups
	// into which hits fall.
	maxHeaderGroups = 8
	maxHeaderName   = 64
)

// Headers that cannot be kept with a hit: those that Sluice or the way to Matomo
// sets, those that carry secrets or the visitor's address, and those whose meaning
// travels with each hit already.
var (
	refusedHeaders = []string{
		"host", "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect", "date", "origin",
		"cookie", "set-cookie", "authorization", "forwarded", "x-real-ip", "user-agent", "referer",
		"dnt", "x-do-not-track", "via", "x-purpose", "x-moz", "x-url-scheme", "range",
	}
	refusedPrefixes = []string{"content-", "accept", "access-control-", "proxy-", "x-forwarded-", "if-", "sec-ch-ua", "http2-"}
	refusedEndings  = []string{"-ip", "-authorization", "-token"}
)

// decodeHeaderNames adds to what the flag gave before.
func decodeHeaderNames(text string, _ *kong.Tag, target reflect.Value) error {
	list := target.Interface().([]HeaderName)
	for part := range splitList(text) {
		name := strings.ToLower(part)
		if !validHeader(name) {
			return fmt.Errorf("%q: want names of headers of letters, digits and dashes, parted by commas", part)
		}
		if refusedHeader(name) {
			return fmt.Errorf("%q is set by Sluice or its connection, is carried with each hit anyway, or may hold a secret or an address: want a header of your own", part)
		}
		list = append(list, HeaderName(name))
	}
	target.Set(reflect.ValueOf(list))
	return nil
}

// validHeader leaves underscores out: web servers do not give such headers to PHP.
func validHeader(name string) bool {
	return name != "" && len(name) <= maxHeaderName &&
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && name[0] != '-'
}

func refusedHeader(name string) bool {
	return slices.Contains(refusedHeaders, name) ||
		slices.ContainsFunc(refusedPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) ||
		slices.ContainsFunc(refusedEndings, func(e string) bool { return strings.HasSuffix(name, e) })
}
