package phpform

import (
	"bytes"
	"strings"
	"testing"
)

func addQueries(f *testing.F) {
	for _, q := range append(corpus(f, "queries"), typicalQuery) {
		f.Add([]byte(q))
	}
}

// describe writes what a form holds, for comparison.
func describe(f *Form) map[string]string {
	variables := make(map[string]string)
	for _, e := range f.entries {
		value, kind := f.Raw(e.name)
		if kind != Missing {
			variables[e.name] = kind.String() + " " + value
		}
	}
	return variables
}

func sameForm(t *testing.T, what string, a, b map[string]string) {
	t.Helper()
	if len(a) != len(b) {
		t.Errorf("%s: %d variables, want %d", what, len(b), len(a))
	}
	for name, want := range a {
		if got := b[name]; got != want {
			t.Errorf("%s: %q is %q, want %q", what, name, got, want)
		}
	}
}

func FuzzPairs(f *testing.F) {
	addQueries(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		n := 0
		for p := range Pairs(raw) {
			n++
			if len(p.Name) == 0 || bytes.ContainsAny(p.Name, " .[\x00") {
				t.Errorf("PHP cannot have the name %q", p.Name)
			}
			if p.Removed && !p.Array {
				t.Errorf("%q is removed and no array", p.Name)
			}
			if len(p.Name) > len(p.RawName) || bytes.IndexByte(p.RawName, '=') >= 0 || bytes.IndexByte(p.RawValue, '&') >= 0 {
				t.Errorf("pair %q=%q has the name %q", p.RawName, p.RawValue, p.Name)
			}
		}
		if n > MaxVars {
			t.Errorf("%d pairs", n)
		}
		for range Pairs(raw) {
			break // The walk may end early.
		}
		if !bytes.Equal(raw, before) {
			t.Errorf("the input was changed")
		}
	})
}

func FuzzParse(f *testing.F) {
	addQueries(f)
	for _, s := range corpus(f, "numbers") {
		f.Add(AppendEscaped([]byte("v="), s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		form := Parse(raw)
		last := make(map[string]Pair)
		for p := range Pairs(raw) {
			last[string(p.Name)] = p
		}
		for name, p := range last {
			value, kind := form.Raw(name)
			want := Scalar
			switch {
			case p.Removed:
				want = Missing
			case p.Array:
				want = Array
			}
			if kind != want || form.Kind(name) != want {
				t.Errorf("%q is %v, want %v", name, kind, want)
			}
			if want == Scalar && value != Unescape(p.RawValue) {
				t.Errorf("%q is %q, want %q", name, value, Unescape(p.RawValue))
			}
			if a, b := form.Int(name, 1), form.Int(name, 2); a != b && (a != 1 || b != 2) {
				t.Errorf("%q is %d and %d", name, a, b)
			}
		}
	})
}

func FuzzMerge(f *testing.F) {
	queries := corpus(f, "queries")
	for i, q := range queries {
		f.Add([]byte(q), []byte(queries[(i*7+3)%len(queries)]))
	}
	f.Fuzz(func(t *testing.T, get, post []byte) {
		if len(get) == 0 && bytes.IndexByte(post, 0) < 0 && bytes.Count(post, []byte("&")) < MaxVars {
			sameForm(t, "body alone", describe(Parse(post)), describe(Parse(Merge(nil, post))))
		}
		merged := Merge(get, post)
		query, both := describe(Parse(get)), describe(Parse(merged))
		for name, want := range query {
			if got := both[name]; got != want {
				t.Errorf("%q is %q, want the query's %q", name, got, want)
			}
		}
		if bytes.IndexByte(get, 0) < 0 && bytes.Count(get, []byte("&")) < MaxVars {
			sameForm(t, "merged with the query again", both, describe(Parse(Merge(merged, get))))
		}
		sameForm(t, "merged with the body again", both, describe(Parse(Merge(merged, post))))
	})
}

func FuzzAppendReencoded(f *testing.F) {
	addQueries(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		once := AppendReencoded(nil, raw)
		if strings.Trim(string(once), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~%=&") != "" {
			t.Errorf("%q is not strict", once)
		}
		if twice := AppendReencoded(nil, once); !bytes.Equal(once, twice) {
			t.Errorf("once %q, twice %q", once, twice)
		}
		sameForm(t, "re-encoded", describe(Parse(raw)), describe(Parse(once)))
		if query, ok := ParseURLQuery("?" + string(once)); ok && query != string(once) {
			t.Errorf("as a bulk string %q becomes %q", once, query)
		}
	})
}

func FuzzParseURLQuery(f *testing.F) {
	for _, s := range corpus(f, "urls") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		query, ok := ParseURLQuery(s)
		if ok == Empty(query) {
			t.Errorf("got %q, %v", query, ok)
		}
		if strings.IndexFunc(query, func(r rune) bool { return r < 0x20 || r == 0x7f }) >= 0 || strings.Contains(query, "#") {
			t.Errorf("the query %q holds a control byte or a fragment", query)
		}
		if again, _ := ParseURLQuery("?" + query); ok && !strings.Contains(query, ":") && again != query {
			t.Errorf("got %q, then %q", query, again)
		}
	})
}

func FuzzAgainstPHP(f *testing.F) {
	queries, urls, numbers := corpus(f, "queries"), corpus(f, "urls"), corpus(f, "numbers")
	for i, q := range queries {
		f.Add(q, urls[i%len(urls)])
		f.Add(q, numbers[i%len(numbers)])
	}
	o := startOracle(f)
	f.Fuzz(func(t *testing.T, a, b string) {
		o.compareParse(t, a)
		o.compareMerge(t, a, asBody(b))
		o.compareValue(t, b)
		o.compareURL(t, b)
	})
}
