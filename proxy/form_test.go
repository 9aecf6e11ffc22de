package proxy

import (
	"strings"
	"testing"

	"sluice/internal/phpform"
)

// TestPlainFormReadsAsMerged compares the short cut with the rule that it
// replaces, where the two begin to differ.
func TestPlainFormReadsAsMerged(t *testing.T) {
	many := func(n int) string { return strings.Repeat("a=1&", n-1) + "cip=1.1.1.1" }
	for _, body := range []string{
		"a=1", "a=1&b=2", "&a=1", "a=1&", "a=1&&b=2", "a=1\x00&b=2", "=", "=1&b", "a[]=1&a[]=2", "%26=1",
		many(phpform.MaxVars - 1), many(phpform.MaxVars), many(phpform.MaxVars + 1), many(phpform.MaxVars + 2),
		"&" + many(phpform.MaxVars), many(phpform.MaxVars) + "&",
	} {
		r := request{method: "POST", body: []byte(body)}
		r.contentType = []byte("application/x-www-form-urlencoded")
		var got, want params
		got.readQuery(r.parameters())
		want.readQuery(phpform.Merge(nil, []byte(body)))
		if got.values[pIP].kind != want.values[pIP].kind || flatten(r.parameters()) != flatten(phpform.Merge(nil, []byte(body))) {
			t.Errorf("body of %d bytes %.20q is read otherwise than merged", len(body), body)
		}
		if plainForm([]byte(body)) && string(r.parameters()) != body {
			t.Errorf("plain body %.20q was changed", body)
		}
	}
	if plainForm([]byte(many(phpform.MaxVars + 1))) {
		t.Error("a body of more pairs than a query may have is taken for plain")
	}
}
