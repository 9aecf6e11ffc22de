package proxy

import (
	"bytes"
	"errors"
)

// A framing follows where the requests of a connection begin and end that net/http
// reads, and refuses heads that another reader of HTTP could understand in another
// way. net/http takes some of these: it drops Content-Length beside Transfer-Encoding,
// and Transfer-Encoding in HTTP/1.0. A proxy in front that does not would see other
// requests than Sluice does.
//
// A body is skipped by its length alone. Behind a head that announces chunks or another
// protocol nothing is looked at any more; [countingWriter] therefore ends the connection
// with the answer.
type framing struct {
	line     []byte // what has come of a line; net/http's limit on heads bounds it
	inHead   bool   // the request line is complete
	minor0   bool   // the request is not HTTP/1.1
	length   int64  // Content-Length, -1 without one
	chunks   bool   // there is a Transfer-Encoding
	upgrade  bool   // there is an Upgrade
	body     int64  // bytes of a body that are still to come
	finished bool   // nothing more is looked at
	refused  string // why a head was refused, as bad input is counted
}

// errFraming makes net/http answer 400 and end the connection.
var errFraming = errors.New("request whose end is in doubt")

// follow looks at bytes that net/http is to get, in order. It says how many of them
// it may have: when a head is refused, those in front of the end of the line at fault.
func (f *framing) follow(b []byte) int {
	for at := 0; at < len(b); {
		if f.finished {
			return len(b)
		}
		if f.body > 0 {
			n := min(f.body, int64(len(b)-at))
			f.body -= n
			at += int(n)
			continue
		}
		end := bytes.IndexByte(b[at:], '\n')
		if end < 0 {
			f.line = append(f.line, b[at:]...)
			return len(b)
		}
		f.line = append(f.line, b[at:at+end+1]...)
		if f.refused = f.endOfLine(f.line); f.refused != "" {
			return at + end // without the end of the line net/http does not act on it
		}
		if f.line = f.line[:0]; cap(f.line) > baseBuffer {
			f.line = nil
		}
		at += end + 1
	}
	return len(b)
}

// endOfLine takes in one line with its end. It gives the reason for which the request
// must be refused.
func (f *framing) endOfLine(line []byte) (refused string) {
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return "bare_lf"
	}
	line = line[:len(line)-2]
	switch {
	case !f.inHead:
		if len(line) == 0 {
			return "" // an empty line in front of a request, which net/http judges
		}
		*f = framing{line: f.line, inHead: true, length: -1, minor0: !bytes.HasSuffix(line, []byte(" HTTP/1.1"))}
	case len(line) == 0:
		f.inHead = false
		f.body = max(f.length, 0)
		f.finished = f.chunks || f.upgrade
	case line[0] == ' ' || line[0] == '\t':
		return "folded_header"
	default:
		return f.header(line)
	}
	return ""
}

func (f *framing) header(line []byte) (refused string) {
	name, value, _ := bytes.Cut(line, []byte(":"))
	switch {
	case is(name, "content-length"):
		value = trimSpace(value)
		n, ok := digits(value)
		if !ok || f.length >= 0 {
			return "content_length"
		}
		f.length = n
	case is(name, "transfer-encoding"):
		f.chunks = true
	case is(name, "upgrade"):
		f.upgrade = true
	}
	switch {
	case f.chunks && f.length >= 0:
		return "length_and_encoding"
	case f.chunks && f.minor0:
		return "transfer_encoding"
	}
	return ""
}
