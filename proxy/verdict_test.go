package proxy

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"sluice/internal/hit"
)

// serveOne gives one request to a fresh endpoint and returns the answer and what
// was stored.
func serveOne(t *testing.T, r *request) (answer, []hit.Hit) {
	t.Helper()
	e, q := newEndpoint(nil)
	a := e.serve(context.Background(), r, new(scratch))
	var hits []hit.Hit
	for _, s := range q.take() {
		hits = append(hits, s.Hits...)
	}
	return a, hits
}

func TestSingleHitVerdicts(t *testing.T) {
	const stored, storedTheirs, dropped, refused = "ours", "theirs", "dropped", "refused"
	tests := []struct {
		name, query string
		agent       string
		want        string
		token       string
		site        int64
	}{
		{"a plain hit", "idsite=1&rec=1", "", stored, "", 1},
		{"a token that nothing needs", "idsite=1&rec=1&token_auth=abc", "", stored, "", 1},
		{"an unknown site", "idsite=77&rec=1", "", stored, "", 77},
		{"a site that a plugin may know", "idsite=a1b2&rec=1", "", stored, "", 0},
		{"a site as an array", "idsite[]=1&rec=1", "", stored, "", 0},
		{"a site replaced later", "idsite=99999&idsite=1&rec=1", "", stored, "", 1},
		{"cip with a token", "idsite=1&rec=1&cip=1.1.1.1&token_auth=a%2Bb", "", storedTheirs, "a+b", 1},
		{"cip with the token 0", "idsite=1&rec=1&cip=1.1.1.1&token_auth=0", "", refused, "", 1},
		{"cip with an empty token", "idsite=1&rec=1&cip=1.1.1.1&token_auth=", "", refused, "", 1},
		{"cip with a token as an array", "idsite=1&rec=1&cip=1.1.1.1&token_auth[]=a", "", refused, "", 1},
		{"cip with a token that a later one empties", "idsite=1&rec=1&cip=1.1.1.1&token_auth=a&token.auth=", "", refused, "", 1},
		{"cip that a later one empties", "idsite=1&rec=1&cip=1.1.1.1&cip=", "", stored, "", 1},
		{"cip that a later array replaces", "idsite=1&rec=1&cip=1.1.1.1&cip[]=", "", stored, "", 1},
		{"an old cdt with a token", "idsite=1&rec=1&cdt=1600000000&token_auth=a", "", storedTheirs, "a", 1},
		{"a token and no rec", "idsite=1&cip=1.1.1.1&token_auth=a", "", dropped, "", 1},
		{"rec as an array", "idsite=1&rec[]=1", "", dropped, "", 1},
		{"rec of 1e0", "idsite=1&rec=1e0", "", stored, "", 1},
		{"an unreadable site and cip", "idsite=a1b2&rec=1&cip=1.1.1.1", "", refused, "", 0},

		{"a cid of the right length", "idsite=1&rec=1&cid=0123456789abcdef", "", stored, "", 1},
		{"a short cid without an agent", "idsite=1&rec=1&cid=abc", "", refused, "", 1},
		{"a short cid of a browser", "idsite=1&rec=1&cid=abc", chrome[12:], refused, "", 1},
		{"a short cid of a robot", "idsite=1&rec=1&cid=abc", "Mozilla/5.0 (compatible; Googlebot/2.1)", stored, "", 1},
		{"a short cid of a tool", "idsite=1&rec=1&cid=abc", "curl/8.0", stored, "", 1},
		{"a short cid of an allowed robot", "idsite=1&rec=1&cid=abc&bots=1", "Googlebot", refused, "", 1},
		{"a short cid of a robot named by ua", "idsite=1&rec=1&cid=abc&ua=Googlebot", chrome[12:], stored, "", 1},
		{"a short cid behind a user id", "idsite=1&rec=1&cid=abc&uid=me", "", stored, "", 1},
		{"a short cid behind the user id 0", "idsite=1&rec=1&cid=abc&uid=0", "", refused, "", 1},
		{"a cid of 0", "idsite=1&rec=1&cid=0", "", stored, "", 1},
		{"a cid that Matomo escapes", "idsite=1&rec=1&cid=a%26b", "", stored, "", 1},
		{"a cid in Latin-1", "idsite=1&rec=1&cid=%E9", "", refused, "", 1},
		{"a cid that is too long once it is escaped", "idsite=1&rec=1&cid=%3C123456789012345", "", refused, "", 1},
		{"a cid that is long enough once it is escaped", "idsite=1&rec=1&cid=%3C123456789012", "", stored, "", 1},
		{"a cid of 16 bytes in UTF-8", "idsite=1&rec=1&cid=%C3%A9%C3%A9123456789012", "", stored, "", 1},
		{"an event of white space", "idsite=1&rec=1&e_c=%20%09%0B&e_a=x", "", refused, "", 1},
		{"an event without an action", "idsite=1&rec=1&e_c=%20", "", stored, "", 1},
		{"an event of a no-break space", "idsite=1&rec=1&e_c=%C2%A0&e_a=x", "", stored, "", 1},
		{"an event of white space with a goal", "idsite=1&rec=1&e_c=%20&e_a=x&idgoal=0", "", stored, "", 1},
		{"an event of white space and a download", "idsite=1&rec=1&e_c=%20&e_a=x&download=http://a/", "", stored, "", 1},
		{"an event of white space as a ping", "idsite=1&rec=1&e_c=%20&e_a=x&ping=1", "", stored, "", 1},
		{"a good event with a blank content", "idsite=1&rec=1&e_c=a&e_a=x&c_n=%20", "", stored, "", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRequest(tt.query)
			r.userAgent = []byte(tt.agent)
			a, hits := serveOne(t, r)
			got := dropped
			switch {
			case a.status == 400:
				got = refused
			case len(hits) == 1 && hits[0].Rights == hit.Theirs:
				got = storedTheirs
			case len(hits) == 1:
				got = stored
			}
			if got != tt.want {
				t.Fatalf("%q is %s, want %s", tt.query, got, tt.want)
			}
			if len(hits) == 0 {
				return
			}
			if h := hits[0]; h.Token != tt.token || h.Site != tt.site || string(h.Params) != tt.query {
				t.Errorf("stored %+v, want token %q, site %d and the query as it came", h, tt.token, tt.site)
			}
		})
	}
}

