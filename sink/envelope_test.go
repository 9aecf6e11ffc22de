package sink

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

// sent reads an element as Matomo's bulk tracking does: the string of a query
// hit, or the object of an object hit.
func sent(t *testing.T, it *item) (query string, members map[string]any) {
	t.Helper()
	body := appendEnvelope(nil, "T", []*item{it})
	var got struct {
		Token    string            `json:"token_auth"`
		Requests []json.RawMessage `json:"requests"`
	}
	if !utf8.Valid(body) {
		t.Fatalf("the body is not UTF-8: %q", body)
	}
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatalf("the body %q is not JSON: %v", body, err)
	}
	if len(got.Requests) != 1 || got.Token != "T" {
		t.Fatalf("the body %q holds %d requests and token %q, want 1 and T", body, len(got.Requests), got.Token)
	}
	if it.Form == hit.Object {
		if err := json.Unmarshal(got.Requests[0], &members); err != nil {
			t.Fatal(err)
		}
		return "", members
	}
	var s string
	if err := json.Unmarshal(got.Requests[0], &s); err != nil {
		t.Fatal(err)
	}
	query, ok := phpform.ParseURLQuery(s)
	if !ok {
		t.Fatalf("PHP finds no query in %q", s)
	}
	return query, nil
}

func TestEncodeQuery(t *testing.T) {
	const at = "1700000000"
	full := hit.Environment{
		ClientIP: "203.0.113.9", UserAgent: "UA/1 (x; y)", AcceptLanguage: "de-AT,de;q=0.9",
		Referer: "https://r.example/?a=1&b=2", ClientHints: `{"HTTP_SEC_CH_UA_MOBILE":"?1"}`,
	}
	const blanks = "&country=&region=&city=&lat=&long="
	const tail = blanks + "&cip=203.0.113.9&cdt=" + at + "&cdo=&token_auth="
	const env = "&lang=de-at%2Cde&ua=UA%2F1%20%28x%3B%20y%29&uadata=%7B%22HTTP_SEC_CH_UA_MOBILE%22%3A%22%3F1%22%7D"
	const ref = "&url=https%3A%2F%2Fr.example%2F%3Fa%3D1%26b%3D2"
	tests := []struct {
		name   string
		env    hit.Environment
		params string
		theirs bool
		want   string
	}{
		{"nothing but the hit", hit.Environment{ClientIP: "203.0.113.9"}, "idsite=1&rec=1", false, "idsite=1&rec=1" + tail},
		{"everything that headers say", full, "idsite=1&rec=1", false, "idsite=1&rec=1" + ref + env + tail},
		{"what the hit says itself", full, "idsite=1&url=u&lang=fr&ua=x&uadata=%7B%7D", false,
			"idsite=1&url=u&lang=fr&ua=x&uadata=%7B%7D" + tail},
		{"a referrer parameter counts as an address", full, "idsite=1&urlref=u&lang=fr&ua=x&uadata=%7B%7D", false,
			"idsite=1&urlref=u&lang=fr&ua=x&uadata=%7B%7D" + tail},
		{"the third-party cookie overrules _id and stands behind uid and cid", hit.Environment{ClientIP: "203.0.113.9", VisitorCookie: "1111111111111abc"}, "idsite=1&_id=0123456789abcdef&uid=u&cid=c", false,
			"idsite=1&_id=0123456789abcdef&uid=u&cid=c&_id=1111111111111abc" + tail},
		{"the third-party cookie of another's hit", hit.Environment{ClientIP: "203.0.113.9", VisitorCookie: "1111111111111abc"}, "idsite=1&cip=198.51.100.7", true,
			"idsite=1&cip=198.51.100.7&_id=1111111111111abc&cdt=" + at + "&cdo=&token_auth=their"},
		{"zero counts as no address", full, "url=0&urlref=&lang=fr&ua=x&uadata=%7B%7D", false,
			"url=0&urlref=&lang=fr&ua=x&uadata=%7B%7D" + ref + tail},
		{"an array counts as an address but not as language and agent", full, "url[]=&lang[]=a&ua[]=b&uadata[a]=b", false,
			"url%5B%5D=&lang%5B%5D=a&ua%5B%5D=b&uadata%5Ba%5D=b&lang=de-at%2Cde&ua=UA%2F1%20%28x%3B%20y%29" + tail},
		{"empty parameters stay", full, "dimension1=&url=u&lang=fr&ua=x&uadata={}", false,
			"dimension1=&url=u&lang=fr&ua=x&uadata=%7B%7D" + tail},
		{"a raw hash mark and bytes that are no UTF-8", hit.Environment{ClientIP: "2001:db8::1"}, "a=#x&b=%E9&c=\xff", false,
			"a=%23x&b=%E9&c=%FF" + blanks + "&cip=2001%3Adb8%3A%3A1&cdt=" + at + "&cdo=&token_auth="},
		{"what the client says of itself is overruled", hit.Environment{ClientIP: "203.0.113.9"}, "%20cip=&token.auth=x&cdt=12&cdo=3&country=", false,
			"%20cip=&token.auth=x&cdt=12&cdo=3&country=" + tail},
		{"their address and place stay", full, "idsite=1&cip=198.51.100.7&country=fr&url=u&lang=fr&ua=x&uadata={}&cdt=5", true,
			"idsite=1&cip=198.51.100.7&country=fr&url=u&lang=fr&ua=x&uadata=%7B%7D&cdt=5&cdt=" + at + "&cdo=&token_auth=their"},
		{"their missing address is ours to say", full, "idsite=1&cip=0&url=u&lang=fr&ua=x&uadata={}", true,
			"idsite=1&cip=0&url=u&lang=fr&ua=x&uadata=%7B%7D&cip=203.0.113.9&cdt=" + at + "&cdo=&token_auth=their"},
		{"a referrer that PHP calls empty", hit.Environment{ClientIP: "203.0.113.9", Referer: "0"}, "idsite=1", false, "idsite=1" + tail},
		{"no parameters", hit.Environment{ClientIP: "203.0.113.9"}, "", false, strings.TrimPrefix(tail, "&")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := hit.Pending{Environment: &tt.env, Hit: hit.Hit{Params: []byte(tt.params), At: 1700000000, Site: 1}}
			if tt.theirs {
				p.Rights, p.Token = hit.Theirs, "their"
			}
			it := newEncoder().encode(p)
			if got, _ := sent(t, it); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			if it.group.theirs != tt.theirs || tt.theirs && it.group.token != "their" {
				t.Errorf("group %+v, theirs %v", it.group, tt.theirs)
			}
		})
	}
}

