package accesslog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// newJSON makes a format of objects, one a line: of nginx with any names that are in use
// for its variables, of Caddy, and of Sluice itself.
func newJSON(name string) *Format {
	return &Format{Name: name, Ends: name != "sluice", parse: parseJSON}
}

// The names by which one thing goes, the surest first.
var (
	jsonTimes   = []string{"time_iso8601", "@timestamp", "msec", "time_local", "ts", "time", "timestamp", "date", "datetime"}
	jsonRemotes = []string{"remote_addr", "client_ip", "remote_ip", "remote", "clientip", "client", "ip"}
	jsonHosts   = []string{"http_host", "host", "vhost", "server_name", "domain"}
	jsonMethods = []string{"request_method", "method", "verb"}
	jsonTargets = []string{"request_uri", "uri", "url", "path"}
	jsonQueries = []string{"args", "query_string", "query"}
	jsonStatus  = []string{"status", "status_code", "response"}
	jsonTook    = []string{"request_time", "duration"}
	jsonHeaders = map[string]string{
		"user_agent": "user-agent", "agent": "user-agent", "referer": "referer", "referrer": "referer",
		"accept_language": "accept-language", "x_forwarded_for": "x-forwarded-for", "cookie": "cookie",
	}
)

func parseJSON(f *Format, line []byte, r *Record) error {
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if err := d.Decode(&object); err != nil {
		return &fieldError{ErrShape, "JSON", int(d.InputOffset())}
	}
	if _, ok := object["handled"]; ok != (f.Name == "sluice") {
		return &fieldError{ErrShape, "handled", 0}
	}
	r.names = nil
	inner, nested := object["request"].(map[string]any)
	if nested != (f.Name == "caddy") {
		return &fieldError{ErrShape, "request", 0}
	}
	if nested {
		for k, v := range inner {
			if _, taken := object[k]; !taken {
				object[k] = v
			}
		}
		delete(object, "request")
	}
	text := func(names []string) []byte {
		for _, n := range names {
			if s, ok := scalar(object[n]); ok && !absent(s) {
				return s
			}
		}
		return nil
	}
	if headers, ok := object["headers"].(map[string]any); ok {
		for k, v := range headers {
			r.header(k, v)
		}
	}
	for k, v := range object {
		if h, ok := strings.CutPrefix(k, "http_"); ok {
			r.header(strings.ReplaceAll(h, "_", "-"), v)
		} else if h, ok := jsonHeaders[k]; ok {
			r.header(h, v)
		}
	}
	ok := false
	if r.Time, ok = f.anyTime(text(jsonTimes)); !ok {
		return &fieldError{ErrTime, "time", 0}
	}
	r.Remote, r.Host = text(jsonRemotes), text(jsonHosts)
	if r.Remote == nil {
		return &fieldError{ErrShape, "address", 0}
	}
	if request := text([]string{"request"}); request != nil {
		if !readRequest(f, request, r, nil) {
			return &fieldError{ErrRequest, "request", 0}
		}
	} else {
		g := gathered{uri: text(jsonTargets)}
		if !bytes.Contains(g.uri, []byte("?")) {
			g.query = text(jsonQueries)
		}
		r.Method = text(jsonMethods)
		if err := g.finish(r); err != nil {
			return err
		}
		if r.Target, ok = originForm(r.Target, r); !ok || !isMethod(r.Method) {
			return &fieldError{ErrRequest, "request", 0}
		}
	}
	if !readStatus(f, text(jsonStatus), r, nil) {
		return &fieldError{ErrShape, "status", 0}
	}
	if scheme := text([]string{"scheme", "https", "tls"}); scheme != nil {
		r.HTTPS = string(scheme) != "http"
	} else if _, ok := object["tls"].(map[string]any); ok {
		r.HTTPS = true
	}
	if took, ok := duration(text(jsonTook), time.Second); ok && f.Ends {
		r.Time = began(r.Time, took, r.Time.Nanosecond() != 0)
	}
	if body, ok := object["request_body"]; ok {
		r.Body, _ = scalar(body)
		f.HasBody = true
	}
	if f.Name == "sluice" {
		r.Stored, _ = strconv.Atoi(string(text([]string{"hits"})))
	}
	return nil
}

