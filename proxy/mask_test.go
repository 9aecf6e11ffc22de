package proxy

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

// TestMask: the values are those of anonymize of Matomo's own library for 0 to 4
// bytes.
func TestMask(t *testing.T) {
	tests := []struct {
		address string
		want    [maxMask + 1]string
	}{
		{"192.0.2.213", [5]string{"192.0.2.213", "192.0.2.0", "192.0.0.0", "192.0.0.0", "0.0.0.0"}},
		{"255.255.255.255", [5]string{"255.255.255.255", "255.255.255.0", "255.255.0.0", "255.0.0.0", "0.0.0.0"}},
		{"0.0.0.0", [5]string{"0.0.0.0", "0.0.0.0", "0.0.0.0", "0.0.0.0", "0.0.0.0"}},
		{"2001:db8:1234:5678:9abc:def0:1234:5678", [5]string{"2001:db8:1234:5678:9abc:def0:1234:5678", "2001:db8:1234:5678::", "2001:db8:1234::", "2001:d00::", "::"}},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", [5]string{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff::", "ffff:ffff:ffff::", "ffff:ff00::", "::"}},
		{"2001:db8::7", [5]string{"2001:db8::7", "2001:db8::", "2001:db8::", "2001:d00::", "::"}},
		{"fe80::1", [5]string{"fe80::1", "fe80::", "fe80::", "fe80::", "::"}},
		{"::1", [5]string{"::1", "::", "::", "::", "::"}},
		{"::", [5]string{"::", "::", "::", "::", "::"}},
		{"::ffff:198.51.100.77", [5]string{"::ffff:198.51.100.77", "::ffff:198.51.100.0", "::ffff:198.51.0.0", "::ffff:198.0.0.0", "::ffff:0.0.0.0"}},
		{"::198.51.100.77", [5]string{"::198.51.100.77", "::198.51.100.0", "::198.51.0.0", "::198.0.0.0", "::"}},
		{"::1:2:3", [5]string{"::1:2:3", "::", "::", "::", "::"}},
		{"0:0:0:0:1::2", [5]string{"::1:0:0:2", "::", "::", "::", "::"}},
		{"64:ff9b::c633:644d", [5]string{"64:ff9b::c633:644d", "64:ff9b::", "64:ff9b::", "64:ff00::", "::"}},
	}
	for _, tt := range tests {
		for n, want := range tt.want {
			if got := mask(netip.MustParseAddr(tt.address), n); got != netip.MustParseAddr(want) {
				t.Errorf("mask(%s, %d) = %s, want %s", tt.address, n, got, want)
			}
		}
	}
	if got := mask(netip.Addr{}, 2); got.IsValid() {
		t.Errorf("mask of no address = %s", got)
	}
}

func TestMaskText(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"a text that is empty to PHP", "0", "0"},
		{"IPv4", "1.2.3.4", "1.2.0.0"},
		{"IPv6", "2001:0DB8:1:2::5", "2001:db8:1::"},
		{"IPv4 in IPv6", "::ffff:1.2.3.4", "::ffff:1.2.0.0"},
		{"an address that is masked already", "2001:0DB8::", "2001:0DB8::"},
		{"blanks around", " 1.2.3.4\t", " 1.2.0.0\t"},
		{"a port", "1.2.3.4:443", "1.2.0.0:443"},
		{"brackets", "[2001:db8:1:2::5]", "[2001:db8:1::]"},
		{"brackets and a port", "[::1]:5", "[::]:5"},
		{"brackets around IPv4", "[1.2.3.4]:5", "[1.2.0.0]:5"},
		{"a length", "1.2.3.4/24", "1.2.0.0/24"},
		{"all of it", " [2001:db8:1:2::5]:443/64", " [2001:db8:1::]:443/64"},
		{"a port behind IPv4 in IPv6", "::ffff:1.2.3.4:443", "::ffff:1.2.0.0:443"},
		{"what would become an address by masking", "::1.2.3.4:443", "0.0.0.0"},
		{"what would become something else by masking", "::0.0.0.1:", "0.0.0.0"},
		{"NUL bytes, which Matomo drops", "1.2.\x003.4\x00", "1.2.0.0"},
		{"a NUL behind an empty text", "0\x00", "0"},
		{"a word", "unknown", "unknown"},
		{"a list", "1.2.3.4, 5.6.7.8", "0.0.0.0"},
		{"another address behind a slash", "1.2.3.4/5.6.7.8", "0.0.0.0"},
		{"another address behind brackets", "[::1]2001:23::5:1", "0.0.0.0"},
		{"a zone", "fe80::5%eth0", "0.0.0.0"},
		{"a leading zero", "1.2.3.04", "0.0.0.0"},
		{"an integer", "16909060", "0.0.0.0"},
		{"a host's name", "dsl-1-2-3-4.example", "0.0.0.0"},
		{"letters of an IPv6 address", "dead:beef", "0.0.0.0"},
		{"HTML entities", "1&period;2", "0.0.0.0"},
		{"an entity without digits", "dead&colon;beef", "0.0.0.0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := maskText(tt.text, 2); got != tt.want {
				t.Errorf("maskText(%q) = %q, want %q", tt.text, got, tt.want)
			}
		})
	}
}

