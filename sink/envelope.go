package sink

import (
	"bytes"
	"strconv"
	"time"
	"unicode/utf8"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

// A group says what all hits of one request must share: the token that
// authorises it and the headers that Matomo reads.
type group struct {
	theirs     bool
	token      string // the client's own; empty for hits of ours
	doNotTrack bool
	dataSaver  bool
	headers    string // those that plugins need, as hit.Environment has them
}

// An item is a leased hit, ready to be sent.
type item struct {
	hit.Pending
	place
	group group
	// element is the hit as it stands in the bulk request's array.
	element []byte
	// alone: the hit travels in a request of its own, since it may spoil others.
	alone bool
	// malformed: the hit cannot be put into a request at all.
	malformed bool

	// in doubt: Matomo may have the hit, so it must not be sent.
	doubt bool
	// lone counts how often the hit has failed in a request of its own.
	lone int
	// unsure, if not zero, is since when the hit waits for a verdict on its token;
	// polls is how often it has asked for that in vain. [clientTokens] owns both.
	unsure time.Time
	polls  int
	// as is what became of the hit, once settled is true.
	settled bool
	as      hit.Outcome
}

// itemOverhead is what an item occupies besides its texts, in bytes.
const itemOverhead = 400

func (it *item) size() int { return len(it.element) + len(it.Params) + itemOverhead }

// maxCached bounds each of an encoder's caches, in entries. Real traffic has a
// few hundred languages and browsers.
const maxCached = 2048

// An encoder turns hits into elements of a bulk request: the canonical replay
// hit. It belongs to one goroutine.
type encoder struct {
	languages map[string]string // Accept-Language, normalised
	hints     map[string]bool   // uadata: is it harmless?
	scratch   []byte
	extra     overrides
}

func newEncoder() *encoder {
	return &encoder{languages: map[string]string{}, hints: map[string]bool{}}
}

// overrides are parameters that are appended to a hit. In a query as in a JSON
// object the last of several members of one name wins in PHP.
type overrides struct {
	pairs []override
}

type override struct{ name, value string }

func (o *overrides) add(name, value string) { o.pairs = append(o.pairs, override{name, value}) }

func (o *overrides) has(name []byte) bool {
	for i := range o.pairs {
		if o.pairs[i].name == string(name) {
			return true
		}
	}
	return false
}

// encode makes an item of a hit.
func (e *encoder) encode(p hit.Pending) *item {
	it := &item{
		Pending: p,
		group:   group{doNotTrack: p.Environment.DoNotTrack, dataSaver: p.Environment.DataSaver, headers: p.Environment.Headers},
		doubt:   p.Uncertain != 0,
	}
	if p.Rights == hit.Theirs {
		it.group.theirs, it.group.token = true, p.Token
	}
	e.scratch = e.scratch[:0]
	if p.Form == hit.Object {
		e.object(it)
	} else {
		e.query(it)
	}
	it.element = bytes.Clone(e.scratch)
	return it
}

// A reader reads one hit's parameters as Matomo does, whatever their form.
type reader interface {
	empty(name string) bool  // PHP's empty
	text(name string) string // type string, default ""
	hints() (string, bool)   // uadata as JSON text; false when the header counts
	addressed() (cip string) // the cip parameter, or ""
}

type formReader struct{ *phpform.Form }

func (f formReader) empty(name string) bool {
	value, kind := f.Raw(name)
	return kind == phpform.Missing || kind == phpform.Scalar && phpform.Empty(value)
}

func (f formReader) text(name string) string { return f.String(name) }

func (f formReader) hints() (string, bool) {
	value, kind := f.Raw("uadata")
	if kind == phpform.Array {
		return arrayHints, true
	}
	return value, kind == phpform.Scalar && value != ""
}

// arrayHints stands for uadata that PHP's own parser made an array of: its
// values are strings or arrays, so it is taken for suspicious.
const arrayHints = `{"platform":[]}`

func (f formReader) addressed() string { return f.String("cip") }

// collect fills e.extra with what the environment and the rights say, in the
// canonical order.
func (e *encoder) collect(it *item, r reader) {
	o, env := &e.extra, it.Environment
	o.pairs = o.pairs[:0]
	if !phpform.Empty(env.Referer) && r.empty("url") && r.empty("urlref") {
		o.add("url", env.Referer)
	}
	if env.AcceptLanguage != "" && r.text("lang") == "" {
		if lang := e.language(env.AcceptLanguage); lang != "" {
			o.add("lang", lang)
		}
	}
	if env.UserAgent != "" && r.text("ua") == "" {
		o.add("ua", env.UserAgent)
	}
	if hints, ok := r.hints(); ok {
		it.alone = !e.harmless(hints)
	} else if env.ClientHints != "" {
		o.add("uadata", env.ClientHints)
		it.alone = !e.harmless(env.ClientHints)
	}
	if env.VisitorCookie != "" {
		// Matomo asks uid, cid, the cookie and _id in this order.
		o.add("_id", env.VisitorCookie)
	}
	if it.Rights == hit.Ours {
		// Matomo reads an empty location as none, so blanking it changes no row of
		// a hit that passed as ours. It is a second wall behind the verdict at
		// arrival, since our token would make a location count.
		for _, name := range locationNames {
			o.add(name, "")
		}
		o.add("cip", env.ClientIP)
	} else if phpform.Empty(r.addressed()) {
		o.add("cip", env.ClientIP)
	}
	o.add("cdt", strconv.FormatInt(it.At, 10))
	o.add("cdo", "")
	// The client's own token, which Matomo looks at in a request without one for all
	// of it; nothing for a hit of ours.
	o.add("token_auth", it.group.token)
}

var locationNames = [...]string{"country", "region", "city", "lat", "long"}

// query appends the element of a hit that came as a query or form. Strict
// encoding leaves only unreserved bytes, so the JSON string needs no escaping.
//
// PHP reads at most phpform.MaxVars variables. When the hit's own leave no room
// for the overrides, these go first, the hit's own variables of the same names
// are left out, and PHP drops the last few of the others instead: at most as many
// as there are overrides.
func (e *encoder) query(it *item) {
	e.collect(it, formReader{phpform.Parse(it.Params)})
	b := append(e.scratch, `"?`...)
	start := len(b)
	b = phpform.AppendReencoded(b, it.Params)
	vars := 0
	if len(b) > start {
		vars = bytes.Count(b[start:], []byte("&")) + 1
	}
	if vars+len(e.extra.pairs) <= phpform.MaxVars {
		for _, p := range e.extra.pairs {
			b = appendPair(b, len(b) > start, p)
		}
	} else {
		b = e.crowded(b[:start], it.Params)
	}
	e.scratch = append(b, '"')
}

func (e *encoder) crowded(b, raw []byte) []byte {
	for i, p := range e.extra.pairs {
		b = appendPair(b, i > 0, p)
	}
	var one []byte
	for p := range phpform.Pairs(raw) {
		if e.extra.has(p.Name) {
			continue
		}
		one = append(append(append(one[:0], p.RawName...), '='), p.RawValue...)
		b = append(b, '&')
		b = phpform.AppendReencoded(b, one)
	}
	return b
}

func appendPair(b []byte, more bool, p override) []byte {
	if more {
		b = append(b, '&')
	}
	b = append(b, p.name...)
	b = append(b, '=')
	return phpform.AppendEscaped(b, p.value)
}

// harmless reports whether uadata has the form that browsers send, so that it
// cannot make Matomo's device detection fail.
func (e *encoder) harmless(uadata string) bool {
	if ok, known := e.hints[uadata]; known {
		return ok
	}
	ok := harmlessHints(uadata)
	if len(uadata) <= maxCachedText {
		if len(e.hints) >= maxCached {
			clear(e.hints)
		}
		e.hints[string([]byte(uadata))] = ok
	}
	return ok
}

// language normalises an Accept-Language header.
func (e *encoder) language(header string) string {
	if lang, known := e.languages[header]; known {
		return lang
	}
	lang := normaliseLanguage(header)
	if len(header) <= maxCachedText {
		if len(e.languages) >= maxCached {
			clear(e.languages)
		}
		e.languages[string([]byte(header))] = lang
	}
	return lang
}

// maxCachedText keeps long texts out of the caches, in bytes.
const maxCachedText = 2048

// room gives an empty buffer that holds the body of a bulk request.
func room(items []*item, token int) []byte {
	need := envelopeOverhead + token
	for _, it := range items {
		need += len(it.element) + 1
	}
	return make([]byte, 0, need)
}

// appendEnvelope appends the body of a bulk request. It is valid UTF-8 whatever
// the token holds.
func appendEnvelope(b []byte, token string, items []*item) []byte {
	b = append(b, `{"token_auth":`...)
	b = appendJSONString(b, token)
	b = append(b, `,"requests":[`...)
	for i, it := range items {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, it.element...)
	}
	return append(b, "]}"...)
}

// envelopeOverhead is what a request's body holds besides elements and commas,
// in bytes, for a token of usual length.
const envelopeOverhead = 100

// appendJSONString appends s as a JSON string. A text that is not UTF-8 is taken
// as Latin-1, as Matomo does when it reads such a parameter.
func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	latin := !utf8.ValidString(s)
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c >= utf8.RuneSelf && latin:
			b = utf8.AppendRune(b, rune(c))
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