func TestRefusedHitIsNeverStored(t *testing.T) {
	for _, name := range []string{"cip", "country", "region", "city", "lat", "long"} {
		for _, spelling := range []string{name, "%20" + name, "+" + name, name + "%00x", strings.ToUpper(name[:0]) + name} {
			a, hits := serveOne(t, newRequest("idsite=1&rec=1&"+spelling+"=1"))
			if a.status != 400 || len(hits) != 0 {
				t.Errorf("%s: status %d with %d hits stored, want 400 and none", spelling, a.status, len(hits))
			}
		}
	}
}

func TestBulkHits(t *testing.T) {
	serve := func(t *testing.T, body string) (answer, []hit.Hit) {
		t.Helper()
		r := newRequest("cip=9.9.9.9&token_auth=url")
		r.method, r.body = "POST", []byte(body)
		return serveOne(t, r)
	}
	t.Run("keeps objects verbatim", func(t *testing.T) {
		const object = `{"idsite":1, "rec":1,"n":1.50,"big":12345678901234567890,"cvar":{"1":["a","b"]},"u":"\u00e9"}`
		_, hits := serve(t, `{"x":1,"requests":[`+object+`]}`)
		if len(hits) != 1 || hits[0].Form != hit.Object || string(hits[0].Params) != object {
			t.Errorf("stored %+v, want the object as it came", hits)
		}
	})
	t.Run("keeps the query of strings", func(t *testing.T) {
		_, hits := serve(t, `{"requests":["?idsite=1&rec=1&a=%E9&b=\u00e9","http://x/y?idsite=2&rec=1#z"]}`)
		if len(hits) != 2 || string(hits[0].Params) != "idsite=1&rec=1&a=%E9&b=é" || string(hits[1].Params) != "idsite=2&rec=1" {
			t.Errorf("stored %+v", hits)
		}
	})
	t.Run("gives the bulk's token to all", func(t *testing.T) {
		_, hits := serve(t, `{"requests":["?idsite=1&rec=1&cip=1.1.1.1&token_auth=mine","?idsite=1&rec=1"],"token_auth":"bulk"}`)
		if len(hits) != 2 || hits[0].Rights != hit.Theirs || hits[0].Token != "bulk" {
			t.Fatalf("stored %+v, want the bulk's token to hide the hit's own", hits)
		}
		if hits[1].Rights != hit.Ours || hits[1].Token != "" {
			t.Errorf("stored %+v, want a hit that needs no token to have none", hits[1])
		}
	})
	t.Run("reads the hit's own token when the bulk has none", func(t *testing.T) {
		a, hits := serve(t, `{"requests":["?idsite=1&rec=1&cip=1.1.1.1&token_auth=mine",{"idsite":1,"rec":1,"cip":"1.1.1.1","token_auth":"own"},"?idsite=1&rec=1&cip=1.1.1.1"],"token_auth":""}`)
		if len(hits) != 2 || hits[0].Token != "mine" || hits[1].Token != "own" || a.invalid != 1 {
			t.Errorf("stored %+v with %d invalid, want two with their own tokens and one invalid", hits, a.invalid)
		}
	})
	t.Run("ignores a token that is no string", func(t *testing.T) {
		a, hits := serve(t, `{"requests":["?idsite=1&rec=1&cip=1.1.1.1"],"token_auth":["bulk"]}`)
		if len(hits) != 0 || a.invalid != 1 {
			t.Errorf("stored %+v, want it invalid", hits)
		}
	})
	t.Run("ignores the URL's token and parameters", func(t *testing.T) {
		a, hits := serve(t, `{"requests":["?idsite=1&rec=1","?idsite=1&rec=1&city=Bonn"]}`)
		if len(hits) != 1 || hits[0].Rights != hit.Ours || a.invalid != 1 {
			t.Errorf("stored %+v with %d invalid, want one of ours", hits, a.invalid)
		}
	})
	t.Run("counts what is left out as tracked", func(t *testing.T) {
		a, hits := serve(t, `{"requests":["?idsite=1",{},"?idsite=1&rec=1",null,"nothing"]}`)
		if len(hits) != 1 || a.tracked != 4 || a.invalid != 0 {
			t.Errorf("%d stored, %d tracked, %d invalid; want 1, 4, 0", len(hits), a.tracked, a.invalid)
		}
	})
	t.Run("is one set", func(t *testing.T) {
		e, q := newEndpoint(nil)
		r := newRequest("")
		r.method, r.body = "POST", []byte(`{"requests":["?idsite=1&rec=1","?idsite=2&rec=1"]}`)
		e.serve(context.Background(), r, new(scratch))
		if sets := q.take(); len(sets) != 1 || len(sets[0].Hits) != 2 {
			t.Errorf("stored %+v, want one set of two hits", sets)
		}
	})
	t.Run("asks about few sites", func(t *testing.T) {
		e, _ := newEndpoint(nil)
		asked := &countingSites{}
		e.sites = asked
		r := newRequest("")
		var urls []string
		for i := range 100 {
			urls = append(urls, `"?rec=1&idsite=`+itoa(100+i%50)+`"`)
		}
		r.method, r.body = "POST", []byte(`{"requests":[`+strings.Join(urls, ",")+`]}`)
		e.serve(context.Background(), r, new(scratch))
		if asked.n != maxLookups {
			t.Errorf("asked %d times, want %d", asked.n, maxLookups)
		}
	})
}