// TestAddressWithin: the values are those of Matomo's IPUtils::sanitizeIp.
func TestAddressWithin(t *testing.T) {
	for text, want := range map[string]string{
		" 1.2.3.4 ": "1.2.3.4", "1.2.3.4:443": "1.2.3.4", "1.2.3.4/24": "1.2.3.4", "[::1]:5": "::1", "[1.2.3.4]:5": "1.2.3.4",
		"[2001:db8::1]": "2001:db8::1", "[2001:db8::1]:443/64": "2001:db8::1", "2001:db8::1/64": "2001:db8::1",
		"::ffff:1.2.3.4:443": "::ffff:1.2.3.4", "2001:db8::1:443": "2001:db8::1:443", "[::1": "[::1", "1.2.3.4:5:6": "1.2.3.4:5",
		"::1]:5": "::1]:5", "1.2.3.4/5/6": "1.2.3.4/5", "[": "[", "[:": "[", "/": "", "": "", "[1:2]": "1:2", "a:b.c:d": "a:b.c", "[::1]x.y:5": "::1",
	} {
		before, got, after := addressWithin(text)
		if got != want || before+got+after != text {
			t.Errorf("addressWithin(%q) = %q, %q, %q, want %q", text, before, got, after, want)
		}
	}
}

// maskRows are requests through a trusted proxy of a visitor at 198.51.100.77 with
// cip 203.0.113.213 and the like. Form is what is stored of the hit with two bytes
// masked.
var maskRows = []struct{ name, raw, form string }{
	{"no cip", get("/matomo.php?idsite=1&rec=1&a=1.2", visitor), "idsite=1&rec=1&a=1.2"},
	{"cip", get("/matomo.php?idsite=1&rec=1&cip=203.0.113.213&token_auth=t&a=%e9+b", visitor), "idsite=1&rec=1&cip=203.0.0.0&token_auth=t&a=%e9+b"},
	{"cip of a form", post("/matomo.php", "idsite=1&rec=1&token_auth=t&cip=203.0.113.213", formType, visitor), "idsite=1&rec=1&token_auth=t&cip=203.0.0.0"},
	{"cip of URL and form", post("/matomo.php?cip=203.0.113.213", "idsite=1&rec=1&token_auth=t&cip=203.0.113.213&b=%2f", formType, visitor),
		"cip=203.0.0.0&idsite=1&rec=1&token_auth=t&b=%2f"},
	{"an escaped name and value", get("/matomo.php?idsite=1&rec=1&token_auth=t&%63i%70=203%2e0.113.213", visitor), "idsite=1&rec=1&token_auth=t&%63i%70=203.0.0.0"},
	{"a name with a space before it", get("/matomo.php?idsite=1&rec=1&token_auth=t&+cip=203.0.113.213", visitor), "idsite=1&rec=1&token_auth=t&+cip=203.0.0.0"},
	{"a name that ends in a NUL", get("/matomo.php?idsite=1&rec=1&token_auth=t&cip%00x=203.0.113.213", visitor), "idsite=1&rec=1&token_auth=t&cip%00x=203.0.0.0"},
	{"a value that a later one hides", get("/matomo.php?cip=203.0.113.213&idsite=1&rec=1&cip=&token_auth=t", visitor), "cip=203.0.0.0&idsite=1&rec=1&cip=&token_auth=t"},
	{"an array", get("/matomo.php?idsite=1&rec=1&cip[]=203.0.113.213", visitor), "idsite=1&rec=1&cip[]=203.0.0.0"},
	{"a value beyond PHP's limit", get("/matomo.php?idsite=1&rec=1"+many+"&cip=203.0.113.213", visitor), "idsite=1&rec=1" + many + "&cip=203.0.0.0"},
	{"IPv6 in brackets", get("/matomo.php?idsite=1&rec=1&cip=[2001:db8:7:8::9]:443&token_auth=t", visitor), "idsite=1&rec=1&cip=%5B2001%3Adb8%3A7%3A%3A%5D%3A443&token_auth=t"},
	{"a list", get("/matomo.php?idsite=1&rec=1&cip=203.0.113.213,198.51.100.77&token_auth=t", visitor), "idsite=1&rec=1&cip=0.0.0.0&token_auth=t"},
	{"another name", get("/matomo.php?idsite=1&rec=1&xcip=192.0.2.9&cipx=192.0.2.9", visitor), "idsite=1&rec=1&xcip=192.0.2.9&cipx=192.0.2.9"},
	{"a string of a bulk", post("/matomo.php", `{"requests":["?idsite=1&rec=1&\u0063ip=203.0.113.213&a=%E9&token_auth=t"]}`, visitor), "idsite=1&rec=1&cip=203.0.0.0&a=%E9&token_auth=t"},
	{"a string of a bulk with a NUL", post("/matomo.php", `{"requests":["?idsite=1&rec=1&a=\u0000&cip=203.0.113.213"],"token_auth":"t"}`, visitor), "idsite=1&rec=1&a=_&cip=203.0.0.0"},
	{"an object of a bulk", post("/matomo.php", `{"requests":[{ "idsite":1,"rec" : 1, "cip" :  "203.0.113.213" ,"a":"\u00e9"}],"token_auth":"t"}`, visitor),
		`{ "idsite":1,"rec" : 1, "cip" :  "203.0.0.0" ,"a":"\u00e9"}`},
	{"an object with an escaped name", post("/matomo.php", `{"requests":[{"\u0063ip":"203.0\u002e113.213","idsite":1,"rec":1}],"token_auth":"t"}`, visitor),
		`{"\u0063ip":"203.0.0.0","idsite":1,"rec":1}`},
	{"an object with two", post("/matomo.php", `{"requests":[{"cip":"203.0.113.213","idsite":1,"rec":1,"cip":"2001:db8:7:8::9"}],"token_auth":"t"}`, visitor),
		`{"cip":"203.0.0.0","idsite":1,"rec":1,"cip":"2001:db8:7::"}`},
	{"an object with a list", post("/matomo.php", `{"requests":[{"idsite":1,"rec":1,"cip":["203.0.113.213"],"city":"x"}],"token_auth":"t"}`, visitor), `{"idsite":1,"rec":1,"cip":[],"city":"x"}`},
	{"an object with an integer", post("/matomo.php", `{"requests":[{"idsite":1,"rec":1,"cip":3405803989}],"token_auth":"t"}`, visitor), `{"idsite":1,"rec":1,"cip":"0.0.0.0"}`},
	{"an object without an address", post("/matomo.php", `{"requests":[{"idsite":1,"rec":1,"cip":false,"x":{"cip":"192.0.2.9"}}]}`, visitor), `{"idsite":1,"rec":1,"cip":false,"x":{"cip":"192.0.2.9"}}`},
}

