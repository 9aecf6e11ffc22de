package proxy

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"time"

	"sluice/internal/phpform"
)

const (
	// optOutFile is what the opt-out's page loads besides itself.
	optOutFile = "/plugins/CoreAdminHome/javascripts/optOut.js"
	// maxOptOutQuery and maxOptOutPairs are far below where PHP stops reading.
	maxOptOutQuery = 4 << 10
	maxOptOutPairs = 100
	maxOptOutBody  = 4 << 10
)

// exposed says whether a request that does not track is served with
// [ExposeTrackingOnly]: public files and the opt-out, in one spelling only. It reads
// the body of the opt-out's form, and puts it back.
func (s *Server) exposed(w http.ResponseWriter, r *http.Request) bool {
	reading := r.Method == http.MethodGet || r.Method == http.MethodHead
	p := r.URL.Path
	switch {
	case r.URL.RawPath != "" || r.URL.Opaque != "" || strings.Contains(p, ".php/"):
		return false
	case p == "/" || p == "/index.php":
		return s.optOut(w, r, reading)
	case p == optOutFile:
		return reading
	case strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/index.php"):
		// Of these only js/ is a file's. Others would be scripts of Matomo's tree.
		if !strings.HasSuffix(p, "/js/") && !strings.HasSuffix(p, "/js/index.php") {
			return false
		}
	}
	return reading && s.cfg.Files != nil && s.cfg.Files.Claims(r)
}

// optOut says whether a request is for the opt-out's page, form or script. Whatever
// PHP and a server's settings make of it, it is for nothing else: module and action
// stand in the query, once and plainly, and the form has only the fields of Matomo's.
func (s *Server) optOut(w http.ResponseWriter, r *http.Request, reading bool) bool {
	query := r.URL.RawQuery
	if len(query) > maxOptOutQuery || strings.IndexByte(query, '#') >= 0 {
		return false
	}
	action, ok := onlyAction([]byte(query))
	if !ok || r.Header["X-Http-Method-Override"] != nil {
		return false
	}
	bodyless := r.Body == nil || r.Body == http.NoBody
	switch {
	case reading:
		return bodyless
	case r.Method != http.MethodPost || action != "optOut":
		return false
	case bodyless:
		return true
	}
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(kind), "application/x-www-form-urlencoded") ||
		len(r.Header["Content-Type"]) != 1 || r.Header["Content-Encoding"] != nil || r.ContentLength > maxOptOutBody {
		return false
	}
	// A connection that cannot keep deadlines ends with its own error.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.limits().BodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxOptOutBody))
	if err != nil || !optOutFields(body) {
		return false
	}
	r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	return true
}

// onlyAction gives the action of a query that calls the opt-out. A name that PHP
// could take for module or action must not stand there a second time, also where ";"
// parts pairs.
func onlyAction(query []byte) (action string, ok bool) {
	if bytes.IndexByte(query, 0) >= 0 || bytes.Count(query, []byte("&"))+bytes.Count(query, []byte(";")) >= maxOptOutPairs {
		return "", false
	}
	modules, actions := 0, 0
	for pair := range phpform.Pairs(bytes.ReplaceAll(query, []byte(";"), []byte("&"))) {
		switch name := string(bytes.ToLower(pair.Name)); {
		case strings.HasPrefix(name, "module"):
			modules++
			if string(pair.RawName) != "module" || string(pair.RawValue) != "CoreAdminHome" {
				return "", false
			}
		case strings.HasPrefix(name, "action"):
			actions++
			action = string(pair.RawValue)
			if string(pair.RawName) != "action" || action != "optOut" && action != "optOutJS" {
				return "", false
			}
		case name == "token_auth" || name == "force_api_session":
			return "", false
		}
	}
	// The same pair, as it stands where only "&" parts them.
	plain := func(want string) bool {
		n := 0
		for pair := range bytes.SplitSeq(query, []byte("&")) {
			if string(pair) == want {
				n++
			}
		}
		return n == 1
	}
	return action, modules == 1 && actions == 1 && plain("module=CoreAdminHome") && plain("action="+action)
}

// optOutFields tells the form of the opt-out's page.
func optOutFields(body []byte) bool {
	for pair := range bytes.SplitSeq(body, []byte("&")) {
		if bytes.IndexByte(pair, ';') >= 0 || bytes.IndexByte(pair, 0) >= 0 {
			return false
		}
		name, _, _ := bytes.Cut(pair, []byte("="))
		switch string(name) {
		case "", "nonce", "fuzz", "trackVisits":
		default:
			return false
		}
	}
	return true
}