// checkOverrides checks that PHP reads the overrides from an element, and the
// rest as it reads the hit itself.
func checkOverrides(t *testing.T, p hit.Pending) {
	t.Helper()
	it := newEncoder().encode(p)
	query, _ := sent(t, it)
	got, was := phpform.Parse([]byte(query)), phpform.Parse(p.Params)
	overridden := map[string]bool{}
	want := func(name, value string) {
		overridden[name] = true
		if v, kind := got.Raw(name); kind != phpform.Scalar || v != value {
			t.Errorf("%s is %v %q, want %q", name, kind, v, value)
		}
	}
	want("cdt", fmt.Sprint(p.At))
	want("cdo", "")
	want("token_auth", "")
	if p.Rights == hit.Ours {
		want("cip", p.Environment.ClientIP)
		for _, name := range locationNames {
			want(name, "")
		}
	}
	for _, name := range []string{"url", "lang", "ua", "uadata", "cip"} {
		overridden[name] = true // TestEncodeQuery has these
	}
	n := 0
	for pair := range phpform.Pairs(p.Params) {
		if n++; n > phpform.MaxVars-20 {
			break // the limit of crowded hits
		}
		name := string(pair.Name)
		if overridden[name] {
			continue
		}
		wasValue, wasKind := was.Raw(name)
		if v, kind := got.Raw(name); kind != wasKind || v != wasValue {
			t.Errorf("%q is %v %q, was %v %q", name, kind, v, wasKind, wasValue)
		}
	}
}

func FuzzEncodeQuery(f *testing.F) {
	f.Add([]byte("idsite=1&rec=1&url=x#y&cip=1.2.3.4&%63ip=5&cip[]=6"), "agent", "de", "https://r/")
	f.Add([]byte("a=%zz&%00=1&c%00d=2&[x]=3&.cip=4&token.auth=5"), "\xff\"\\", ",,;q=", "0")
	f.Fuzz(func(t *testing.T, params []byte, agent, language, referer string) {
		checkOverrides(t, hit.Pending{
			Environment: &hit.Environment{ClientIP: "203.0.113.9", UserAgent: agent, AcceptLanguage: language, Referer: referer},
			Hit:         hit.Hit{Params: params, At: 1700000000},
		})
	})
}