const visitor = "X-Forwarded-For: 198.51.100.77, 127.0.0.1\r\nForwarded: for=198.51.100.77\r\nUser-Agent: a\r\nReferer: https://b/"

var many = strings.Repeat("&a=1", phpform.MaxVars)

// unmasked are texts that must not be on disk; the bytes stand for the binary form.
var unmasked = []string{"198.51.100.77", "203.0.113", "113.213", "3405803989", "7:8::9", "127.0.0.1", "\xc6\x33\x64\x4d", "\xcb\x00\x71\xd5"}

// TestNoUnmaskedAddressIsStored sends the rows through both ways in and searches
// what is stored, as it would stand on disk.
func TestNoUnmaskedAddressIsStored(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	r := newRig(t, func(c *Config) { c.Trusted, c.MaskAddress = loopback, 2 })
	for _, way := range []struct {
		name     string
		exchange func(testing.TB, string) rawAnswer
	}{{"fast", r.exchange}, {"library", r.exchangeByLibrary}} {
		for _, row := range maskRows {
			t.Run(way.name+"/"+row.name, func(t *testing.T) {
				a := way.exchange(t, row.raw)
				sets := r.queue.take()
				if len(sets) != 1 || len(sets[0].Hits) != 1 {
					t.Fatalf("answered %s, stored %+v, want one hit", a.status, sets)
				}
				if got := string(sets[0].Hits[0].Params); got != row.form {
					t.Errorf("stored %q, want %q", got, row.form)
				}
				if got := sets[0].Environment.ClientIP; got != "198.51.0.0" {
					t.Errorf("stored the address %q, want 198.51.0.0", got)
				}
				disk := hit.AppendRequestSet(nil, &sets[0])
				for _, secret := range unmasked {
					if bytes.Contains(disk, []byte(secret)) {
						t.Errorf("%q is stored in %q", secret, disk)
					}
				}
			})
		}
	}
}

