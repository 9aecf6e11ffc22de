package proxy

import (
	"bytes"
	"net/netip"
	"strings"

	"sluice/internal/phpform"
)

// maxMask is the largest [Config.MaskAddress]: all of an address.
const maxMask = 4

// ipv6Bits is how many leading bits of an IPv6 address each mask leaves.
var ipv6Bits = [maxMask + 1]int{128, 64, 48, 24, 0}

// mask sets the end of an address to zero, as function anonymize of Matomo's
// IPv4.php and IPv6.php (vendor/matomo/network) does: n bytes of an IPv4 address,
// also of one within IPv6, and as many as ipv6Bits says of another IPv6 address.
// It does nothing to the zero Addr.
func mask(a netip.Addr, n int) netip.Addr {
	bits := a.BitLen()
	if a.Is4() || a.Is4In6() || embedsIPv4.Contains(a) {
		bits -= 8 * n
	} else if a.Is6() {
		bits = ipv6Bits[n]
	}
	prefix, _ := a.Prefix(bits) // never more bits than the address has
	return prefix.Addr()
}

// embedsIPv4 is the old way of writing IPv4 as IPv6, which Matomo masks as it
// masks ::ffff:0:0/96.
var embedsIPv4 = netip.MustParsePrefix("::/96")

// unreadAddress is what Matomo makes of a cip that is no address
// (IPUtils::stringToBinaryIP).
const unreadAddress = "0.0.0.0"

// maskText masks the address in the text of a cip parameter. Text with a port,
// brackets, a length or blanks around an address is no address to Matomo; the
// address within it is masked. Any other text that Matomo does not read as an
// address becomes unreadAddress when it could hold one in some way: a list, a
// host's name, an integer. Matomo stores that address for it either way, and only
// the config_id, which it computes from the text, is another one.
func maskText(s string, n int) string {
	s = strings.ReplaceAll(s, "\x00", "") // Matomo drops them as well
	if phpform.Empty(s) {
		return s
	}
	if masked, ok := maskWithin(s, n); ok {
		return masked
	}
	if !strings.ContainsAny(s, "0123456789:&") { // "&" begins an HTML entity, which Matomo decodes
		return s
	}
	return unreadAddress
}

// maskWithin masks an address with or without decoration. It reports false when
// the text is none, or would be read in another way when it is masked.
func maskWithin(s string, n int) (string, bool) {
	before, within, after := addressWithin(s)
	a, ok := readAddress(within)
	if !ok || !onlyDecoration(before+after) {
		return "", false
	}
	m := mask(a, n)
	if m == a {
		return s, true
	}
	masked := m.String()
	// A port behind IPv6 without brackets may become part of the address.
	_, again, _ := addressWithin(before + masked + after)
	return before + masked + after, again == masked
}

// readAddress reads what PHP's inet_pton reads.
func readAddress(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Zone() == ""
}

// phpBlanks is what PHP's trim takes off.
const phpBlanks = " \t\n\r\x00\v"

// addressWithin splits a text around what Matomo's IPUtils::sanitizeIp takes out
// of it: blanks, a length behind a slash, brackets and a port are left off.
func addressWithin(s string) (before, address, after string) {
	start := len(s) - len(strings.TrimLeft(s, phpBlanks))
	address = strings.Trim(s, phpBlanks)
	if i := strings.LastIndexByte(address, '/'); i >= 0 {
		address = address[:i]
	}
	colon, dot := strings.LastIndexByte(address, ':'), strings.LastIndexByte(address, '.')
	if colon >= 0 {
		if i := strings.LastIndexByte(address, ']'); i >= 0 && address[0] == '[' {
			address = address[1:i]
			start++
		}
		if dot >= 0 && colon > dot || dot < 0 && strings.IndexByte(address, ':') == colon {
			address = address[:min(colon, len(address))]
		}
	}
	return s[:start], address, s[start+len(address):]
}

// onlyDecoration says whether nothing around an address can hold another one.
func onlyDecoration(s string) bool {
	return strings.Trim(s, phpBlanks+"[]:/0123456789") == "" && strings.Count(s, ":") <= 1
}

// maskQuery masks the addresses that a query gives as cip: every one of them,
// though Matomo reads the last one only, and also those of pairs beyond PHP's
// limits. All other bytes stay as they are. P is what was read from raw. It returns
// raw itself when it changes nothing.
func (e *endpoint) maskQuery(raw []byte, p *params) []byte {
	if e.cfg.MaskAddress == 0 || !p.addressed && bytes.Count(raw, []byte("&")) < phpform.MaxVars {
		return raw
	}
	var out []byte
	done := 0
	for at := 0; at < len(raw); {
		end := len(raw)
		if i := bytes.IndexByte(raw[at:], '&'); i >= 0 {
			end = at + i
		}
		for pair := range phpform.Pairs(raw[at:end]) {
			if !namesAddress(pair.Name) || len(pair.RawValue) == 0 {
				continue
			}
			given := phpform.Unescape(pair.RawValue)
			if masked := maskText(given, e.cfg.MaskAddress); masked != given {
				value := at + len(pair.RawName) + len("=")
				out = phpform.AppendEscaped(append(out, raw[done:value]...), masked)
				done = value + len(pair.RawValue)
			}
		}
		at = end + 1
	}
	if done == 0 {
		return raw
	}
	return append(out, raw[done:]...)
}

func namesAddress(name []byte) bool {
	p, ok := paramOf(name)
	return ok && p == pIP
}

// maskObject does the same for an object of a client's bulk.
func (e *endpoint) maskObject(v jsonValue) []byte {
	if e.cfg.MaskAddress == 0 {
		return v.raw
	}
	var out []byte
	done := 0
	for name, child := range v.children() {
		if namesAddress(name) {
			out = appendMasked(append(out, v.raw[done:child.at]...), child, e.cfg.MaskAddress)
			done = child.at + len(child.raw)
		}
	}
	if done == 0 {
		return v.raw
	}
	return append(out, v.raw[done:]...)
}

// maskHeaders masks the addresses among the words of [hit.Environment.Headers]. It
// returns b itself when there are none.
func (e *endpoint) maskHeaders(b []byte) []byte {
	if e.cfg.MaskAddress == 0 {
		return b
	}
	var out []byte
	done := 0
	for at := 0; at < len(b); {
		end := len(b)
		if i := bytes.IndexAny(b[at:], " \t\n,;=\""); i >= 0 {
			end = at + i
		}
		word := string(b[at:end])
		if masked, ok := maskWithin(word, e.cfg.MaskAddress); ok && masked != word {
			out = append(append(out, b[done:at]...), masked...)
			done = end
		}
		at = end + 1
	}
	if done == 0 {
		return b
	}
	return append(out, b[done:]...)
}

// appendMasked appends a member's value. Lists and objects, which are as good as
// none to Matomo, are emptied.
func appendMasked(b []byte, v jsonValue, n int) []byte {
	p := v.param()
	if p.kind == array {
		return append(b, "[]"...)
	}
	given := p.text()
	if masked := maskText(given, n); masked != given {
		return appendJSONString(b, []byte(masked))
	}
	return append(b, v.raw...)
}