func TestEncodeCrowdedQuery(t *testing.T) {
	var b strings.Builder
	for i := range 1200 {
		fmt.Fprintf(&b, "p%d=%d&", i, i)
	}
	b.WriteString("country=de")
	p := hit.Pending{Environment: &hit.Environment{ClientIP: "203.0.113.9", UserAgent: "x"}, Hit: hit.Hit{Params: []byte("cip=9.9.9.9&" + b.String()), At: 1700000000}}
	checkOverrides(t, p)
	query, _ := sent(t, newEncoder().encode(p))
	got := phpform.Parse([]byte(query))
	if v := got.String("p970"); v != "970" {
		t.Errorf("p970 = %q, want 970", v)
	}
	if strings.Contains(query, "9.9.9.9") {
		t.Errorf("an overridden variable takes up room")
	}
}

func TestEncodeObject(t *testing.T) {
	env := &hit.Environment{ClientIP: "203.0.113.9", UserAgent: "U\"A\xe9", AcceptLanguage: "de", Referer: "https://r/"}
	const rest = `"country":"","region":"","city":"","lat":"","long":"","cip":"203.0.113.9","cdt":"1700000000","cdo":"","token_auth":""}`
	tests := []struct {
		name, text, want string
		alone            bool
	}{
		{"values stay verbatim", ` {"idsite":1,"e_v":1.50,"url":"http:\/\/x","ua":"a","lang":"b"} `,
			`{"idsite":1,"e_v":1.50,"url":"http:\/\/x","ua":"a","lang":"b",` + rest, false},
		{"what headers say", `{"idsite":"1"}`,
			`{"idsite":"1","url":"https://r/","lang":"de","ua":"U\"Aé",` + rest, false},
		{"values that PHP calls empty", `{"url":0,"urlref":[],"lang":null,"ua":false}`,
			`{"url":0,"urlref":[],"lang":null,"ua":false,"url":"https://r/","lang":"de","ua":"U\"Aé",` + rest, false},
		{"an empty object stays empty", `{ }`, `{}`, false},
		{"a surrogate pair", `{"url":"\ud83d\ude00","ua":"a","lang":"b"}`, `{"url":"\ud83d\ude00","ua":"a","lang":"b",` + rest, false},
		{"a lone surrogate travels alone", `{"url":"\ud83d","ua":"a","lang":"b"}`, `{"url":"\ud83d","ua":"a","lang":"b",` + rest, true},
		{"a literal that only PHP reads travels alone", `{"url":TRUE}`, ``, true},
		{"hints of a wrong type travel alone", `{"url":"u","ua":"a","lang":"b","uadata":{"platform":[1]}}`,
			`{"url":"u","ua":"a","lang":"b","uadata":{"platform":[1]},` + rest, true},
		{"line breaks inside are what Matomo removes", "{\"url\":\"a\nb\",\"ua\":\"a\",\r\n\"lang\":\"b\"}", `{"url":"ab","ua":"a","lang":"b",` + rest, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := hit.Pending{Environment: env, Hit: hit.Hit{Form: hit.Object, Params: []byte(tt.text), At: 1700000000}}
			it := newEncoder().encode(p)
			if it.malformed || it.alone != tt.alone {
				t.Errorf("malformed %v alone %v, want alone %v", it.malformed, it.alone, tt.alone)
			}
			if tt.want != "" && string(it.element) != tt.want {
				t.Errorf("got\n%s\nwant\n%s", it.element, tt.want)
			}
		})
	}
}

func TestEncodeRefusesWhatIsNotOneObject(t *testing.T) {
	for _, text := range []string{
		"", "{", "}", "[]", "1", "null", `{"a":1}],"requests":[{"idsite":1}`, `{"a":1},{"b":2}`, `{"a":"}`, `{"a":[}]}`, "{\"a\":\"\xff\"}", `{"a":1}}`,
	} {
		p := hit.Pending{Environment: &hit.Environment{}, Hit: hit.Hit{Form: hit.Object, Params: []byte(text)}}
		if it := newEncoder().encode(p); !it.malformed {
			t.Errorf("%q is put into a request: %q", text, it.element)
		}
	}
}

