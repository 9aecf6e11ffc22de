package proxy

import (
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// What [Config.Host] may say.
const (
	HostUpstream = "upstream" // Matomo gets the host of [Config.Upstream], and X-Forwarded-Host
	HostClient   = "client"   // Matomo gets the host that the client asked, and no X-Forwarded-Host
)

// learnedHeaders are those from which Matomo, its server or a framework can be made to
// learn a client's address, the host, the scheme, the prefix or the path, besides all
// that begin with X-Forwarded. They pass from trusted peers only.
var learnedHeaders = []string{
	"Ali-Cdn-Real-Ip", "Cdn-Src-Ip", "Cf-Connecting-Ip", "Cf-Connecting-Ipv6", "Cf-Pseudo-Ipv4", "Cf-Visitor",
	"Client-Ip", "Cloudfront-Forwarded-Proto", "Cloudfront-Viewer-Address", "Cluster-Client-Ip", "Do-Connecting-Ip",
	"Fastly-Client-Ip", "Fastly-Ssl", "Fly-Client-Ip", "Forwarded", "Forwarded-For", "Forwarded-For-Ip", "Front-End-Https",
	"Http-X-Forwarded-For", "Incap-Client-Ip", "Proxy-Client-Ip", "Remote-Addr", "True-Client-Ip", "Via", "Wl-Proxy-Client-Ip",
	"X-Appengine-User-Ip", "X-Azure-Clientip", "X-Azure-Socketip", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Coming-From",
	"X-Envoy-External-Address", "X-Envoy-Original-Path", "X-Forwarded", "X-Host", "X-Http-Host-Override", "X-Nf-Client-Connection-Ip",
	"X-Original-Forwarded-For", "X-Original-Host", "X-Original-Remote-Addr", "X-Original-Uri", "X-Original-Url",
	"X-Originating-Ip", "X-Proxyuser-Ip", "X-Real-Ip", "X-Remote-Addr", "X-Remote-Ip", "X-Rewrite-Url", "X-Scheme", "X-Script-Name",
	"X-Sucuri-Clientip", "X-Url-Scheme", "X-Vercel-Forwarded-For",
}

// tellsOrigin says whether a header, in Go's spelling, is one of these.
func tellsOrigin(name string) bool {
	_, learned := slices.BinarySearch(learnedHeaders, name)
	return learned || strings.HasPrefix(name, "X-Forwarded-")
}

// neverPassed says whether a header passes from nobody. PHP sees a name with an
// underscore as that with a dash, and servers differ about other signs. Proxy
// becomes HTTP_PROXY, which libraries take for a setting. The last two make
// net/http repeat a POST.
func neverPassed(name string) bool {
	for _, c := range []byte(name) {
		if !isAlnum(c) && c != '-' {
			return true
		}
	}
	switch name {
	case "Proxy", "Expect", "Idempotency-Key", "X-Idempotency-Key":
		return true
	}
	return false
}

// rewrite makes the request that goes to Matomo. Hop-by-hop headers are off it
// already, so no client can have those removed that are set here.
func (s *Server) rewrite(r *httputil.ProxyRequest) {
	in, out := r.In, r.Out
	request := s.addressed(in)
	trusted := s.endpoint.trusts(request.peer)
	for name := range out.Header {
		if neverPassed(name) || !trusted && tellsOrigin(name) {
			delete(out.Header, name)
		}
	}
	out.Trailer = nil

	out.URL.User, out.URL.Opaque, out.URL.Fragment = nil, "", ""
	out.URL.Path = "/" + strings.TrimLeft(out.URL.Path, "/")
	if out.URL.RawPath != "" {
		out.URL.RawPath = "/" + strings.TrimLeft(out.URL.RawPath, "/")
	}
	r.SetURL(s.cfg.Upstream)
	// httputil leaves out pairs that Go cannot read; PHP can.
	out.URL.RawQuery = in.URL.RawQuery
	host := forwardedHost(in, trusted)
	told := host
	if s.cfg.Host == HostClient && host != "" {
		// Matomo checks Host against its trusted_hosts, and X-Forwarded-Host not.
		out.Host, told = host, ""
	}

	visitor := ""
	if a := s.endpoint.visitor(&request); a.IsValid() {
		visitor = a.String()
	}
	set := func(name, value string) {
		if value == "" {
			out.Header.Del(name)
			return
		}
		out.Header[name] = []string{value}
	}
	set("X-Forwarded-For", visitor)
	set("X-Forwarded-Host", told)
	proto := forwardedProto(in, trusted)
	set("X-Forwarded-Proto", proto)
	set("X-Forwarded-Port", forwardedPort(in, trusted, host, proto))
	set(requestIDHeader, requestID(in.Context()))
	if name := http.CanonicalHeaderKey(s.cfg.AddressHeader); name != "" && name != "X-Forwarded-For" {
		set(name, visitor)
	}
}

// lastOf gives the last entry of a header, which is the nearest proxy's; "" without
// one, or of a peer that is not trusted.
func lastOf(r *http.Request, name string, trusted bool) string {
	v := r.Header[name]
	if !trusted || len(v) == 0 {
		return ""
	}
	last := v[len(v)-1]
	return strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
}

// forwardedHost gives the host that the client asked, with a port if it said one; ""
// when that is none.
func forwardedHost(r *http.Request, trusted bool) string {
	if host := lastOf(r, "X-Forwarded-Host", trusted); plainHost(host) {
		return host
	}
	if plainHost(r.Host) {
		return r.Host
	}
	return ""
}

// forwardedProto gives the scheme that the client used.
func forwardedProto(r *http.Request, trusted bool) string {
	switch proto := strings.ToLower(lastOf(r, "X-Forwarded-Proto", trusted)); {
	case proto == "http" || proto == "https":
		return proto
	case r.TLS != nil:
		return "https"
	}
	return "http"
}

// forwardedPort gives the port that the client used.
func forwardedPort(r *http.Request, trusted bool, host, proto string) string {
	if port := lastOf(r, "X-Forwarded-Port", trusted); plainPort(port) {
		return port
	}
	if _, port := splitHost(host); port != "" {
		return port
	}
	if proto == "https" {
		return "443"
	}
	return "80"
}

// plainHost says whether a Host header is a name or an address, with or without a
// port, and nothing else.
func plainHost(host string) bool {
	const longest = 253 // of a name in the DNS
	name, port := splitHost(host)
	if port != "" && !plainPort(port) || strings.HasSuffix(host, ":") {
		return false
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return err == nil && a.Is6() && a.Zone() == "" && strings.HasSuffix(inner, "]")
	}
	if name == "" || len(name) > longest || name[0] == '.' || name[0] == '-' || strings.Contains(name, "..") {
		return false
	}
	for _, c := range []byte(name) {
		if !isAlnum(c) && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

// splitHost parts a port off, if there is one.
func splitHost(host string) (name, port string) {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.IndexByte(host[i:], ']') >= 0 {
		return host, ""
	}
	return host[:i], host[i+1:]
}

func plainPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && isAlnum(port[0])
}

// remoteOf gives the peer's address, as it is compared with trusted ones.
func remoteOf(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return canonical(ap.Addr())
}
