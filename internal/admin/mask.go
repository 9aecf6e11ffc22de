package admin

import (
	"encoding/json"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

// View says how much of a hit is shown.
type View int

// The views, each of which shows more than the one before.
const (
	// Masked shows nothing that points at a person: no query values, no full
	// address, six letters of the visitor's id.
	Masked View = iota
	// Full shows everything but tokens.
	Full
	// Export shows everything, so that the hit could be made again from it.
	Export
)

// What a masked view leaves of an address and of a visitor's id.
const (
	maskedBits4   = 16
	maskedBits6   = 32
	maskedVisitor = 6
)

// hidden stands where a token stood.
const hidden = "(hidden)"

// A Hit is one line of GET /api/v1/queue/hits and part of a [Dead]. The fields of
// Request are there in full views only.
type Hit struct {
	ID         string    `json:"id"`
	ReceivedAt time.Time `json:"received_at"`
	At         time.Time `json:"at"` // effective time
	Site       int64     `json:"site"`
	Kind       string    `json:"kind"`
	Path       string    `json:"path"`    // of the page, without its query
	Address    string    `json:"address"` // masked to a network
	Visitor    string    `json:"visitor"` // the first letters of the visitor's id
	Bytes      int       `json:"bytes"`
	Form       string    `json:"form"`   // query or object
	Rights     string    `json:"rights"` // ours or theirs
	State      string    `json:"state"`  // waiting, uncertain or buried
	Request    *Request  `json:"request,omitempty"`
}

// A Request is what the client sent. Bytes that are not UTF-8 stand in the field
// that ends in _base64 instead.
type Request struct {
	Params         string `json:"params,omitempty"`
	ParamsBase64   string `json:"params_base64,omitempty"`
	Token          string `json:"token_auth,omitempty"`
	ClientIP       string `json:"client_ip"`
	UserAgent      string `json:"user_agent"`
	AcceptLanguage string `json:"accept_language"`
	Referer        string `json:"referer"`
	ClientHints    string `json:"client_hints"`
	VisitorCookie  string `json:"visitor_cookie"`
	Headers        string `json:"headers,omitempty"` // lines "name: value"
	DoNotTrack     bool   `json:"do_not_track"`
	DataSaver      bool   `json:"data_saver"`

	TokenBase64          string `json:"token_auth_base64,omitempty"`
	ClientIPBase64       string `json:"client_ip_base64,omitempty"`
	UserAgentBase64      string `json:"user_agent_base64,omitempty"`
	AcceptLanguageBase64 string `json:"accept_language_base64,omitempty"`
	RefererBase64        string `json:"referer_base64,omitempty"`
	ClientHintsBase64    string `json:"client_hints_base64,omitempty"`
	VisitorCookieBase64  string `json:"visitor_cookie_base64,omitempty"`
	HeadersBase64        string `json:"headers_base64,omitempty"`

	// Complete: nothing is hidden, as in exports, so that the hit can be imported.
	Complete bool `json:"complete,omitempty"`
}

// A Dead is one line of GET /api/v1/queue/dead.
type Dead struct {
	ID       string    `json:"id"`
	Site     int64     `json:"site"`
	At       time.Time `json:"at"` // effective time
	BuriedAt time.Time `json:"buried_at"`
	Reason   string    `json:"reason"`
	Code     int       `json:"code"`   // Matomo's HTTP status, 0 if it gave none
	Answer   string    `json:"answer"` // the beginning of Matomo's answer
	Hit      Hit       `json:"hit"`
}

func showPending(p hit.Pending, v View) Hit {
	h := show(p.ID, p.ReceivedAt, &p.Hit, p.Environment, v)
	if p.Uncertain != 0 {
		h.State = "uncertain"
	}
	return h
}

func showDead(l *hit.DeadLetter, v View) Dead {
	d := Dead{
		ID: l.ID.String(), Site: l.Hit.Site, At: time.Unix(l.Hit.At, 0).UTC(), BuriedAt: time.Unix(0, l.BuriedAt).UTC(),
		Reason: l.Reason, Code: l.Status, Hit: show(l.ID, l.ReceivedAt, &l.Hit, &l.Environment, v),
	}
	d.Hit.State = "buried"
	// Matomo's answer may repeat the request.
	if v >= Full {
		d.Answer = strings.ToValidUTF8(string(l.Answer), "\uFFFD")
	}
	return d
}

func show(id hit.ID, receivedAt int64, h *hit.Hit, e *hit.Environment, v View) Hit {
	params := displayParams(h)
	shown := Hit{
		ID: id.String(), ReceivedAt: time.Unix(0, receivedAt).UTC(), At: time.Unix(h.At, 0).UTC(), Site: h.Site,
		Kind: kind(params), Path: pagePath(params.Get("url")), Address: maskAddress(e.ClientIP),
		Visitor: firstLetters(params.Get("_id"), params.Get("cid")), Bytes: len(h.Params),
		Form: "query", Rights: "ours", State: "waiting",
	}
	if h.Form == hit.Object {
		shown.Form = "object"
	}
	if h.Rights == hit.Theirs {
		shown.Rights = "theirs"
	}
	if v >= Full {
		shown.Request = request(h, e, v)
	}
	return shown
}

func request(h *hit.Hit, e *hit.Environment, v View) *Request {
	r := &Request{
		ClientIP: e.ClientIP, UserAgent: e.UserAgent, AcceptLanguage: e.AcceptLanguage, Referer: e.Referer,
		ClientHints: e.ClientHints, VisitorCookie: e.VisitorCookie, Headers: e.Headers, DoNotTrack: e.DoNotTrack, DataSaver: e.DataSaver,
		Params: string(h.Params), Token: h.Token, Complete: v == Export,
	}
	if v < Export {
		r.Params = hideToken(h)
		if h.Token != "" {
			r.Token = hidden
		}
	}
	r.encode()
	return r
}

// displayParams reads parameters for show only: what Matomo would read out of odd
// input is not decided here.
func displayParams(h *hit.Hit) url.Values {
	if h.Form == hit.Query {
		values, _ := url.ParseQuery(string(h.Params)) // What could be read is shown.
		return values
	}
	var object map[string]any
	values := make(url.Values)
	if json.Unmarshal(h.Params, &object) == nil {
		for name, v := range object {
			switch v := v.(type) {
			case string:
				values.Set(name, v)
			case float64, bool:
				text, _ := json.Marshal(v) // Numbers and truth values always can.
				values.Set(name, string(text))
			}
		}
	}
	return values
}

// kinds names a hit by the first parameter of this list that it has.
var kinds = []struct{ param, kind string }{
	{"ping", "ping"}, {"ca", "custom"}, {"ec_items", "ecommerce"}, {"idgoal", "goal"}, {"e_c", "event"},
	{"c_n", "content"}, {"search", "search"}, {"download", "download"}, {"link", "outlink"},
}

func kind(params url.Values) string {
	for _, k := range kinds {
		if params.Has(k.param) {
			return k.kind
		}
	}
	return "page view"
}

// pagePath gives the path of a page's address, without query values.
func pagePath(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.EscapedPath()
}

// maskAddress gives the network of an address, or nothing if it is not one.
func maskAddress(text string) string {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return ""
	}
	bits := maskedBits6
	if addr = addr.Unmap(); addr.Is4() {
		bits = maskedBits4
	}
	prefix, err := addr.WithZone("").Prefix(bits)
	if err != nil {
		return ""
	}
	return prefix.String()
}

