package proxy

import (
	"encoding/json"
	"net/netip"
	"testing"
)

func validJSON(b []byte) bool { return json.Valid(b) }

func unmarshalString(t *testing.T, raw []byte) (s string) {
	t.Helper()
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestClientAddress(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	const none = "none"
	tests := []struct {
		name, peer, forwardedFor, forwarded, want string
	}{
		{"a stranger is taken at his address", "192.0.2.1", "1.2.3.4", none, "192.0.2.1"},
		{"a proxy without a header is the client", "10.0.0.1", none, none, "10.0.0.1"},
		{"a proxy with an empty header is the client", "10.0.0.1", "", none, "10.0.0.1"},
		{"a proxy names the client", "10.0.0.1", "1.2.3.4", none, "1.2.3.4"},
		{"the rightmost stranger counts", "10.0.0.1", "6.6.6.6, 1.2.3.4", none, "1.2.3.4"},
		{"proxies in a row", "10.0.0.1", "6.6.6.6, 1.2.3.4, 10.9.9.9 ,10.8.8.8", none, "1.2.3.4"},
		{"only proxies", "10.0.0.1", "10.9.9.9,10.8.8.8", none, "10.9.9.9"},
		{"garbage ends the way", "10.0.0.1", "1.2.3.4, unknown, 10.8.8.8", none, "10.8.8.8"},
		{"garbage at once", "10.0.0.1", "1.2.3.4, <script>", none, "10.0.0.1"},
		{"an empty entry is garbage", "10.0.0.1", "1.2.3.4,", none, "10.0.0.1"},
		{"a port is dropped", "10.0.0.1", "1.2.3.4:443", none, "1.2.3.4"},
		{"brackets are dropped", "10.0.0.1", "[2001:db8::1]", none, "2001:db8::1"},
		{"brackets and a port are dropped", "10.0.0.1", "[2001:db8::1]:443", none, "2001:db8::1"},
		{"IPv6 is written as PHP does", "10.0.0.1", "2001:0DB8:0:0::0005", none, "2001:db8::5"},
		{"IPv4 in IPv6 is IPv4", "10.0.0.1", "::ffff:1.2.3.4", none, "1.2.3.4"},
		{"IPv4 in IPv6 of a proxy is trusted", "10.0.0.1", "1.2.3.4, ::ffff:10.1.1.1", none, "1.2.3.4"},
		{"a zone is dropped", "10.0.0.1", "fe80::1%eth0", none, "fe80::1"},
		{"a leading zero is garbage", "10.0.0.1", "1.2.3.04", none, "10.0.0.1"},
		{"a proxy over IPv6", "fd00::1", "1.2.3.4", none, "1.2.3.4"},
		{"Forwarded names the client", "10.0.0.1", none, "for=1.2.3.4;proto=https", "1.2.3.4"},
		{"Forwarded in a row", "10.0.0.1", none, `for=6.6.6.6, for="[2001:db8::7]:4711";by=10.0.0.3, For=10.2.2.2`, "2001:db8::7"},
		{"Forwarded with a hidden name", "10.0.0.1", none, "for=1.2.3.4, for=_hidden", "10.0.0.1"},
		{"Forwarded without for", "10.0.0.1", none, "for=1.2.3.4, proto=https", "10.0.0.1"},
		{"Forwarded with an open quote", "10.0.0.1", none, `for="6.6.6.6, for=1.2.3.4`, "10.0.0.1"},
		{"X-Forwarded-For wins over Forwarded", "10.0.0.1", "1.2.3.4", "for=6.6.6.6", "1.2.3.4"},
		{"a stranger's Forwarded is nothing", "192.0.2.1", none, "for=1.2.3.4", "192.0.2.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, _ := newEndpoint(func(c *Config) { c.Trusted = trusted })
			peer := netip.MustParseAddr(tt.peer)
			r := &request{peer: peer, peerText: peer.String()}
			if tt.forwardedFor != none {
				r.forwardedFor = []byte(tt.forwardedFor)
			}
			if tt.forwarded != none {
				r.forwarded = []byte(tt.forwarded)
			}
			if got := e.clientAddress(r, ""); got != tt.want {
				t.Errorf("clientAddress = %q, want %q", got, tt.want)
			}
		})
	}
}

// FuzzClientAddress gives any bytes as forwarding headers: the result is always
// an address in its canonical text.
func FuzzClientAddress(f *testing.F) {
	f.Add([]byte("1.2.3.4, 10.0.0.1"), []byte(`for="[2001:db8::1]:80", for=10.0.0.1`))
	f.Add([]byte("::ffff:1.2.3.4"), []byte("for=unknown"))
	f.Fuzz(func(t *testing.T, forwardedFor, forwarded []byte) {
		e, _ := newEndpoint(func(c *Config) { c.Trusted = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
		peer := netip.MustParseAddr("10.0.0.1")
		for _, r := range []*request{
			{peer: peer, peerText: peer.String(), headers: headers{forwardedFor: forwardedFor}},
			{peer: peer, peerText: peer.String(), headers: headers{forwarded: forwarded}},
		} {
			got := e.clientAddress(r, "")
			a, err := netip.ParseAddr(got)
			if err != nil || canonical(a).String() != got {
				t.Fatalf("clientAddress = %q of %q and %q", got, forwardedFor, forwarded)
			}
		}
	})
}
