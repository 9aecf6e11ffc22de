package accesslog

import (
	"bytes"
	"time"
)

// A template is a log format of texts and fields, as nginx and Apache have it.
type template struct {
	head   []byte // stands before the first field
	items  []item
	escape escaping
	own    bool // Sluice writes it, too, and says at the end of a line what it stored
}

type kind uint8

const (
	fieldOpaque   kind = iota // of no use here
	fieldSize                 // a number of no use
	fieldUser                 // of no use either, but may have blanks
	fieldRemote               // the client's address
	fieldPeer                 // the peer's, if it is not the client
	fieldEndpoint             // address and port
	fieldHost                 // as the client named it
	fieldServer               // as the configuration names it
	fieldCommon               // a time as in commonLayout
	fieldTime                 // a time in another layout
	fieldDuration
	fieldRequest
	fieldMethod
	fieldTarget // path and query
	fieldPath   // the path, decoded by the server
	fieldIsArgs // "?" if there is a query
	fieldArgs   // the query
	fieldQuery  // the query with its "?"
	fieldProtocol
	fieldStatus
	fieldBody
	fieldScheme
	fieldHTTPS
	fieldHeader
)

type item struct {
	kind       kind
	name       string // of the field as the format calls it
	header     []byte
	layout     layout
	end        bool // a time is when the request ended
	unit       time.Duration
	quoted     bool   // a quotation mark is before it and behind it
	list       bool   // may hold ", " and " : " (nginx: $upstream_addr)
	argsFollow bool   // $is_args is next
	rest       bool   // whatever there is up to the line's end
	stop       byte   // ends it, and belongs to the next field
	until      []byte // ends it, and belongs to none; empty at the end of a line
}

// A place is where something stands, for errors.
type place struct {
	field string
	pos   int
}

// A scan is what a line says in parts, before they are put together.
type scan struct {
	start, end     stamp
	took, tookUnit time.Duration
	raw            []byte // path and query as sent
	path, query    []byte
	isArgs         bool
	noProtocol     bool // though the format has it
	peer, server   []byte
	argsFollow     bool // the path, and isArgs says whether there are any
	target         place
	time           place
}

// cutHits takes from a line what Sluice writes behind its last quotation mark, which no
// client can write there.
func cutHits(s []byte, r *Record) []byte {
	const mark = `" hits=`
	i := bytes.LastIndex(s, []byte(mark))
	if i < 0 {
		return s
	}
	n, ok := number(s[i+len(mark):])
	if !ok {
		return s
	}
	r.Hits = int(n)
	return s[:i+1]
}

// parse reads a line. Its errors have positions.
func (t *template) parse(p *Parser, s []byte, r *Record) error {
	if !bytes.HasPrefix(s, t.head) {
		return fault("line", 0, ErrMismatch)
	}
	if t.own {
		s = cutHits(s, r)
	}
	sc := &p.scan
	*sc = scan{}
	pos := len(t.head)
	var request error // is told only if the rest is as it should be
	requested := false
	for i := range t.items {
		it := &t.items[i]
		value, next, err := it.find(t, i, s, pos, p)
		if err != nil {
			return fault(it.name, next, err)
		}
		switch it.kind {
		case fieldCommon, fieldTime:
			sc.time = place{it.name, pos}
		case fieldRequest, fieldTarget, fieldPath:
			sc.target = place{it.name, pos}
		}
		if it.kind == fieldRequest {
			requested = true
			request = t.takeRequest(value, r)
		} else if !t.take(it, value, sc, r) {
			return fault(it.name, pos, ErrMismatch)
		}
		pos = next
	}
	if pos != len(s) {
		return fault("line", pos, ErrMismatch)
	}
	if !requested {
		request = sc.join(r, t.escape)
	}
	if r.Remote == nil {
		r.Remote = sc.peer
	}
	if r.Host == nil {
		r.Host = sc.server
	}
	if err := r.settle(&sc.start, &sc.end, sc.took, sc.tookUnit, p.loc); err != nil {
		return fault(sc.time.field, sc.time.pos, err)
	}
	if request != nil {
		return fault(sc.target.field, sc.target.pos, request)
	}
	return nil
}