func firstLetters(ids ...string) string {
	for _, id := range ids {
		if id != "" {
			return strings.ToValidUTF8(id[:min(len(id), maskedVisitor)], "")
		}
	}
	return ""
}

// hideToken gives the parameters with the value of token_auth replaced, however its
// name is written: PHP takes "token.auth" and " token%5Fauth" for the same.
func hideToken(h *hit.Hit) string {
	if h.Form == hit.Object {
		return hideTokenInObject(h.Params)
	}
	pairs := strings.Split(string(h.Params), "&")
	for i, pair := range pairs {
		if name, _, ok := strings.Cut(pair, "="); ok && isToken(name) {
			pairs[i] = name + "=" + hidden
		}
	}
	return strings.Join(pairs, "&")
}

func hideTokenInObject(params []byte) string {
	var object map[string]json.RawMessage
	if json.Unmarshal(params, &object) != nil {
		return hidden // What cannot be read cannot be cleaned.
	}
	for name := range object {
		if isToken(name) {
			object[name] = json.RawMessage(`"` + hidden + `"`)
		}
	}
	text, err := json.Marshal(object)
	if err != nil {
		return hidden
	}
	return string(text)
}

// isToken errs on the side of hiding.
func isToken(name string) bool {
	name = phpform.Unescape([]byte(name))
	name, _, _ = strings.Cut(name, "[")
	name, _, _ = strings.Cut(name, "\x00")
	name = strings.NewReplacer(".", "_", " ", "_").Replace(strings.TrimLeft(name, " "))
	return strings.EqualFold(name, "token_auth")
}