type countingSites struct{ n int }

func (s *countingSites) Lookup(context.Context, int64) SiteAnswer { s.n++; return SiteUnknown }

func TestResolveTime(t *testing.T) {
	str := func(s string) value { return value{kind: text, raw: []byte(s)} }
	num := func(s string) value { return value{kind: number, raw: []byte(s)} }
	const day = 86400
	tests := []struct {
		name     string
		cdt, cdo value
		want     int64 // relative to the arrival
		old      bool
		unknown  bool
	}{
		{"nothing", value{}, value{}, 0, false, false},
		{"now", str(itoa(testTime)), value{}, 0, false, false},
		{"a second in the future is ignored", str(itoa(testTime + 1)), value{}, 0, false, false},
		{"an hour ago", str(itoa(testTime - 3600)), value{}, -3600, false, false},
		{"a second less than a day", str(itoa(testTime - day + 1)), value{}, -day + 1, false, false},
		{"a day needs a token", str(itoa(testTime - day)), value{}, -day, true, false},
		{"twenty years, less a second", str(itoa(testTime - oldestTime + 1)), value{}, -oldestTime + 1, true, false},
		{"twenty years are ignored", str(itoa(testTime - oldestTime)), value{}, 0, false, false},
		{"a float is cut", str(itoa(testTime-10) + ".9"), value{}, -10, false, false},
		{"white space around", str(" " + itoa(testTime-10) + " "), value{}, -10, false, false},
		{"a number of JSON", num(itoa(testTime - 10)), value{}, -10, false, false},
		{"true of JSON", value{kind: boolean, raw: []byte("true")}, value{}, 0, false, false},
		{"an array", value{kind: array}, value{}, 0, false, false},
		{"a date", str("2026-11-19 11:00:00"), value{}, -3600, false, false},
		{"a date with an offset", str("2026-11-19T12:30:00+01:00"), value{}, -1800, false, false},
		{"a relative text", str("-2 hours"), value{}, -7200, false, false},
		{"a relative text of two days", str("-2 days"), value{}, -2 * day, true, false},
		{"an empty text", str(""), value{}, 0, false, false},
		{"0 is empty", str("0"), value{}, 0, false, false},
		{"an American date", str("11/19/2026 11:59"), value{}, -60, false, false},
		{"a German date", str("19.11.2026 11:59:00"), value{}, -60, false, false},
		{"a date of a mail", str("Thu, 19 Nov 2026 13:59:00 +0200"), value{}, -60, false, false},
		{"a date with another weekday's name", str("Wed, 19 Nov 2026 11:59:00 GMT"), value{}, 0, false, true},
		{"a time of the day", str("11:59"), value{}, -60, false, false},
		{"hour 24", str("2026-11-18 24:00:00"), value{}, -day / 2, false, false},
		{"a text that is not understood", str("last friday"), value{}, 0, false, true},
		{"an offset alone", value{}, str("60"), -60, false, false},
		{"a negative offset goes back too", value{}, str("-60"), -60, false, false},
		{"an offset of a day", value{}, str("86400"), -day, true, false},
		{"an offset that is no number", value{}, str("1x"), 0, false, false},
		{"an offset of 0", value{}, str("0"), 0, false, false},
		{"both", str(itoa(testTime - 100)), str("60"), -160, false, false},
		{"a future time that the offset brings back", str(itoa(testTime + 100)), str("160"), -60, false, false},
		{"an offset as an array", value{}, value{kind: array}, 0, false, false},
		{"an offset of JSON", value{}, num("60.0"), -60, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := resolveTime(tt.cdt, tt.cdo, testTime, 24*time.Hour)
			if got.at-testTime != tt.want || got.old != tt.old || got.unknown != tt.unknown {
				t.Errorf("got %+d old=%v unknown=%v, want %+d old=%v unknown=%v",
					got.at-testTime, got.old, got.unknown, tt.want, tt.old, tt.unknown)
			}
		})
	}
}

