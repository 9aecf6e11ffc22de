package sink

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash/maphash"
	"html"
	"slices"
	"strconv"
	"strings"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

// A trace is what a hit leaves in Matomo's tables by which it can be found again
// (core/Tracker/Action.php, GoalManager.php and the plugins' request processors of
// Matomo 5).
type trace uint8

const (
	// traceNone: nothing is known of what the hit leaves.
	traceNone trace = iota
	// traceRepeatable hits leave nothing, or only values of the visit that a second
	// time changes nothing of: rec=0 and pings. A ping sets the visit's duration, ids
	// and dimensions to what the hit says, adds to nothing and never begins a visit
	// (plugins/Heartbeat, CoreHome/Columns/VisitTotalTime.php).
	traceRepeatable
	// traceAction hits insert one row into log_link_visit_action, if Matomo does not
	// exclude the visitor.
	traceAction
	// traceConversion hits insert or update one row of log_conversion and record no
	// action: orders, carts and goals by number. A goal that counts once a visit
	// leaves no second row, but touches the visit's last action.
	traceConversion
)

// A class is the kind of an action row.
type class uint8

const (
	classPage class = iota
	classSearch
	classContent
	classEvent
	classOutlink
	classDownload
)

// Goals that are not numbers of a goal.
const (
	goalOrder = 0
	goalCart  = -1
)

// maxPageView is how much of pv_id Matomo keeps, in bytes.
const maxPageView = 6

// An expectation says which rows a hit must leave. It is a pure function of the
// hit as it is sent.
type expectation struct {
	trace  trace
	site   int64
	at     int64 // Unix seconds; the server_time of its rows
	ids    []string
	ip     string
	pv     string // idpageview; "" when the hit has none that is safe to compare
	odd    bool   // it has one that is not
	class  class
	names  [3]name // page: title, URL; event: category, action, name; content: name, piece; others: the one that they have
	search name    // the whole URL, in which Matomo may find a search
	value  string  // of an event
	goal   int64
}

// A name is a text as it can be compared with what Matomo made of it: escaped for
// HTML, cut, its bytes beyond ASCII converted in some way, and as a URL without
// scheme, query and fragment.
type name struct {
	bare string
	// Matomo may have cut the text, or thrown it away since it is no URL.
	cut, loose bool
}

// cutLength is the length from which a text may be cut by Matomo in some form, in
// bytes. page_maximum_length is 1024 and counts the escaped text.
const cutLength = 150

// maxBare bounds what is compared of a name, in bytes.
const maxBare = 200

// bareName reduces a text to its letters and digits of ASCII, in lower case.
func bareName(s string) name {
	n := name{cut: len(s) > cutLength}
	if strings.IndexByte(s, '&') >= 0 {
		s = html.UnescapeString(s)
	}
	b := make([]byte, 0, min(len(s), maxBare))
	for i := 0; i < len(s) && len(b) < maxBare; i++ {
		switch c := s[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z':
			b = append(b, c)
		case 'A' <= c && c <= 'Z':
			b = append(b, c+'a'-'A')
		}
	}
	n.bare = string(b)
	return n
}

// bareURL is bareName for a URL: what Matomo may remove is left out.
func bareURL(s string) name {
	long := len(s) > cutLength
	if strings.IndexByte(s, '&') >= 0 {
		s = html.UnescapeString(s)
	}
	s = strings.TrimSpace(s)
	if end := strings.IndexAny(s, "?#;"); end >= 0 {
		s = s[:end]
	}
	loose := true
	for _, scheme := range []string{"http://", "https://"} {
		if len(s) >= len(scheme) && strings.EqualFold(s[:len(scheme)], scheme) {
			s = s[len(scheme):]
			loose = !plainHost(s)
			break
		}
	}
	if len(s) > 4 && strings.EqualFold(s[:4], "www.") {
		s = s[4:]
	}
	n := bareName(phpform.Unescape([]byte(s)))
	n.cut, n.loose = long, loose
	return n
}

// plainHost reports whether a URL without its scheme begins with a host that no
// parser refuses.
func plainHost(s string) bool {
	end := strings.IndexByte(s, '/')
	if end < 0 {
		end = len(s)
	}
	for i := range end {
		c := s[i] | 0x20
		if (c < 'a' || c > 'z') && (s[i] < '0' || s[i] > '9') && s[i] != '.' && s[i] != '-' {
			return false
		}
	}
	return end > 0
}

// like reports whether a stored text may be this name.
func (n name) like(stored name) bool {
	return n.bare == stored.bare || n.cut && strings.HasPrefix(n.bare, stored.bare) || n.loose && stored.bare == ""
}

// expect says which rows a hit must leave.
func expect(it *item) expectation {
	e := expectation{site: it.Site, at: it.At, ip: it.Environment.ClientIP}
	r := sentReader(it)
	if r == nil || it.Site <= 0 {
		return e
	}
	if phpform.Intval(r.text("rec")) == 0 {
		e.trace = traceRepeatable
		return e
	}
	e.ids = visitorIDs(r.text, "")
	if cip := r.text("cip"); !phpform.Empty(cip) {
		e.ip = cip
	}
	if pv := r.text("pv_id"); storable(pv) {
		e.pv = pv[:min(len(pv), maxPageView)]
	} else {
		e.odd = pv != ""
	}
	ping, ok1 := plainInt(r.text("ping"), 0)
	goal, ok2 := plainInt(r.text("idgoal"), goalCart)
	switch {
	case !ok1 || !ok2: // whatever Matomo reads
	case ping == 1:
		e.trace = traceRepeatable
	case goal > 0:
		e.trace, e.goal = traceConversion, goal
	case goal == 0 && phpform.Empty(r.text("ec_id")):
		e.trace, e.goal = traceConversion, goalCart
	case goal == 0:
		e.trace, e.goal = traceConversion, goalOrder
	default:
		e.action(r)
	}
	return e
}