// find says what a field's value is and where the next field begins, or where a fault
// is. Of times it takes the value at once.
func (it *item) find(t *template, i int, s []byte, pos int, p *Parser) (value []byte, next int, err error) {
	end, sc := pos, &p.scan
	switch {
	case it.kind == fieldCommon:
		if len(s)-pos < len(commonLayout) {
			return nil, len(s), ErrShort
		}
		end = pos + len(commonLayout)
		sec, err := p.common.read(s[pos:end])
		if err != nil {
			return nil, pos, err
		}
		it.stamp(sc).setEpoch(sec, 0, time.Second)
	case it.kind == fieldTime:
		n, err := it.stamp(sc).read(it.layout, s[pos:])
		if end = pos + n; err != nil {
			if end+1 >= len(s) {
				return nil, len(s), ErrShort
			}
			return nil, end, err
		}
	case it.kind == fieldIsArgs:
		if pos < len(s) && s[pos] == '?' {
			end, sc.isArgs = pos+1, true
		}
	case it.rest:
		return s[pos:], len(s), nil
	default:
		if end, err = it.findEnd(t, i, s, pos); err != nil {
			return nil, end, err
		}
	}
	if !bytes.HasPrefix(s[end:], it.until) {
		if len(s)-end < len(it.until) {
			return nil, len(s), ErrShort
		}
		return nil, end, ErrMismatch
	}
	return s[pos:end], end + len(it.until), nil
}

func (it *item) stamp(sc *scan) *stamp {
	if it.end {
		return &sc.end
	}
	return &sc.start
}

// findEnd finds where a value ends. The position is that of a fault if there is one.
func (it *item) findEnd(t *template, i int, s []byte, pos int) (int, error) {
	if it.stop != 0 {
		limit := len(s)
		for _, later := range t.items[i:] {
			if len(later.until) == 0 {
				continue
			}
			if n := bytes.Index(s[pos:], later.until); n >= 0 {
				limit = pos + n
			}
			break
		}
		if n := bytes.IndexByte(s[pos:limit], it.stop); n >= 0 {
			return pos + n, nil
		}
		return limit, nil
	}
	if len(it.until) == 0 {
		return len(s), nil
	}
	if !it.quoted || t.escape == escapeNone {
		return it.findText(s, pos)
	}
	for end := pos; ; {
		n := bytes.IndexByte(s[end:], '"')
		if n < 0 {
			return len(s), ErrShort
		}
		end += n
		if !isEscaped(s[pos:end], t.escape) {
			return end, nil
		}
		end++
	}
}

// findText finds the text behind a value, the first one that there is. Behind a request
// line it is the first with a protocol before it, if there is one.
func (it *item) findText(s []byte, pos int) (int, error) {
	first := -1
	for end := pos; ; {
		n := bytes.Index(s[end:], it.until)
		if n < 0 && first >= 0 {
			return first, nil
		}
		if n < 0 {
			return len(s), ErrShort
		}
		end += n
		switch {
		case it.list && end > pos && s[end-1] == ',':
			end++
		case it.list && bytes.HasPrefix(s[end:], []byte(" : ")):
			end += len(" : ")
		case it.kind == fieldRequest && !endsWithProtocol(s[pos:end]):
			if first < 0 {
				first = end
			}
			end++
		default:
			return end, nil
		}
	}
}

func endsWithProtocol(s []byte) bool {
	const longest = len(" HTTP/1.1 ")
	s = s[max(len(s)-longest, 0):] // or long lines would take for ever
	return isProtocol(s[bytes.LastIndexByte(s, ' ')+1:])
}

// isEscaped says whether what stands behind s is escaped by a backslash at its end.
func isEscaped(s []byte, e escaping) bool {
	if e == escapeNginx {
		return false // a quotation mark is \x22
	}
	n := 0
	for n < len(s) && s[len(s)-1-n] == '\\' {
		n++
	}
	return n%2 == 1
}