// TestWithoutAMaskNothingChanges is the control: the same requests are stored as
// they came.
func TestWithoutAMaskNothingChanges(t *testing.T) {
	e, q := newEndpoint(nil)
	r := newRequest("idsite=1&rec=1&cip=203.0.113.213,1.2.3.4&token_auth=t")
	e.serve(context.Background(), r, new(scratch))
	r.method, r.query, r.body = "POST", nil, []byte(`{"requests":["?idsite=1&rec=1&cip=203.0.113.213",{"idsite":1,"rec":1,"cip":["203.0.113.213"]}],"token_auth":"t"}`)
	e.serve(context.Background(), r, new(scratch))
	var got []string
	for _, set := range q.take() {
		for _, h := range set.Hits {
			got = append(got, set.Environment.ClientIP+" "+string(h.Params))
		}
	}
	want := []string{"192.0.2.1 idsite=1&rec=1&cip=203.0.113.213,1.2.3.4&token_auth=t",
		"192.0.2.1 idsite=1&rec=1&cip=203.0.113.213", `192.0.2.1 {"idsite":1,"rec":1,"cip":["203.0.113.213"]}`}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("stored\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestHeadersAreKeptMasked(t *testing.T) {
	e, q := newEndpoint(func(c *Config) { c.MaskAddress, c.KeepHeaders = 2, []string{"x-a", "x-b"} })
	r := newRequest("idsite=1&rec=1")
	r.kept = []hint{{[]byte("X-B"), []byte(`for="[2001:db8:7:8::9]:5";by=203.0.113.213, 198.51.100.77`)}, {[]byte("X-A"), []byte("203.0.113.213 v1.2.3 12:30")}}
	e.serve(context.Background(), r, new(scratch))
	want := "x-a: 203.0.0.0 v1.2.3 12:30\nx-b: for=\"[2001:db8:7::]:5\";by=203.0.0.0, 198.51.0.0\n"
	if sets := q.take(); len(sets) != 1 || sets[0].Environment.Headers != want {
		t.Errorf("stored %+v, want the headers %q", sets, want)
	}
}

// TestMaskedClientAddress: who is trusted is decided before anything is masked.
func TestMaskedClientAddress(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.7.0.0/16")}
	tests := []struct {
		name, peer, forwardedFor string
		n                        int
		want                     string
	}{
		{"a stranger", "192.0.2.213", "1.2.3.4", 1, "192.0.2.0"},
		{"a stranger over IPv6", "2001:db8:1:2::5", "1.2.3.4", 1, "2001:db8:1:2::"},
		{"a trusted proxy whose masked address is not trusted", "10.0.0.1", "1.2.3.4", 2, "1.2.0.0"},
		{"a stranger whose masked address is trusted", "10.7.200.1", "1.2.3.4", 3, "1.0.0.0"},
		{"trusted proxies in a row", "10.0.0.1", "6.6.6.6, 1.2.3.4, 10.7.8.9", 3, "1.0.0.0"},
		{"a proxy without a visitor", "10.0.0.1", "nobody", 3, "10.0.0.0"},
		{"IPv4 in IPv6", "10.0.0.1", "::ffff:1.2.3.4", 1, "1.2.3.0"},
		{"all of it", "10.0.0.1", "2001:db8::7", 4, "::"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, _ := newEndpoint(func(c *Config) { c.Trusted, c.MaskAddress = trusted, tt.n })
			peer := netip.MustParseAddr(tt.peer)
			r := &request{peer: peer, peerText: peer.String(), headers: headers{forwardedFor: []byte(tt.forwardedFor)}}
			if got := e.clientAddress(r, ""); got != tt.want {
				t.Errorf("clientAddress = %q, want %q", got, tt.want)
			}
		})
	}
	e, _ := newEndpoint(func(c *Config) { c.MaskAddress = 2 })
	if got := e.clientAddress(&request{peerText: "invalid IP"}, ""); got != "invalid IP" {
		t.Errorf("a peer without an address becomes %q", got)
	}
}

// TestMaskedHitsDoNotPassTheQueueBy: they would bring Matomo the whole address.
func TestMaskedHitsDoNotPassTheQueueBy(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaskAddress, c.PassThrough = 1, func(int64) bool { return true } })
	r.queue.fail(errFull)
	for _, exchange := range []func(testing.TB, string) rawAnswer{r.exchange, r.exchangeByLibrary} {
		if a := exchange(t, get("/matomo.php?idsite=1&rec=1")); !strings.Contains(a.status, " 503 ") {
			t.Errorf("got %s, want 503", a.status)
		}
	}
	if n := r.matomoN(); n != 0 {
		t.Errorf("%d requests reached Matomo, want none", n)
	}
}

