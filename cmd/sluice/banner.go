package main

import (
	"fmt"
	"net"
	"strings"
	"time"
)

// ready tells everybody who cares that the edge is up: systemd, and a human at a
// terminal by the banner or a collector of lines by one line with the same facts.
func (e *edge) ready() {
	st := e.queue.Stats()
	e.notify.Ready(e.sentence())
	if string(e.settings.Log.Format) == "json" || !isTerminal(e.stdout) {
		https, http := e.proxy.Addrs()
		e.log.Info("ready", "version", build().Version, "https", text(https), "http", text(http), "fingerprint", e.fingerprint,
			"admin", e.adminAddr, "data_dir", e.settings.DataDir, "pending", st.Pending, "free_bytes", st.FreeBytes,
			"matomo", e.settings.Matomo.URL.String(), "token", e.secrets.MatomoToken != "", "mysql", e.secrets.MySQLDSN != "",
			"took", e.now().Sub(e.begun).Round(time.Millisecond))
		return
	}
	e.banner()
}

func text(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

// banner is what a first start shows. It ends with a command to try, and it is
// written at once, so that no log line gets between.
func (e *edge) banner() {
	var b strings.Builder
	st, s := e.queue.Stats(), e.settings
	https, http := e.proxy.Addrs()
	fmt.Fprintln(&b, build())
	line := func(name, place, detail string) {
		fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("  %-10s  %-28s  %s", name, place, detail), " "))
	}
	if https != nil {
		detail := "certificate: " + string(s.TLS.Mode)
		if e.fingerprint != "" {
			detail += ", SHA-256 " + shortFingerprint(e.fingerprint)
		}
		line("accepting", "https://"+https.String(), detail)
	}
	if http != nil {
		line("accepting", "http://"+http.String(), "not encrypted")
	}
	line("keeping", s.DataDir, fmt.Sprintf("%s waiting, %s free above a reserve of %s", number(st.Pending), size(st.FreeBytes), size(st.Reserve)))
	line("sending to", s.Matomo.URL.String(), "")
	line("status", "http://"+e.adminAddr+"/", "")
	if e.secrets.MatomoToken == "" {
		fmt.Fprintf(&b, "%s no token: %s. Set matomo.token-file\n", e.mark(toneWarn), withoutToken)
	}
	if e.secrets.MySQLDSN == "" {
		fmt.Fprintf(&b, "%s no MySQL account: %s\n", e.mark(toneWarn), withoutMySQL(s.Sink.OnUnknown))
	}
	fmt.Fprintf(&b, "ready in %s. Try:  %s\n", span(e.now().Sub(e.begun)), e.try(https, http))
	e.printf("%s", b.String())
}

// try gives a command that makes a hit.
func (e *edge) try(https, http net.Addr) string {
	const hit = "/matomo.php?idsite=1&rec=1&url=http://example.org/'"
	if https != nil {
		return "curl -k 'https://" + local(https) + hit
	}
	return "curl 'http://" + local(http) + hit
}

// local gives an address under which this machine reaches a listener.
func local(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return a.String()
	}
	if tcp.IP.IsUnspecified() {
		return fmt.Sprintf("127.0.0.1:%d", tcp.Port)
	}
	return tcp.String()
}

// shortFingerprint shows both ends of a fingerprint, in pairs.
func shortFingerprint(f string) string {
	if len(f) < 8 {
		return f
	}
	return strings.Join([]string{f[:2], f[2:4], "…", f[len(f)-2:]}, ":")
}