// plainInt reads a parameter that is missing or written as people write integers;
// it reports false for what only PHP can say.
func plainInt(s string, missing int64) (int64, bool) {
	if s == "" {
		return missing, true
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// action finds the kind of the hit's action, by Matomo's priorities.
func (e *expectation) action(r reader) {
	e.trace = traceAction
	url := r.text("url")
	switch {
	case !phpform.Empty(r.text("download")):
		e.class, e.names[0] = classDownload, bareURL(r.text("download"))
	case !phpform.Empty(r.text("link")):
		e.class, e.names[0] = classOutlink, bareURL(r.text("link"))
	case r.text("e_c") != "" && r.text("e_a") != "":
		e.class = classEvent
		e.names = [3]name{bareName(r.text("e_c")), bareName(r.text("e_a")), bareName(r.text("e_n"))}
		e.value = strings.TrimSpace(r.text("e_v"))
	case !phpform.Empty(r.text("c_n")):
		e.class = classContent
		e.names = [3]name{bareName(r.text("c_n")), bareName(r.text("c_p"))}
	case !phpform.Empty(r.text("search")):
		e.class, e.names[0] = classSearch, bareName(r.text("search"))
	case !phpform.Empty(r.text("ca")):
		e.trace = traceNone // for a plugin, with tables of its own perhaps
	default:
		e.names = [3]name{bareName(r.text("action_name")), bareURL(url)}
		e.search = bareName(phpform.Unescape([]byte(url)))
	}
}

// sentReader reads the parameters that Matomo is sent, overrides included; nil
// when that cannot be.
func sentReader(it *item) reader {
	if it.malformed || len(it.element) < 2 {
		return nil
	}
	if it.Form == hit.Object {
		members := map[string]json.RawMessage{}
		if json.Unmarshal(it.element, &members) != nil {
			return nil
		}
		return objectReader(members)
	}
	return formReader{phpform.Parse(bytes.TrimPrefix(it.element[1:len(it.element)-1], []byte("?")))}
}

// storable reports whether MySQL keeps a page view's id as it is.
func storable(pv string) bool {
	for i := range len(pv) {
		if c := pv[i]; c < '0' || c > '9' && c < 'A' || c > 'Z' && c < 'a' || c > 'z' {
			return false
		}
	}
	return pv != ""
}

// visitorIDs gives the visitor ids, as bytes, of which Matomo takes one, by its
// settings. On some visits it keeps another that it knows the visitor by. text gives a
// parameter's text, cookie is the id that the third-party cookie brought, or "".
func visitorIDs(text func(name string) string, cookie string) []string {
	var ids []string
	add := func(hexes string) {
		if len(hexes) < visitorIDLen {
			return
		}
		if id, err := hex.DecodeString(hexes[:visitorIDLen]); err == nil && !slices.Contains(ids, string(id)) {
			ids = append(ids, string(id))
		}
	}
	if uid := text("uid"); !phpform.Empty(uid) {
		add(userID(effective(uid)))
	}
	if cid := text("cid"); len(cid) == visitorIDLen {
		add(cid)
	}
	add(text("_id"))
	add(cookie)
	return ids
}

// mates reports whether two hits may be one visitor's.
func (e *expectation) mates(other *expectation) bool {
	if e.site != other.site {
		return false
	}
	if e.ip == other.ip {
		return true
	}
	return slices.ContainsFunc(e.ids, func(id string) bool { return slices.Contains(other.ids, id) })
}

// groupKey names the rows that the hit could be mistaken for by all but names.
func (e *expectation) groupKey() []byte {
	b := binary.AppendVarint(nil, e.site)
	b = binary.AppendVarint(b, e.at)
	b = append(b, byte(e.trace))
	switch {
	case e.trace == traceConversion:
		return binary.AppendVarint(b, e.goal)
	case e.odd:
		return append(b, 0)
	}
	return append(b, e.pv...)
}

// keySeed is of this process: keys do not leave it.
var keySeed = maphash.MakeSeed()

// airKey names what the hit can be mistaken for at all; 0 when it leaves nothing
// that could be another's.
func (e *expectation) airKey() uint64 {
	switch e.trace {
	case traceNone, traceRepeatable:
		return 0
	}
	b := e.groupKey()
	if e.trace == traceAction && e.pv == "" {
		// What Matomo may change is left out.
		b = append(b, byte(e.class))
		for _, n := range e.names {
			b = append(b, 0)
			if !n.cut && !n.loose {
				b = append(b, n.bare...)
			}
		}
	}
	return max(1, maphash.Bytes(keySeed, b))
}

// sameValue reports whether an event's value may be what is stored.
func (e *expectation) sameValue(stored *float64) bool {
	if e.value == "" || stored == nil {
		return e.value == "" && stored == nil
	}
	v, err := strconv.ParseFloat(strings.ReplaceAll(e.value, ",", "."), 64)
	if err != nil {
		return true // whatever MySQL made of it
	}
	d := v - *stored
	return d < 1e-6*max(1, v, -v) && -d < 1e-6*max(1, v, -v)
}

// contains reports whether a stored keyword stands in a URL.
func contains(url, keyword name) bool {
	return keyword.bare != "" && strings.Contains(url.bare, keyword.bare)
}