// FuzzEncodeObject checks that an object's text cannot reach beyond its place in
// the request.
func FuzzEncodeObject(f *testing.F) {
	f.Add([]byte(`{"idsite":1,"rec":1}`))
	f.Add([]byte(`{"a":1}],"token_auth":"x","requests":[{"b":2}`))
	f.Add([]byte(`{"a":"\u0000\"}"}`))
	f.Add([]byte("{\"a\":TRUE,\"b\":{}}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p := hit.Pending{Environment: &hit.Environment{ClientIP: "203.0.113.9", UserAgent: "\xff"}, Hit: hit.Hit{Form: hit.Object, Params: text, At: 7}}
		it := newEncoder().encode(p)
		if it.malformed {
			return
		}
		if !utf8.Valid(it.element) {
			t.Fatalf("%q is not UTF-8", it.element)
		}
		if !balanced(it.element) {
			t.Fatalf("%q is not one object", it.element)
		}
		if it.alone || string(it.element) == "{}" {
			return
		}
		if _, members := sent(t, it); members["cip"] != "203.0.113.9" || members["cdt"] != "7" || members["token_auth"] != "" {
			t.Errorf("overrides do not win in %q", it.element)
		}
	})
}

func TestHarmlessHints(t *testing.T) {
	tests := []struct {
		text string
		want bool
	}{
		{`{"fullVersionList":[{"brand":"Chromium","version":"120"}],"mobile":false,"model":"","platform":"Linux","platformVersion":"6"}`, true},
		{`{"HTTP_SEC_CH_UA_MOBILE":"?1"}`, true},
		{`{"brands":[{"brand":"a","version":"1"}]}`, true},
		{``, true}, {`[]`, true}, {`"x"`, true}, {`5`, true}, {`nonsense`, true},
		{`{"platform":["x"]}`, false},
		{`{"model":{"a":1}}`, false},
		{`{"Model":5}`, false},
		{`{"platform_version":null}`, false},
		{`{"architecture":true}`, false},
		{`{"HTTP_SEC_CH_UA":[]}`, false},
		{`{"pl&#97;tform":[]}`, false},
		{` {"platform":[1],"x":TRUE}`, false},
		{`{"brands":[{"brand":["a"]}]}`, false},
	}
	for _, tt := range tests {
		if got := harmlessHints(tt.text); got != tt.want {
			t.Errorf("harmlessHints(%s) = %v, want %v", tt.text, got, tt.want)
		}
	}
}

// TestNormaliseLanguage holds what PHP made of these headers with Matomo's own
// function.
func TestNormaliseLanguage(t *testing.T) {
	for _, tt := range [][2]string{
		{"de-AT,de;q=0.9", "de-at,de"}, {"en_US.UTF-8", "en-us"}, {"C", "c"}, {"sr-SP,sr;q=0.5", "sr-rs,sr"},
		{"en-securid,de", "de"}, {"de,en-securid,fr", "de,fr"}, {"de,en-securid", "de"}, {"en-securid", ""},
		{"de, chrome://global/locale/intl.properties", "de"}, {"chrome://global/locale/intl.properties", ""},
		{`de (comment), fr\x;q=0.3`, "de,fr"}, {"de\t,\u00a0fr", "de,\u00a0fr"},
		{`a&b<c>"d";q=1`, "a&amp;b&lt;c&gt;&quot;d&quot;"}, {"de&amp;fr", "de&amp;fr"}, {"  ", ""}, {"*", "*"}, {"0", ""},
		{"x'y", "x&#039;y"}, {"(((a)b)c", "b)c"}, {"de;q=.5,fr;q=1..2", "de,fr"}, {"en.a,b;q=0.3", "en"}, {`\"x`, "quot;x"},
	} {
		if got := normaliseLanguage(tt[0]); got != tt[1] {
			t.Errorf("normaliseLanguage(%q) = %q, want %q", tt[0], got, tt[1])
		}
		if again := normaliseLanguage(tt[1]); again != tt[1] {
			t.Errorf("normaliseLanguage(%q) = %q: not idempotent", tt[1], again)
		}
	}
}

func TestEncoderCachesAreBounded(t *testing.T) {
	e := newEncoder()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3 * maxCached {
		e.language(fmt.Sprint(rng.Uint64()))
		e.harmless(fmt.Sprint(rng.Uint64()))
	}
	if len(e.languages) > maxCached || len(e.hints) > maxCached {
		t.Errorf("caches hold %d and %d entries, want at most %d", len(e.languages), len(e.hints), maxCached)
	}
	e.language(strings.Repeat("x", maxCachedText+1))
	if slices.ContainsFunc(slices.Collect(maps.Keys(e.languages)), func(k string) bool { return len(k) > maxCachedText }) {
		t.Errorf("a long text is cached")
	}
}
