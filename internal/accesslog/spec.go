package accesslog

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A token is a part of a line: literal text, or a field up to the literal behind it.
type token struct {
	literal []byte // if it is text
	name    string // else, for errors
	read    func(f *Format, value []byte, r *Record, g *gathered) bool
	kind    error // what is wrong if read answers false
}

// gathered is what several fields of a line say together.
type gathered struct {
	method, uri, query []byte
	took               time.Duration
	hasTook, begins    bool
	exact              bool // the time is finer than a second
}

// Nginx makes a format of the text of nginx's log_format, with escape=default or
// escape=none in front of it or without (ngx_http_log_module). For escape=json take the
// format nginx-json. Text in quotes over several lines, as in a configuration, is joined.
func Nginx(spec string) (*Format, error) {
	f := &Format{Name: "nginx", Ends: true}
	spec = strings.TrimSpace(spec)
	raw := false
	for _, p := range []string{"escape=default", "escape=none"} {
		if rest, ok := strings.CutPrefix(spec, p); ok {
			spec, raw = strings.TrimSpace(rest), p == "escape=none"
		}
	}
	if strings.HasPrefix(spec, "escape=json") {
		return nil, fmt.Errorf("a format with escape=json: want nginx-json")
	}
	spec = joinQuoted(spec)
	if err := f.compile(spec, '$', nginxField, !raw); err != nil {
		return nil, err
	}
	return f, nil
}

// joinQuoted joins the quoted parts of a text in a configuration.
func joinQuoted(s string) string {
	if len(s) < 2 || s[0] != '\'' && (s[0] != '"' || s[len(s)-1] != '"' || strings.Contains(s[1:len(s)-1], `"`)) {
		return s
	}
	var b strings.Builder
	for part := range strings.SplitSeq(s, string(s[0])) {
		if strings.TrimSpace(part) != "" {
			b.WriteString(part)
		} else if len(part) > 0 && !strings.Contains(part, "\n") && b.Len() > 0 {
			b.WriteString("") // between two quoted parts
		}
	}
	return b.String()
}

// Apache makes a format of the text of Apache's LogFormat (mod_log_config). Fields that
// nothing is made of are passed over.
func Apache(spec string) (*Format, error) {
	f := &Format{Name: "apache"}
	spec = strings.TrimSpace(spec)
	if n := len(spec); n > 1 && spec[0] == '"' && spec[n-1] == '"' && strings.Contains(spec, `\"`) {
		spec = strings.ReplaceAll(spec[1:n-1], `\"`, `"`) // as it stands in a configuration
	}
	if err := f.compile(spec, '%', apacheField, true); err != nil {
		return nil, err
	}
	return f, nil
}

// compile cuts a spec at its fields, which begin with a sign.
func (f *Format) compile(spec string, sign byte, field func(f *Format, rest string) (token, int, error), escaped bool) error {
	var literal []byte
	flush := func() {
		if len(literal) > 0 {
			f.spec = append(f.spec, token{literal: literal})
			literal = nil
		}
	}
	for len(spec) > 0 {
		if spec[0] != sign || len(spec) == 1 {
			literal = append(literal, spec[0])
			spec = spec[1:]
			continue
		}
		t, n, err := field(f, spec[1:])
		if err != nil {
			return err
		}
		spec = spec[1+n:]
		if t.literal != nil { // a sign that stands for itself
			literal = append(literal, t.literal...)
			continue
		}
		flush()
		if k := len(f.spec); k > 0 && f.spec[k-1].name == "%U" && t.name == "%q" {
			continue // the query stands behind the path, with its question mark
		}
		if k := len(f.spec); k > 0 && f.spec[k-1].literal == nil {
			return fmt.Errorf("%s and %s: want something between them", f.spec[k-1].name, t.name)
		}
		f.spec = append(f.spec, t)
	}
	flush()
	f.parse = parseSpec
	if !escaped {
		f.parse = parseRaw
	}
	for _, need := range []string{"address", "time", "request"} {
		if !f.finds(need) {
			return fmt.Errorf("the format has no %s", need)
		}
	}
	return nil
}

// finds reports whether a field gives what every request must have.
func (f *Format) finds(what string) bool {
	have := map[string]bool{}
	for _, t := range f.spec {
		switch t.name {
		case "$remote_addr", "$realip_remote_addr", "%h", "%a", "%{c}a":
			have["address"] = true
		case "$time_local", "$time_iso8601", "$msec", "%t":
			have["time"] = true
		case "$request", "%r":
			have["method"], have["target"] = true, true
		case "$request_method", "%m":
			have["method"] = true
		case "$request_uri", "$uri", "%U":
			have["target"] = true
		}
		if strings.HasPrefix(t.name, "%{") && strings.HasSuffix(t.name, "}t") {
			have["time"] = true
		}
	}
	have["request"] = have["method"] && have["target"]
	return have[what]
}

func parseSpec(f *Format, line []byte, r *Record) error { return f.run(line, r, true) }
func parseRaw(f *Format, line []byte, r *Record) error  { return f.run(line, r, false) }