// header adds a header of a JSON log. Of several values the lines are joined as web
// servers do.
func (r *Record) header(name string, v any) {
	value, ok := scalar(v)
	if list, is := v.([]any); is {
		for i, one := range list {
			s, _ := scalar(one)
			if i > 0 {
				value = append(value, ", "...)
			}
			value = append(value, s...)
		}
		ok = len(list) > 0
	}
	if ok && !absent(value) {
		r.names = append(r.names, strings.ToLower(name))
		r.values = append(r.values, value)
	}
}

func scalar(v any) ([]byte, bool) {
	switch v := v.(type) {
	case string:
		return []byte(v), true
	case json.Number:
		return []byte(v.String()), true
	}
	return nil, false
}

// anyTime reads a time in any of the ways in which JSON logs have it: ISO 8601, as
// Apache and nginx write it, or seconds, milliseconds or microseconds since 1970.
func (f *Format) anyTime(b []byte) (time.Time, bool) {
	if t, ok := f.clock.common(bytes.Trim(b, "[]")); ok {
		return t, true
	}
	if t, ok := epoch(b); ok {
		const sure = 20_000_000_000 // seconds: the year 2603
		switch s := t.Unix(); {
		case s > sure*1_000_000:
			return time.Time{}, false
		case s > sure*1000:
			return time.UnixMicro(s), true
		case s > sure:
			return time.UnixMilli(s).Add(time.Duration(t.Nanosecond()) / 1000), true
		}
		return t, true
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999-0700", "2006-01-02 15:04:05.999999999Z07:00"} {
		if t, err := time.Parse(layout, string(b)); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// The formats that have a name: those of a spec, and those of JSON.
var (
	specs = []struct{ name, spec string }{
		{"combined-vhost-port", `%v:%p %h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i"`},
		{"combined-vhost", `%v %h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i"`},
		{"main", `%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i" "%{X-Forwarded-For}i"`}, // of nginx's packages
		{"combined", `%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i"`},
		{"common-vhost", `%v %h %l %u %t "%r" %>s %b`},
		{"common", `%h %l %u %t "%r" %>s %b`},
	}
	objects = []string{"sluice", "caddy", "nginx-json"}
)

// Names gives the names that [Named] knows.
func Names() []string {
	var out []string
	for _, s := range specs {
		out = append(out, s.name)
	}
	return append(out, objects...)
}

// Named gives a format by its name. The times of combined and common are taken for those
// at which requests came, as Apache has them; nginx writes those of their end, which are
// the same but for slow requests.
func Named(name string) (*Format, error) {
	for _, s := range specs {
		if s.name == name {
			f, err := Apache(s.spec)
			if err != nil {
				return nil, err
			}
			f.Name = name
			return f, nil
		}
	}
	for _, o := range objects {
		if o == name {
			return newJSON(name), nil
		}
	}
	return nil, fmt.Errorf("%q is no format: want one of %s", name, strings.Join(Names(), ", "))
}

// detectShare is the part of a sample's lines that must be of a format.
const detectShare = 0.9

// Detect finds the format of lines of one file: the most particular that nearly all of
// them have. A line whose request is none is of a format all the same.
func Detect(sample [][]byte) (*Format, error) {
	var tried []string
	lines := 0
	for _, line := range sample {
		if len(bytes.TrimSpace(line)) > 0 {
			lines++
		}
	}
	if lines == 0 {
		return nil, fmt.Errorf("there are no lines")
	}
	for _, name := range append(append([]string{}, objects...), Names()[:len(specs)]...) {
		f, err := Named(name)
		if err != nil {
			return nil, err
		}
		n := 0
		var r Record
		for _, line := range sample {
			if len(bytes.TrimSpace(line)) == 0 {
				continue
			}
			if err := f.Parse(line, &r); err == nil || isRequest(err) {
				n++
			}
		}
		if float64(n) >= detectShare*float64(lines) {
			return f.Fresh(), nil
		}
		tried = append(tried, fmt.Sprintf("%s (%d of %d lines)", name, n, lines))
	}
	return nil, fmt.Errorf("the format is not known; tried %s", strings.Join(tried, ", "))
}
