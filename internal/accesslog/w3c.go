package accesslog

import (
	"bytes"
	"strings"
	"time"
)

// w3c reads logs whose columns are named by a #Fields line: IIS's, and CloudFront's
// standard logs. Times are in UTC, and are when the request had been answered.
type w3c struct {
	separator  byte
	cloudfront bool
}

const fieldsDirective = "#Fields:"

func (w w3c) parse(p *Parser, s []byte, r *Record) error {
	if s[0] == '#' {
		if rest, ok := bytes.CutPrefix(s, []byte(fieldsDirective)); ok {
			p.directive = bytes.Clone(s)
			p.columns = p.columns[:0]
			for name := range bytes.FieldsSeq(rest) {
				p.columns = append(p.columns, w.column(string(name)))
			}
		}
		return ErrDirective
	}
	if len(p.columns) == 0 {
		return fault("line", 0, ErrNoFields)
	}
	sc := &p.scan
	*sc = scan{}
	sc.end.has = hasZone
	pos := 0
	for i := range p.columns {
		it := &p.columns[i]
		if pos > len(s) {
			return fault(it.name, len(s), ErrShort)
		}
		end := len(s)
		if n := bytes.IndexByte(s[pos:], w.separator); n >= 0 {
			end = pos + n
		}
		if err := w.take(it, s[pos:end], sc, r); err != nil {
			return fault(it.name, pos, err)
		}
		if it.kind == fieldTime {
			sc.time = place{it.name, pos}
		} else if it.kind == fieldPath {
			sc.target = place{it.name, pos}
		}
		pos = end + 1
	}
	if pos <= len(s) {
		return fault("line", pos, ErrMismatch)
	}
	if r.Host == nil {
		r.Host = sc.server
	}
	if err := r.settle(&sc.start, &sc.end, sc.took, sc.tookUnit, nil); err != nil {
		return fault(sc.time.field, sc.time.pos, err)
	}
	if sc.path == nil {
		return fault(sc.target.field, sc.target.pos, ErrRequest)
	}
	if err := sc.join(r, escapeNone); err != nil {
		return fault(sc.target.field, sc.target.pos, err)
	}
	return nil
}

// take takes the value of a column.
func (w w3c) take(it *item, s []byte, sc *scan, r *Record) error {
	absent := len(s) == 0 || string(s) == "-"
	ok := true
	switch it.kind {
	case fieldOpaque:
	case fieldTime:
		if n, err := sc.end.read(it.layout, s); err != nil || n != len(s) {
			return ErrTime
		}
	case fieldRemote:
		r.Remote = s
		ok = isAddress(s)
	case fieldStatus:
		r.Status, ok = status(s)
	case fieldDuration:
		sc.takeDuration(s, it.unit)
	default:
		var value []byte
		if !absent {
			value = w.undo(it, s, r)
		}
		takeText(it, value, sc, r)
	}
	if !ok {
		return ErrMismatch
	}
	return nil
}

// undo gives a value as it was sent, as far as the log tells.
func (w w3c) undo(it *item, s []byte, r *Record) []byte {
	switch {
	case w.cloudfront:
		value := r.undoCloudFront(s, it.kind == fieldHeader)
		if sameName(it.header, "user-agent") && bytes.IndexByte(value, ' ') < 0 {
			value = r.undoCloudFront(value, true) // which it once encoded twice
		}
		return value
	case sameName(it.header, "user-agent"):
		return r.withBlanks(s, 0)
	case sameName(it.header, "cookie"):
		return r.withBlanks(s, ';')
	}
	return s
}

// withBlanks makes blanks of plus signs, which IIS writes for them, or of those alone that
// stand behind a character.
func (r *Record) withBlanks(s []byte, behind byte) []byte {
	at := len(r.buf)
	for i, c := range s {
		if c == '+' && (behind == 0 || (i > 0 && s[i-1] == behind)) {
			c = ' '
		}
		r.buf = append(r.buf, c)
	}
	return r.buf[at:]
}

// undoCloudFront undoes the percent-encoding that CloudFront puts on top of what was
// sent. It encodes control characters, blanks, what is not ASCII and a few signs,
// among them the percent sign itself (AWS: "Standard log file fields"). A value with
// an escape of another character was not encoded: what is in it is the client's. So is
// a blank's in a query, where the client cannot have sent it as it is.
func (r *Record) undoCloudFront(s []byte, blanks bool) []byte {
	escapes := 0
	for i, c := range s {
		if c != '%' {
			continue
		}
		b, ok := hexByte(s, i+1)
		if !ok || !cloudFrontEncodes(b) || (b <= ' ' && !blanks) {
			return s
		}
		escapes++
	}
	if escapes == 0 {
		return s
	}
	at := len(r.buf)
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			c, _ = hexByte(s, i+1)
			i += 2
		}
		r.buf = append(r.buf, c)
	}
	return r.buf[at:]
}

func cloudFrontEncodes(c byte) bool {
	return c <= ' ' || c >= 0x7f || bytes.IndexByte([]byte("<>\"#%{}|\\^~[]`'"), c) >= 0
}

// column says what a column is.
func (w w3c) column(name string) item {
	it := item{name: name, end: true}
	switch headerName(name) {
	case "date":
		it.kind, it.layout = fieldTime, isoDateParts
	case "time":
		it.kind, it.layout = fieldTime, isoTimeParts
	case "c-ip":
		it.kind = fieldRemote
	case "cs-method":
		it.kind = fieldMethod
	case "cs-uri-stem":
		it.kind = fieldPath
	case "cs-uri-query":
		it.kind = fieldArgs
	case "cs-version", "cs-protocol-version":
		it.kind = fieldProtocol
	case "cs-host", "x-host-header":
		it.kind = fieldHost
	case "cs-protocol":
		it.kind = fieldScheme
	case "sc-status":
		it.kind = fieldStatus
	case "time-taken":
		it.kind, it.unit = fieldDuration, time.Millisecond
		if w.cloudfront {
			it.unit = time.Second
		}
	case "x-forwarded-for":
		it.kind, it.header = fieldHeader, []byte(name)
	case "cs(host)": // of CloudFront the distribution's own
		it.kind = fieldServer
	default:
		if header, ok := strings.CutPrefix(name, "cs("); ok {
			it.kind, it.header = fieldHeader, []byte(strings.TrimSuffix(header, ")"))
		}
	}
	return it
}