// TestErrorsWithAddressesAreNotLogged: net/http names the client in its errors, and
// so do those of a connection.
func TestErrorsWithAddressesAreNotLogged(t *testing.T) {
	for _, tt := range []struct {
		name  string
		n     int
		wants bool
	}{{"masked", 1, false}, {"not masked", 0, true}} {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			e, q := newEndpoint(nil)
			s, err := New(Config{Upstream: e.cfg.Upstream, MaskAddress: tt.n}, q, nil, logger, metrics.NewSet())
			if err != nil {
				t.Fatal(err)
			}
			lost := &net.OpError{Op: "read", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 213)}, Err: errors.New("timeout")}
			s.newHTTPServer().ErrorLog.Print("http: panic serving 192.0.2.213:5: x")
			s.passing.ErrorHandler(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil), lost)
			if got := strings.Count(log.String(), "192.0.2.213"); (got == 2) != tt.wants || (got == 0) == tt.wants {
				t.Errorf("logged\n%s", log.String())
			}
		})
	}
}

// TestMaskingAllocatesNothing: neither off nor on, from a client's second hit on.
func TestMaskingAllocatesNothing(t *testing.T) {
	for _, n := range []int{0, 2} {
		e, _ := newEndpoint(func(c *Config) { c.MaskAddress = n })
		e.queue = nullQueue{}
		r, s := newRequest(benchQuery), new(scratch)
		r.peer = netip.MustParseAddr("2001:db8:1:2::5")
		if got := testing.AllocsPerRun(100, func() { e.serve(context.Background(), r, s) }); got != 0 {
			t.Errorf("mask of %d bytes: %v allocations", n, got)
		}
	}
}

// FuzzMask: masking twice is masking once; Matomo reads the masked address of
// whatever it would have read as one, and no other.
func FuzzMask(f *testing.F) {
	for _, s := range []string{"1.2.3.4", "::ffff:1.2.3.4", "::1.2.3.4:443", "[2001:db8::1]:443/64", " 1.2.3.4 ", "1.2.3.4, 5.6.7.8", "fe80::1%eth0", "0", "x",
		`"1.2.3.4"`, `["1.2.3.4"]`, "1.2.3.4&cip[]=1.2.3.4&+cip=%31.2.3.4"} {
		f.Add(s, uint8(2))
	}
	f.Fuzz(func(t *testing.T, text string, bytesToMask uint8) {
		n := 1 + int(bytesToMask)%maxMask
		once := maskText(text, n)
		if twice := maskText(once, n); twice != once {
			t.Fatalf("%q becomes %q, and then %q", text, once, twice)
		}
		before, was := readAddress(strings.ReplaceAll(text, "\x00", ""))
		after, is := readAddress(once)
		switch {
		case was && (!is || after != mask(before, n)):
			t.Fatalf("%q becomes %q", text, once)
		case !was && is && once != unreadAddress:
			t.Fatalf("%q, which is no address, becomes %q", text, once)
		}

		e, _ := newEndpoint(func(c *Config) { c.MaskAddress = n })
		maskQuery := func(query string) string {
			var p params
			p.readQuery([]byte(query))
			return string(e.maskQuery([]byte(query), &p))
		}
		query := "a=%e9&" + text + "&cip=" + text
		masked := maskQuery(query)
		if again := maskQuery(masked); again != masked || withoutAddresses(again) != withoutAddresses(query) {
			t.Fatalf("query %q becomes %q, and then %q", query, masked, again)
		}
		if v, ok := parseJSON([]byte(`{"a":"\u00e9", "cip" : ` + text + ` }`)); ok {
			object, ok := parseJSON(e.maskObject(v))
			if !ok || !strings.HasPrefix(string(object.raw), `{"a":"\u00e9", "cip" : `) {
				t.Fatalf("object %q becomes %q", v.raw, object.raw)
			}
			if again := e.maskObject(object); !bytes.Equal(again, object.raw) {
				t.Fatalf("object %q becomes %q, and then %q", v.raw, object.raw, again)
			}
		}
	})
}

// withoutAddresses gives a query without the values of cip.
func withoutAddresses(query string) string {
	parts := strings.Split(query, "&")
	for i, part := range parts {
		for pair := range phpform.Pairs([]byte(part)) {
			if namesAddress(pair.Name) {
				_, behind, _ := strings.Cut(part, "\x00")
				parts[i] = string(pair.RawName) + "\x00" + behind
			}
		}
	}
	return strings.Join(parts, "&")
}