// isAbsent says whether a value stands for none.
func (t *template) isAbsent(s []byte) bool {
	if t.escape == escapeNone || t.escape == escapeJSON {
		return len(s) == 0
	}
	return len(s) == 1 && s[0] == '-'
}

// take takes a field's value for a record, and says whether it can be one.
func (t *template) take(it *item, s []byte, sc *scan, r *Record) bool {
	ok := true
	switch it.kind {
	case fieldOpaque, fieldCommon, fieldTime, fieldIsArgs:
	case fieldSize:
		_, ok = number(s)
		ok = ok || string(s) == "-"
	case fieldUser:
		// A line with one field more at its beginning has two hyphens here.
		ok = !bytes.HasPrefix(s, []byte("- "))
	case fieldRemote:
		if it.name != "%h" || r.Remote == nil { // which may be a name
			r.Remote = s
		}
		ok = isAddress(s)
	case fieldEndpoint:
		r.Remote = withoutPort(s, true)
		ok = isAddress(s)
	case fieldStatus:
		r.Status, ok = status(s)
	case fieldDuration:
		sc.takeDuration(s, it.unit)
	default:
		var value []byte
		if !t.isAbsent(s) {
			value = r.undo(s, t.escape)
		}
		takeText(it, value, sc, r)
	}
	return ok
}

// takeDuration takes how long a request took, of several the most precise.
func (sc *scan) takeDuration(s []byte, unit time.Duration) {
	if took, precision, ok := duration(s, unit); ok && (sc.tookUnit == 0 || precision < sc.tookUnit) {
		sc.took, sc.tookUnit = took, precision
	}
}

func (t *template) takeRequest(s []byte, r *Record) error {
	if t.isAbsent(s) {
		return ErrRequest
	}
	return r.setRequest(r.undo(s, t.escape))
}

// takeText takes a value whose escapes are undone, nil if the log has none. A request
// line comes before what is logged apart of it.
func takeText(it *item, value []byte, sc *scan, r *Record) {
	switch it.kind {
	case fieldMethod:
		if r.Method == nil {
			r.Method = value
		}
	case fieldProtocol:
		if r.Protocol == nil {
			r.Protocol = value
		}
		sc.noProtocol = value == nil
	case fieldTarget:
		sc.raw = value
	case fieldPath:
		sc.path, sc.argsFollow = value, it.argsFollow
	case fieldArgs:
		sc.query = value
	case fieldQuery:
		if len(value) > 0 {
			sc.query = value[1:]
		}
	case fieldHost:
		if len(value) > 0 {
			r.Host = value
		}
	case fieldServer:
		if len(value) > 0 {
			sc.server = value
		}
	case fieldPeer:
		sc.peer = value
	case fieldBody:
		r.Body = value
	case fieldScheme, fieldHTTPS:
		r.setScheme(schemeOf(value, it.kind))
	case fieldHeader:
		r.addHeader(it.header, value)
	}
}

func schemeOf(s []byte, k kind) Scheme {
	switch string(s) {
	case "https", "wss", "h2", "grpcs", "on":
		return SchemeHTTPS
	case "http", "ws", "off":
		return SchemeHTTP
	case "":
		if k == fieldHTTPS { // nginx leaves $https empty
			return SchemeHTTP
		}
	}
	return SchemeUnknown
}

// join makes a target of what is logged apart, if there was no request line.
func (sc *scan) join(r *Record, e escaping) error {
	if sc.noProtocol || (r.Protocol != nil && !isProtocol(r.Protocol)) || (r.Method != nil && !isMethod(r.Method)) {
		return ErrRequest
	}
	if sc.raw != nil {
		return r.setTarget(sc.raw)
	}
	if sc.argsFollow && !sc.isArgs {
		sc.query = nil
		if e == escapeNginx || e == escapeEither {
			sc.path = bytes.TrimSuffix(sc.path, []byte("-")) // of $args
		}
	}
	return r.setParts(sc.path, sc.query)
}
