package testkit

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseQueryAsPHP(t *testing.T) {
	tests := []struct {
		name, query string
		want        Params
	}{
		{"last wins", "a=1&a=2", Params{"a": "2"}},
		{"semicolons are data", "a=1;b=2", Params{"a": "1;b=2"}},
		{"broken escapes stay", "a=%zz%4&b=+%2B", Params{"a": "%zz%4", "b": " +"}},
		{"names are mangled", "%20a.b+c=1&[x=2&d%00e=3&=4&x[y=5", Params{"a_b_c": "1", "d": "3", "x_y": "5"}},
		{"unmatched brackets are mangled", "a[[=1&b[c[d.e=2&f[g[.h]=3", Params{"a__": "1", "b_c_d_e": "2", "f": Params{"g[.h": "3"}}},
		{"arrays replace scalars", "a=1&a[]=2&a[k]=3", Params{"a": Params{"0": "2", "k": "3"}}},
		{"scalars replace arrays", "a[]=2&a=1", Params{"a": "1"}},
		{"names without a value", "a&b=", Params{"a": "", "b": ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseQuery(tt.query); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("parseQuery(%q) = %v, want %v", tt.query, got, tt.want)
			}
		})
	}
	if got := len(parseQuery(strings.Repeat("a&", 5) + strings.Repeat("&b=1", 2000) + "&c=1")); got != 2 {
		t.Errorf("%d names after too many variables, want 2", got)
	}
}

func FuzzDecodeBulk(f *testing.F) {
	f.Add([]byte(super(page, "?")))
	f.Add([]byte(`{"requests":{"a":"?x=%","b":[1,{"\ud800":null}]},"send_image":0}`))
	f.Add([]byte(`{"requests":["?a[b][=1&a[b]c=2&%5b=3"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		b := decodeBulk(body)
		if len(b.hits)+b.dropped > 0 && !utf8.Valid(body) {
			t.Errorf("hits out of a body that PHP cannot decode")
		}
		if _, hits, marks, ok := scanBulk(body, DefaultMark); ok && (len(marks) > hits || hits > len(body)) {
			t.Errorf("%d marks and %d hits out of %d bytes", len(marks), hits, len(body))
		}
	})
}

func TestFastReaderAgrees(t *testing.T) {
	const marked = page + "&" + DefaultMark + "="
	for _, body := range []string{super(), super(marked + "1"), super(marked+"1&url=x", page, marked+"2"), anonymous(marked + "3"), `{"token_auth":"x","requests":[]}`} {
		want := decodeBulk([]byte(body))
		token, hits, marks, ok := scanBulk([]byte(body), DefaultMark)
		var wantMarks []string
		for _, h := range want.hits {
			if m := h.params.String(DefaultMark); m != "" {
				wantMarks = append(wantMarks, m)
			}
		}
		if !ok || token != want.token || hits != len(want.hits)+want.dropped || !slices.Equal(marks, wantMarks) {
			t.Errorf("scanBulk(%q) = %q, %d hits, marks %q, %v; decoding gives %+v", body, token, hits, marks, ok, want)
		}
	}
}
