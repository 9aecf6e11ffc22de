package accesslog

import "bytes"

// haproxy reads HAProxy's HTTP and HTTPS log formats. The time is when the first byte of
// the request came, in the zone of HAProxy's machine, which it does not log (HAProxy:
// configuration manual, "HTTP log format"). Captured headers have no names there and
// are skipped.
type haproxy struct{}

var haproxyParts = layout{{op: 'd'}, {text: "/"}, {op: 'b'}, {text: "/"}, {op: 'Y'}, {text: ":"}, {op: 'H'}, {text: ":"}, {op: 'M'}, {text: ":"}, {op: 'S'}, {text: "."}, {op: opMilli}, {text: "] "}}

func (haproxy) parse(p *Parser, s []byte, r *Record) error {
	p.scan = scan{}
	start := &p.scan.start
	pos, at := haproxyTime(s, start)
	if pos < 0 {
		return fault("accept date", 0, ErrMismatch)
	}
	client := s[:max(at-2, 0)]
	client = client[bytes.LastIndexByte(client, ' ')+1:]
	if r.Remote = withoutPort(client, true); !isAddress(r.Remote) {
		return fault("client", 0, ErrMismatch)
	}
	quote := bytes.IndexByte(s[pos:], '"')
	if quote < 0 {
		return fault("request", len(s), ErrShort)
	}
	frontend, rest, _ := bytes.Cut(s[pos:pos+quote], space)
	_, rest, _ = bytes.Cut(rest, space)
	timers, rest, _ := bytes.Cut(rest, space)
	code, rest, _ := bytes.Cut(rest, space)
	const slashes = 4 // between five timers
	if bytes.Count(timers, []byte("/")) < slashes || len(rest) == 0 {
		return fault("timers", pos, ErrMismatch)
	}
	if r.Status = 0; string(code) != "-1" {
		var ok bool
		if r.Status, ok = status(code); !ok {
			return fault("status", pos, ErrMismatch)
		}
	}
	r.Scheme = SchemeHTTP
	if bytes.HasSuffix(frontend, []byte("~")) {
		r.Scheme = SchemeHTTPS
	}
	begin := pos + quote + 1
	size := bytes.IndexByte(s[begin:], '"')
	if size < 0 {
		return fault("request", len(s), ErrShort)
	}
	if tail := s[begin+size+1:]; len(tail) > 0 && tail[0] != ' ' {
		return fault("request", begin+size+1, ErrMismatch)
	}
	requestErr := r.setRequest(r.undo(s[begin:begin+size], escapeHAProxy))
	if err := r.settle(start, start, 0, 0, p.loc); err != nil {
		return fault("accept date", at, err)
	}
	if requestErr != nil {
		return fault("request", begin, requestErr)
	}
	return nil
}

// haproxyTime finds the accept date, which may stand behind whatever a log daemon has
// put before the line. It gives where the date begins and where the next field does.
func haproxyTime(s []byte, t *stamp) (pos, at int) {
	for at := 0; ; {
		n := bytes.IndexByte(s[at:], '[')
		if n < 0 {
			return -1, 0
		}
		at += n + 1
		*t = stamp{}
		if n, err := t.read(haproxyParts, s[at:]); err == nil {
			return at + n, at
		}
	}
}
