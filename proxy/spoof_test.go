package proxy

import (
	"net/netip"
	"strings"
	"testing"
)

// TestClientCannotChooseItsAddress sends forwarding headers of all kinds on every way
// in. The address that is stored is the one that the last proxy of ours has seen.
func TestClientCannotChooseItsAddress(t *testing.T) {
	const peer = "127.0.0.1"
	const xff, fwd = "X-Forwarded-For: ", "Forwarded: "
	tests := []struct {
		name  string
		lines []string
		want  string // from a trusted peer; from a stranger it is the peer
	}{
		{"nothing", nil, peer},
		{"one address", []string{xff + "192.0.2.9"}, "192.0.2.9"},
		{"an invented one in front", []string{xff + "6.6.6.6, 192.0.2.9"}, "192.0.2.9"},
		{"a chain of trusted proxies", []string{xff + "6.6.6.6, 192.0.2.9, 10.0.0.2, 10.0.0.3"}, "192.0.2.9"},
		{"a trusted address in front of an invented one", []string{xff + "6.6.6.6, 10.0.0.2, 192.0.2.9"}, "192.0.2.9"},
		{"only trusted addresses", []string{xff + "10.0.0.9, 10.0.0.2"}, "10.0.0.9"},
		{"junk behind", []string{xff + "192.0.2.9, junk"}, peer},
		{"junk in front", []string{xff + "junk, 192.0.2.9"}, "192.0.2.9"},
		{"markup and a quote", []string{xff + `<script>"', 192.0.2.9`}, "192.0.2.9"},
		{"a port", []string{xff + "192.0.2.9:4711"}, "192.0.2.9"},
		{"a port that is none", []string{xff + "192.0.2.9:99999"}, peer},
		{"IPv6", []string{xff + "2001:DB8::9"}, "2001:db8::9"},
		{"IPv6 in brackets with a port", []string{xff + "[2001:db8::9]:4711"}, "2001:db8::9"},
		{"IPv6 with a zone", []string{xff + "fe80::9%eth0"}, "fe80::9"},
		{"a trusted one with a zone", []string{xff + "192.0.2.9, fd00::1%eth0"}, "192.0.2.9"},
		{"IPv4 in IPv6", []string{xff + "::ffff:192.0.2.9"}, "192.0.2.9"},
		{"a trusted one as IPv4 in IPv6", []string{xff + "192.0.2.9, ::ffff:10.0.0.2"}, "192.0.2.9"},
		{"IPv4 in octal", []string{xff + "0300.0.2.9"}, peer},
		{"IPv4 as a number", []string{xff + "3221225993"}, peer},
		{"IPv4 of three parts", []string{xff + "192.0.2"}, peer},
		{"a range", []string{xff + "192.0.2.0/24"}, peer},
		{"a name", []string{xff + "localhost"}, peer},
		{"an empty header", []string{xff}, peer},
		{"an empty element behind", []string{xff + "192.0.2.9,"}, peer},
		{"an empty element in front", []string{xff + ",192.0.2.9"}, "192.0.2.9"},
		{"only commas", []string{xff + ",,,,"}, peer},
		{"spaces and tabs", []string{xff + "6.6.6.6 ,\t 192.0.2.9\t"}, "192.0.2.9"},
		{"spaces for commas", []string{xff + "192.0.2.9 10.0.0.2"}, peer},
		{"a quoted address", []string{xff + `"192.0.2.9"`}, peer},
		{"two lines", []string{xff + "6.6.6.6", xff + "192.0.2.9"}, "192.0.2.9"},
		{"two lines, the last one empty", []string{xff + "192.0.2.9", xff}, peer},
		{"two spellings of the name", []string{"x-forwarded-for: 6.6.6.6", xff + "192.0.2.9"}, "192.0.2.9"},
		{"an underscore in the name", []string{"X_Forwarded_For: 6.6.6.6"}, peer},
		{"an underscore beside the real name", []string{xff + "192.0.2.9", "X_Forwarded-For: 6.6.6.6"}, "192.0.2.9"},
		{"other headers of that kind", []string{"X-Real-IP: 6.6.6.6", "Client-IP: 6.6.6.6", "True-Client-IP: 6.6.6.6", "CF-Connecting-IP: 6.6.6.6", "X-Client-IP: 6.6.6.6"}, peer},
		{"the unknown", []string{xff + "192.0.2.9, unknown"}, peer},
		{"a huge list", []string{xff + strings.Repeat("6.6.6.6, ", 300) + "192.0.2.9"}, "192.0.2.9"},
		{"a huge chain of trusted ones", []string{xff + "6.6.6.6" + strings.Repeat(", 10.0.0.2", 100)}, "10.0.0.2"},
		{"Forwarded", []string{fwd + "for=192.0.2.9"}, "192.0.2.9"},
		{"Forwarded with all its parts", []string{fwd + `by=10.0.0.2; For="192.0.2.9:80";proto=https;host=a`}, "192.0.2.9"},
		{"Forwarded with IPv6", []string{fwd + `for="[2001:db8::9]:4711"`}, "2001:db8::9"},
		{"Forwarded with an invented one in front", []string{fwd + "for=6.6.6.6, for=192.0.2.9"}, "192.0.2.9"},
		{"Forwarded with a chain", []string{fwd + "for=6.6.6.6, for=192.0.2.9, for=10.0.0.2"}, "192.0.2.9"},
		{"Forwarded with a comma in quotes", []string{fwd + `for="6.6.6.6, for=7.7.7.7", for=192.0.2.9`}, "192.0.2.9"},
		{"Forwarded with an open quote", []string{fwd + `for="6.6.6.6, for=192.0.2.9`}, peer},
		{"Forwarded by nobody known", []string{fwd + "for=192.0.2.9, for=unknown"}, peer},
		{"Forwarded by somebody hidden", []string{fwd + "for=192.0.2.9, for=_hidden"}, peer},
		{"Forwarded without for", []string{fwd + "proto=https;by=6.6.6.6"}, peer},
		{"Forwarded in two lines", []string{fwd + "for=6.6.6.6", fwd + "for=192.0.2.9"}, "192.0.2.9"},
		{"both headers", []string{fwd + "for=6.6.6.6", xff + "192.0.2.9"}, "192.0.2.9"},
		{"both headers, one without an address", []string{fwd + "for=6.6.6.6", xff + "unknown"}, peer},
		{"both headers, one empty", []string{fwd + "for=6.6.6.6", xff}, peer},
	}
	trusted := append([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}, loopback...)
	r := newRig(t, func(c *Config) { c.Trusted = trusted })
	stranger := newRig(t, func(c *Config) { c.Trusted = trusted[:2] })
	balanced := newRig(t, func(c *Config) { c.Trusted, c.ProxyProtocol = trusted[:2], loopback })
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, e := range entrances {
				if got := r.storedAddress(t, e, "", tt.lines...); got != tt.want {
					t.Errorf("%s: stored for %s, want %s", e.name, got, tt.want)
				}
				if got := stranger.storedAddress(t, e, "", tt.lines...); got != peer {
					t.Errorf("%s, from a stranger: stored for %s, want %s", e.name, got, peer)
				}
				if got := balanced.storedAddress(t, e, proxyV1, tt.lines...); got != "203.0.113.7" {
					t.Errorf("%s, from a stranger behind a balancer: stored for %s, want 203.0.113.7", e.name, got)
				}
				// A proxy of ours behind a balancer is believed like one that connects by itself.
				want := tt.want
				if want == peer {
					want = "10.0.0.1"
				}
				header := strings.Replace(proxyV1, "203.0.113.7", "10.0.0.1", 1)
				if got := balanced.storedAddress(t, e, header, tt.lines...); got != want {
					t.Errorf("%s, from a proxy behind a balancer: stored for %s, want %s", e.name, got, want)
				}
			}
		})
	}
}
