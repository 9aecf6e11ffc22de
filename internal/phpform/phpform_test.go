package phpform

import (
	"fmt"
	"strings"
	"testing"
)

func TestPairs(t *testing.T) {
	deep := "a" + strings.Repeat("[x]", MaxDepth+1)
	tests := []struct {
		name  string
		query string
		want  string // name, kind and raw value of each pair
	}{
		{"only the ampersand separates", "a=1;b=2&c=3", "a scalar 1;b=2, c scalar 3"},
		{"the first equals sign ends the name", "a=b=c&=d", "a scalar b=c"},
		{"a pair without equals sign is empty", "a&&b", "a scalar , b scalar "},
		{"leading spaces go", "+%20cip=1", "cip scalar 1"},
		{"dots and spaces become underscores", "token.auth=1&a+b=2", "token_auth scalar 1, a_b scalar 2"},
		{"an open bracket becomes an underscore", "token[auth=1&a[b.c[d=2", "token_auth scalar 1, a_b_c_d scalar 2"},
		{"a name ends at a NUL", "cip%00x=1&%00=2", "cip scalar 1"},
		{"a subscript makes an array", "a[]=1&b%5Bx%5D.y=2&c[ ]=3", "a array 1, b array 2, c array 3"},
		{"a name cannot begin with a bracket", "[a]=1&[=2&+[x]=3&.=4", "_ scalar 4"},
		{"a cookie prefix cannot be made by mangling", "..Host-a=1&__Host-a=2&_[Secure-=3", "__Host-a scalar 2"},
		{"too many subscripts remove the variable", "a=1&" + deep + "=2", "a scalar 1, a removed 2"},
		{"a raw NUL ends the query", "a=1\x00&b=2", "a scalar 1"},
		{"values stay undecoded", "a=%31+%zz", "a scalar %31+%zz"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for p := range Pairs([]byte(tt.query)) {
				kind := "scalar"
				switch {
				case p.Removed:
					kind = "removed"
				case p.Array:
					kind = "array"
				}
				got = append(got, fmt.Sprintf("%s %s %s", p.Name, kind, p.RawValue))
			}
			if got := strings.Join(got, ", "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPairsStopAtMaxVars(t *testing.T) {
	tests := []struct {
		name  string
		query string
		want  int
	}{
		{"one too many is dropped", strings.Repeat("a=1&", MaxVars+1), MaxVars},
		{"empty pairs do not count", strings.Repeat("&&a=1", MaxVars+1), MaxVars},
		{"ignored pairs count", strings.Repeat("=1&", MaxVars-1) + "a=1&b=2", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := 0
			for range Pairs([]byte(tt.query)) {
				got++
			}
			if got != tt.want {
				t.Errorf("got %d pairs, want %d", got, tt.want)
			}
		})
	}
}

func TestForm(t *testing.T) {
	tests := []struct {
		name  string
		query string
		kind  Kind // of v
		value string
	}{
		{"missing", "a=1", Missing, ""},
		{"last wins", "v=1&v=2", Scalar, "2"},
		{"decoded", "v=a%20b+c%4", Scalar, "a b c%4"},
		{"array replaces scalar", "v=1&v[]=2", Array, ""},
		{"scalar replaces array", "v[]=1&v=2", Scalar, "2"},
		{"removed by nesting", "v=1&v" + strings.Repeat("[]", MaxDepth+1), Missing, ""},
		{"set after removal", "v" + strings.Repeat("[]", MaxDepth+1) + "&v=1", Scalar, "1"},
		{"found among many", numbered("w", 500) + "%76=x&" + numbered("w", 400), Scalar, "x"},
		{"missing among many", numbered("v", 900), Missing, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := Parse([]byte(tt.query))
			value, kind := f.Raw("v")
			if kind != tt.kind || value != tt.value || f.Kind("v") != tt.kind || f.String("v") != tt.value {
				t.Errorf("got %v %q, want %v %q", kind, value, tt.kind, tt.value)
			}
		})
	}
}

func TestInt(t *testing.T) {
	tests := []struct {
		name  string
		query string
		want  int64
	}{
		{"missing is the default", "", -7},
		{"empty is the default", "v=", -7},
		{"array is the default", "v[]=1", -7},
		{"leading zeros and spaces pass", "v=%20%0901", 1},
		{"trailing space passes", "v=1+", 1},
		{"signs pass", "v=%2B1", 1},
		{"whole floats pass", "v=1.0e1", 10},
		{"fractions are the default", "v=1.5", -7},
		{"trailing text is the default", "v=1a", -7},
		{"hexadecimal is the default", "v=0x1A", -7},
		{"a lone space is the default", "v=+", -7},
		{"an overflow is the default", "v=9223372036854775808", -7},
		{"NUL bytes vanish", "v=%001%00", 1},
		{"only NUL bytes are the default", "v=%00", -7},
		{"entities are decoded", "v=%26%2349;", 1},
		{"entities are decoded once", "v=%26%2338;%2349;", -7},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Parse([]byte(tt.query)).Int("v", -7); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestMerge(t *testing.T) {
	deep := strings.Repeat("[]", MaxDepth+1)
	tests := []struct {
		name      string
		get, post string
		want      string
	}{
		{"the query wins", "a=1&b=2", "a=3&c=4", "a=1&b=2&c=4"},
		{"an array wins as a whole", "a[x]=1", "a[y]=2&a=3&b[]=4", "a[x]=1&b[]=4"},
		{"names are compared as PHP has them", "token.auth=1", "token_auth=2&%20token[auth=3&b", "token.auth=1&b"},
		{"nothing to add", "&a=1&&=2", "a=2&=3", "&a=1&&=2"},
		{"an empty query", "", "a=1", "a=1"},
		{"an empty body", "a=1", "", "a=1"},
		{"a removed variable does not hide", "a=1&a" + deep, "a=2", "a=1&a" + deep + "&a=2"},
		{"a removal in the body does not reach the query", "a=1", "a" + deep + "&b=2", "a=1&b=2"},
		{"a NUL in the body is encoded", "a=1", "b=2\x003", "a=1&b=2%003"},
		{"a NUL in the query ends it", "a=1\x00&b=2", "c=3", "a=1&c=3"},
		{"replaced pairs make room", strings.Repeat("a=1&", MaxVars), "b=1&b=2", "a=1&b=2"},
		{"too much is cut", strings.TrimSuffix(numbered("v", MaxVars-1), "&"), "y=1&z=2", numbered("v", MaxVars-1) + "y=1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			get, post := []byte(tt.get), []byte(tt.post)
			if got := string(Merge(get, post)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if string(get) != tt.get || string(post) != tt.post {
				t.Errorf("the input was changed")
			}
		})
	}
}

func TestAppendReencoded(t *testing.T) {
	tests := []struct {
		name, query, want string
	}{
		{"order and duplicates stay", "b=1&a=2&b=3", "b=1&a=2&b=3"},
		{"only unreserved bytes stay literal", "a=/~-._A9!*'()#\xe9", "a=%2F~-._A9%21%2A%27%28%29%23%E9"},
		{"plus becomes a space", "a+b=c+d", "a%20b=c%20d"},
		{"an invalid percent sign is encoded", "a=%4&b=%zz", "a=%254&b=%25zz"},
		{"an equals sign is added", "a&b", "a=&b="},
		{"ignored pairs are left out", "&=1&[a]=2&..Host-=3&a=4", "a=4"},
		{"brackets are encoded", "a[x]=1", "a%5Bx%5D=1"},
		{"a name ends before a NUL", "a%00b=1", "a=1"},
		{"a NUL in a value stays", "a=%00", "a=%00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(AppendReencoded([]byte("?"), []byte(tt.query))); got != "?"+tt.want {
				t.Errorf("got %q, want %q", got, "?"+tt.want)
			}
		})
	}
}

func TestParseURLQuery(t *testing.T) {
	tests := []struct {
		name, s, want string // want is "" for a dropped hit
	}{
		{"a bare query", "?idsite=1&rec=1", "idsite=1&rec=1"},
		{"a path", "/matomo.php?a=1", "a=1"},
		{"a whole address", "https://u:p@e.org:443/m.php?a=1", "a=1"},
		{"a fragment is cut", "?a=1#&cip=2", "a=1"},
		{"a colon and port inside the query", "?url=http://e.org:8080/", "url=http://e.org:8080/"},
		{"control bytes become underscores", "?a=\x00\n\x7f\xe9", "a=___\xe9"},
		{"no query", "foo", ""},
		{"an empty query", "?", ""},
		{"the query zero", "?0", ""},
		{"no host", "http:///?a=1", ""},
		{"no host and no scheme", "//?a=1", ""},
		{"a bad port", "//h:65536?a=1", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := ParseURLQuery(tt.s); got != tt.want || ok != (tt.want != "") {
				t.Errorf("got %q, %v, want %q", got, ok, tt.want)
			}
		})
	}
}

// TestPlainQueriesDoNotAllocate holds what the edge's speed rests on.
func TestPlainQueriesDoNotAllocate(t *testing.T) {
	query := []byte(typicalQuery)
	form := Parse(query)
	dst := make([]byte, 0, 2*len(query))
	tests := []struct {
		name string
		most float64
		run  func()
	}{
		{"Pairs", 0, func() {
			for p := range Pairs(query) {
				if p.Array {
					t.Error("an array")
				}
			}
		}},
		{"Parse", 3, func() { Parse(query) }},
		{"Int", 0, func() { form.Int("idsite", 0) }},
		{"String", 0, func() { form.String("_id") }},
		{"Merge without body", 0, func() { Merge(query, nil) }},
		{"AppendReencoded", 0, func() { dst = AppendReencoded(dst[:0], query) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := testing.AllocsPerRun(100, tt.run); got > tt.most {
				t.Errorf("got %v allocations, want at most %v", got, tt.most)
			}
		})
	}
}
