package proxy

import (
	"bytes"
	"net/netip"
	"strings"
)

// clientAddress gives the visitor's address in PHP's canonical text, masked as
// [Config.MaskAddress] says. Before is returned when the text is the same.
func (e *endpoint) clientAddress(r *request, before string) string {
	if !e.trusts(r.peer) && (e.cfg.MaskAddress == 0 || !r.peer.IsValid()) {
		return r.peerText
	}
	var buffer [maxAddressText]byte
	text := mask(e.visitor(r), e.cfg.MaskAddress).AppendTo(buffer[:0])
	if string(text) == before {
		return before
	}
	return string(text)
}

// visitor gives the visitor's address. It is the peer, or, where the peer is a
// trusted proxy, the rightmost address of X-Forwarded-For that is not itself
// trusted; Forwarded is read when there is no X-Forwarded-For. A proxy that sets
// only Forwarded must therefore remove the other header, which a client could have
// sent. At an entry that is no address the last good one is taken.
func (e *endpoint) visitor(r *request) netip.Addr {
	address := r.peer
	next := forwardedForFromRight
	list := r.forwardedFor
	if list == nil {
		list, next = r.forwarded, forwardedFromRight
	}
	for range maxHops {
		if !e.trusts(address) || len(list) == 0 {
			break
		}
		var hop netip.Addr
		var ok bool
		if hop, list, ok = next(list); !ok {
			break
		}
		address = hop
	}
	return address
}

// maxHops bounds how many trusted proxies may stand one behind the other.
const maxHops = 32

// maxAddressText is the length of the longest address.
const maxAddressText = len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255")

func (e *endpoint) trusts(address netip.Addr) bool {
	return contains(e.live.Load().Trusted, address)
}

// canonical drops what PHP would not see of an address: the zone of a link-local
// one, and the IPv6 clothing of an IPv4 one.
func canonical(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// forwardedForFromRight takes the last entry off an X-Forwarded-For list.
func forwardedForFromRight(list []byte) (hop netip.Addr, rest []byte, ok bool) {
	entry := list
	if i := bytes.LastIndexByte(list, ','); i >= 0 {
		rest, entry = list[:i], list[i+1:]
	}
	hop, ok = parseHop(string(entry))
	return hop, rest, ok
}

// forwardedFromRight takes the last element off a Forwarded list and reads its
// "for". A comma within quotes does not end an element.
func forwardedFromRight(list []byte) (hop netip.Addr, rest []byte, ok bool) {
	cut, quoted := -1, false
	for i, c := range list {
		switch {
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			cut = i
		}
	}
	element := string(list[cut+1:])
	if cut >= 0 {
		rest = list[:cut]
	}
	for pair := range strings.SplitSeq(element, ";") {
		name, v, found := strings.Cut(pair, "=")
		if !found || !strings.EqualFold(strings.TrimSpace(name), "for") {
			continue
		}
		v = strings.TrimSpace(v)
		if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
			v = v[1 : len(v)-1]
		}
		hop, ok = parseHop(v)
		return hop, rest, ok
	}
	return netip.Addr{}, rest, false
}

// parseHop reads an address with or without brackets and a port.
func parseHop(s string) (netip.Addr, bool) {
	s = strings.Trim(s, " \t")
	if a, err := netip.ParseAddr(s); err == nil {
		return canonical(a), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return canonical(ap.Addr()), true
	}
	if len(s) > 2 && s[0] == '[' && s[len(s)-1] == ']' {
		if a, err := netip.ParseAddr(s[1 : len(s)-1]); err == nil && a.Is6() {
			return canonical(a), true
		}
	}
	return netip.Addr{}, false
}