func TestOptedOut(t *testing.T) {
	tests := []struct {
		name, cookie string
		want         bool
	}{
		{"as Matomo sets it", "ignore%3DKg%3D%3D", true},
		{"not escaped", "ignore=Kg==", true},
		{"without padding", "ignore=Kg", true},
		{"among others", "a=MQ:ignore=Kg==", true},
		{"replaced later", "ignore=Kg==:ignore=MQ==", false},
		{"with another value", "ignore=MQ==", false},
		{"with a bare star", "ignore=*", false},
		{"of another name", "ignored=Kg==", false},
		{"empty", "", false},
		{"signed before Matomo 4", "ignore%3DczoxOiIqIjs%3D%3A_%3D" + strings.Repeat("a", 40), true},
		{"serialized and not signed", "ignore%3DczoxOiIqIjs%3D", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := optedOut([]byte(tt.cookie)); got != tt.want {
				t.Errorf("optedOut(%q) = %v, want %v", tt.cookie, got, tt.want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	e, q := newEndpoint(func(c *Config) { c.ThirdPartyCookie, c.KeepHeaders = true, []string{"x-bar", "x-foo", "x-long"} })
	r := newRequest("idsite=1&rec=1")
	r.receivedAt = time.Unix(testTime, 5)
	r.headers = headers{
		userAgent: []byte("Mozilla \xe9"), acceptLanguage: []byte("de"), referer: []byte("https://a/"),
		cookie: []byte("x=y; _pk_uid=0%3D1111111111111111"), dnt: []byte("1"), via: []byte("1.1 Chrome-Compression-Proxy"),
		hints: []hint{{[]byte("Sec-CH-UA-Mobile"), []byte("?1")}, {[]byte("sec-ch-ua"), []byte(`"A";v="1"`)}, {[]byte("Sec-CH-UA-Model"), []byte("caf\xe9")}},
		kept:  []hint{{[]byte("X-Foo"), []byte("1, 2")}, {[]byte("x-BAR"), []byte("caf\xe9")}, {[]byte("X-Long"), make([]byte, maxKeptValue+1)}},
	}
	e.serve(context.Background(), r, new(scratch))
	want := hit.Environment{
		ClientIP: "192.0.2.1", UserAgent: "Mozilla \xe9", AcceptLanguage: "de", Referer: "https://a/",
		ClientHints:   `{"HTTP_SEC_CH_UA":"\"A\";v=\"1\"","HTTP_SEC_CH_UA_MOBILE":"?1","HTTP_SEC_CH_UA_MODEL":"café"}`,
		VisitorCookie: "1111111111111111", Headers: "x-bar: caf\xe9\nx-foo: 1, 2\n", DoNotTrack: true, DataSaver: true,
	}
	sets := q.take()
	if len(sets) != 1 || sets[0].Environment != want || sets[0].ReceivedAt != testTime*1e9+5 {
		t.Errorf("stored %+v, want %+v", sets, want)
	}
}

func TestPlaceOf(t *testing.T) {
	tests := []struct {
		path string
		want place
	}{
		{"/matomo.php", tracker}, {"/piwik.php", tracker}, {"/x/y/matomo.php", tracker}, {"/matomo.php/anything/else", tracker},
		{"/js/", script}, {"/x/js/", script}, {"/js/index.php", script}, {"/x/js/tracker.php", script}, {"/js/index.php/more", script},
		{"/plugins/x/matomo.php", tracker}, {"/plugins/X/js/", elsewhere}, {"/plugins/X/js/index.php", elsewhere},
		{"/", elsewhere}, {"", elsewhere}, {"/js", elsewhere}, {"/js/x", elsewhere}, {"/index.php", elsewhere}, {"/index.php/matomo.php", elsewhere},
		{"/tracker.php", elsewhere}, {"/Matomo.php", elsewhere}, {"/matomo.php5", elsewhere}, {"/xmatomo.php", elsewhere}, {"/matomo.js", elsewhere},
		{"/js/js/", script}, {"/matomo.phpx/matomo.php", tracker},
	}
	for _, tt := range tests {
		if got := placeOf(tt.path); got != tt.want {
			t.Errorf("placeOf(%q) = %d, want %d", tt.path, got, tt.want)
		}
		if got := placeOf([]byte(tt.path)); got != tt.want {
			t.Errorf("placeOf(%q as bytes) = %d, want %d", tt.path, got, tt.want)
		}
	}
	for p, want := range map[string]string{"//matomo.php": "/matomo.php", "/a/../js/": "/js/", "/js/.": "/js/", "/a": "/a", "/./": "/", "/../..": "/"} {
		if got := cleanPath(p); got != want {
			t.Errorf("cleanPath(%q) = %q, want %q", p, got, want)
		}
	}
}

// FuzzQuery gives any bytes as a query and as bodies: nothing panics, what is
// stored can be encoded, and a hit with a privileged parameter is never ours.
func FuzzQuery(f *testing.F) {
	for _, row := range matrixRows {
		head, body, _ := strings.Cut(row.raw, "\r\n\r\n")
		_, query, _ := strings.Cut(strings.Fields(head)[1], "?")
		f.Add([]byte(query), []byte(body), "application/x-www-form-urlencoded")
	}
	f.Add([]byte("a=1"), []byte(part("a", "1")+"--XX--\r\n"), boundary[len("Content-Type: "):])
	f.Fuzz(func(t *testing.T, query, body []byte, contentType string) {
		if len(query) > 1<<16 || len(body) > 1<<16 {
			return
		}
		e, q := newEndpoint(nil)
		r := newRequest("")
		r.method, r.query, r.body, r.contentType = "POST", query, bytes.Clone(body), []byte(contentType)
		e.serve(context.Background(), r, new(scratch))
		for _, set := range q.take() {
			for _, h := range set.Hits {
				if h.Rights != hit.Ours {
					continue
				}
				var p params
				if h.Form == hit.Query {
					p.readQuery(h.Params)
				} else if v, ok := parseJSON(h.Params); ok {
					p.readObject(v)
				} else {
					t.Fatalf("stored object does not parse: %q", h.Params)
				}
				if privileged(&p) || h.Token != "" {
					t.Fatalf("privileged hit taken for ours: %q", h.Params)
				}
			}
		}
	})
}

// FuzzJSON compares with encoding/json, which takes all that PHP takes and more.
func FuzzJSON(f *testing.F) {
	for _, s := range jsonCorpus {
		if len(s) < 200 {
			f.Add([]byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, ok := parseJSON(b)
		if !ok {
			return
		}
		if !validJSON(b) {
			t.Fatalf("taken, but not valid: %q", b)
		}
		for name, child := range v.children() {
			if v.kind == jsonObject && name == nil {
				t.Fatalf("member without a name in %q", b)
			}
			if _, ok := parseJSON(child.raw); !ok {
				t.Fatalf("child %q of %q does not parse", child.raw, b)
			}
		}
		if v.kind == jsonString {
			if want := unmarshalString(t, v.raw); string(decodeJSONString(v.raw)) != want {
				t.Fatalf("%q decodes to %q, want %q", v.raw, decodeJSONString(v.raw), want)
			}
		}
	})
}

// FuzzTimeText looks for panics and for times that only a broken reader gives.
func FuzzTimeText(f *testing.F) {
	for _, s := range timeCorpus {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := resolveTime(value{kind: text, raw: []byte(s)}, value{}, testTime, 24*time.Hour)
		if r.at > testTime || r.at <= testTime-oldestTime || r.old && r.at > testTime-86400 {
			t.Fatalf("%q resolves to %+v", s, r)
		}
	})
}