// run reads a line by the spec.
func (f *Format) run(line []byte, r *Record, escaped bool) error {
	rest := line
	g := gathered{begins: !f.Ends}
	for i := range f.spec {
		t := &f.spec[i]
		at := len(line) - len(rest)
		if t.literal != nil {
			if !bytes.HasPrefix(rest, t.literal) {
				return &fieldError{ErrShape, "text of the format", at}
			}
			rest = rest[len(t.literal):]
			continue
		}
		end := len(rest)
		if i+1 < len(f.spec) {
			if end = until(rest, f.spec[i+1].literal, escaped); end < 0 {
				return &fieldError{ErrShape, t.name, at}
			}
		}
		value := rest[:end]
		rest = rest[end:]
		if t.read == nil {
			continue
		}
		if escaped {
			value = unescape(value, &r.text)
		}
		if !t.read(f, value, r, &g) {
			return &fieldError{t.kind, t.name, at}
		}
	}
	if len(rest) > 0 {
		return &fieldError{ErrShape, "end of the format", len(line) - len(rest)}
	}
	return g.finish(r)
}

// until finds the literal that ends a value. Behind a backslash nothing ends one that
// stands in quotes.
func until(b, literal []byte, escaped bool) int {
	if !escaped || literal[0] != '"' {
		return bytes.Index(b, literal)
	}
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '\\':
			i++
		case bytes.HasPrefix(b[i:], literal):
			return i
		}
	}
	return -1
}

func (g *gathered) finish(r *Record) error {
	if r.Target == nil && g.uri != nil {
		r.Target = g.uri
		if len(g.query) > 0 {
			if g.query[0] != '?' {
				r.Target = append(r.Target[:len(r.Target):len(r.Target)], '?')
			}
			r.Target = append(r.Target[:len(r.Target):len(r.Target)], g.query...)
		}
	}
	if r.Method == nil {
		r.Method = g.method
	}
	if r.Time.IsZero() {
		return &fieldError{ErrTime, "time", 0}
	}
	if g.hasTook && !g.begins {
		r.Time = began(r.Time, g.took, g.exact)
	}
	return nil
}

// began gives when a request came that was over at a time. One that is of a whole second
// was somewhen in it: half a second is the least wrong, and leaves a quick request in its
// second.
func began(end time.Time, took time.Duration, exact bool) time.Time {
	if !exact {
		end = end.Add(time.Second / 2)
	}
	return end.Add(-took)
}

// A reader of a field.
type reader = func(f *Format, value []byte, r *Record, g *gathered) bool

func absent(b []byte) bool { return len(b) == 0 || len(b) == 1 && b[0] == '-' }

func readRemote(_ *Format, v []byte, r *Record, _ *gathered) bool {
	r.Remote = v
	return !absent(v)
}

func readHost(_ *Format, v []byte, r *Record, _ *gathered) bool {
	if !absent(v) {
		r.Host = v
	}
	return true
}

func readCommonTime(f *Format, v []byte, r *Record, _ *gathered) (ok bool) {
	v = bytes.TrimSuffix(bytes.TrimPrefix(v, []byte("[")), []byte("]"))
	r.Time, ok = f.clock.common(v)
	return ok
}

func readISOTime(_ *Format, v []byte, r *Record, _ *gathered) bool {
	t, err := time.Parse(time.RFC3339Nano, string(v))
	r.Time = t
	return err == nil
}

func readEpoch(_ *Format, v []byte, r *Record, g *gathered) (ok bool) {
	t, ok := epoch(v)
	if ok {
		r.Time, g.exact = t, bytes.IndexByte(v, '.') >= 0
	}
	return ok
}

// readRequest reads a request line. One that is none, as of TLS spoken to a plain port,
// is an error.
func readRequest(_ *Format, v []byte, r *Record, _ *gathered) bool {
	method, rest, ok := bytes.Cut(v, []byte(" "))
	if !ok || !isMethod(method) {
		return false
	}
	target := rest
	if i := bytes.LastIndexByte(rest, ' '); i >= 0 && bytes.HasPrefix(rest[i+1:], []byte("HTTP/")) {
		target = rest[:i]
	}
	r.Method = method
	r.Target, ok = originForm(target, r)
	return ok
}

func isMethod(b []byte) bool {
	for _, c := range b {
		if (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return len(b) > 0
}

// originForm gives path and query of a target that may name its host.
func originForm(target []byte, r *Record) ([]byte, bool) {
	for _, scheme := range []string{"http://", "https://"} {
		rest, ok := bytes.CutPrefix(target, []byte(scheme))
		if !ok {
			continue
		}
		i := bytes.IndexAny(rest, "/?")
		if i < 0 || rest[i] == '?' {
			return nil, false
		}
		if r.Host == nil {
			r.Host = rest[:i]
		}
		r.HTTPS = r.HTTPS || scheme == "https://"
		return rest[i:], true
	}
	return target, len(target) > 0
}

func readStatus(_ *Format, v []byte, r *Record, _ *gathered) bool {
	if absent(v) {
		return true
	}
	n, err := strconv.Atoi(string(v))
	r.Status = n
	return err == nil && n >= 0 && n <= 999
}

func readScheme(_ *Format, v []byte, r *Record, _ *gathered) bool {
	r.HTTPS = string(v) == "https" || string(v) == "on"
	return true
}

func readBody(_ *Format, v []byte, r *Record, _ *gathered) bool {
	if !absent(v) {
		r.Body = v
	}
	return true
}

func readTook(unit time.Duration) reader {
	return func(_ *Format, v []byte, _ *Record, g *gathered) (ok bool) {
		if absent(v) {
			return true
		}
		g.took, ok = duration(v, unit)
		g.hasTook = true
		return ok
	}
}

// header makes a field that is a header of the request.
func (f *Format) header(name string) reader {
	name = strings.ToLower(name)
	i := f.has(name)
	if i < 0 {
		i = len(f.Headers)
		f.Headers = append(f.Headers, name)
	}
	return func(_ *Format, v []byte, r *Record, _ *gathered) bool {
		if !absent(v) {
			r.values[i] = v
		}
		return true
	}
}
