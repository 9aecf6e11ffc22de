package accesslog

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const corpusDir = "../../testdata/accesslog"

// sent is what a client sent for a line of the corpus. Texts have one rune for each
// byte, and are nil for what was not sent.
type sent struct {
	Began, Ended    float64
	Status          int
	Garbage         *string
	Method          string
	Target          string
	Protocol        string
	Host            string
	Remote          string
	UserAgent       *string `json:"user_agent"`
	Referer         *string
	XForwardedFor   *string `json:"x_forwarded_for"`
	AcceptLanguage  *string `json:"accept_language"`
	Body            *string
	Hits            *int
	Inexact         bool
	HeadersNotKnown bool `json:"headers_not_known"`
}

func bytesOf(s string) []byte {
	b := make([]byte, 0, len(s))
	for _, c := range s {
		b = append(b, byte(c))
	}
	return b
}

// A corpus is a log file of testdata, with the format that it is in.
type corpus struct {
	file    string
	format  string // that Detect finds; empty if it finds none
	spec    string // of nginx or Apache
	holds   string // what is logged, of "ua ref xff al body host remote"
	start   bool
	empty   bool // what is empty counts as not sent
	decoded bool // the path is as the server has decoded it
}

const (
	nginxCustom   = `$msec $request_time $scheme://$host$request_uri $request_method $server_protocol $status "$http_user_agent" "$http_referer" "$http_x_forwarded_for" "$http_accept_language" $remote_addr "$request_body"`
	nginxNone     = `escape=none $time_iso8601|$request_time|$remote_addr|$request|$status|$http_referer|$http_user_agent|$http_x_forwarded_for`
	nginxJSON     = `log_format j escape=json '{"time":"$time_iso8601","remote_addr":"$remote_addr","host":"$host","request_method":"$request_method","request_uri":"$request_uri","server_protocol":"$server_protocol","status":$status,"request_time":$request_time,"http_referer":"$http_referer","http_user_agent":"$http_user_agent","http_x_forwarded_for":"$http_x_forwarded_for","http_accept_language":"$http_accept_language",' '"request_body":"$request_body","scheme":"$scheme"}';`
	nginxCombined = `$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"`
	apacheVhost   = `LogFormat "%v:%p %h %l %u %t \"%r\" %>s %O \"%{Referer}i\" \"%{User-Agent}i\"" vhost_combined`
	apacheCustom  = `%a %{%Y-%m-%dT%H:%M:%S}t.%{usec_frac}t%{%z}t %m %U%q %H %>s %D %V "%{User-Agent}i" "%{Referer}i" "%{X-Forwarded-For}i" "%{Accept-Language}i" %{ms}T "%{end:usec}t"`
)

var corpora = []corpus{
	{file: "nginx-combined", format: "combined", holds: "ua ref remote"},
	{file: "nginx-combined", format: "combined", spec: nginxCombined, holds: "ua ref remote"},
	{file: "nginx-common", format: "common", holds: "remote"},
	{file: "nginx-vhost", format: "combined-vhost", holds: "ua ref remote host"},
	{file: "nginx-main", format: "nginx-main", holds: "ua ref xff remote"},
	{file: "nginx-custom", spec: nginxCustom, holds: "ua ref xff al body remote host", start: true},
	{file: "nginx-none", spec: nginxNone, holds: "ua ref xff remote", start: true, empty: true},
	{file: "nginx-json", format: "nginx-json", holds: "ua ref xff al body remote host", start: true, empty: true},
	{file: "nginx-json", format: "nginx-json", spec: nginxJSON, holds: "ua ref xff al body remote host", start: true, empty: true},
	{file: "nginx-json-default", format: "nginx-json", holds: "ua ref remote", empty: true},
	{file: "apache-common", format: "common", holds: "remote"},
	{file: "apache-common", format: "common", spec: `%h %l %u %t "%r" %>s %b`, holds: "remote", start: true},
	{file: "apache-combined", format: "combined", holds: "ua ref remote"},
	{file: "apache-vhost", format: "combined-vhost", holds: "ua ref remote"},
	{file: "apache-vhost", format: "combined-vhost", spec: apacheVhost, holds: "ua ref remote", start: true},
	{file: "apache-custom", spec: apacheCustom, holds: "ua ref xff al remote host", start: true, decoded: true},
	{file: "caddy-json", format: "caddy", holds: "ua ref xff al remote host", start: true},
	{file: "haproxy", format: "haproxy", holds: "remote", start: true},
	{file: "haproxy-syslog", format: "haproxy", holds: "remote", start: true},
	{file: "sluice", format: "sluice", holds: "ua ref remote host", start: true, empty: true},
	{file: "sluice-json", format: "sluice", holds: "ua ref remote host", start: true, empty: true},
	{file: "sluice-combined", format: "combined", holds: "ua ref remote", empty: true},
	{file: "iis", format: "iis", holds: "ua ref remote host", start: true},
	{file: "alb", format: "alb", holds: "ua remote host", start: true},
	{file: "cloudfront", format: "cloudfront", holds: "ua ref xff remote host", start: true},
}

func corpusLines(t testing.TB, file string) [][]byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(corpusDir, file+".log"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.SplitAfter(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
}

func corpusSent(t testing.TB, file string) []sent {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(corpusDir, file+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var all []sent
	for line := range bytes.Lines(data) {
		var s sent
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// format makes the format of a corpus, with the zone that its servers ran in.
func (c *corpus) made(t testing.TB) *Format {
	t.Helper()
	var f *Format
	var err error
	switch {
	case c.spec == "":
		f, err = Named(c.format)
	case strings.HasPrefix(c.file, "apache"):
		f, err = Apache(c.spec)
	default:
		f, err = Nginx(c.spec)
	}
	if err != nil {
		t.Fatal(err)
	}
	const kolkata = 5*3600 + 1800
	return f.In(time.FixedZone("", kolkata))
}

func TestServersLinesComeOutAsWhatWasSent(t *testing.T) {
	for _, c := range corpora {
		t.Run(c.file+" "+c.format, func(t *testing.T) {
			p := c.made(t).NewParser()
			all := corpusSent(t, c.file)
			var r Record
			for i, line := range corpusLines(t, c.file) {
				err := p.Parse(line, &r)
				if errors.Is(err, ErrDirective) {
					continue
				}
				if len(all) == 0 {
					t.Fatalf("line %d is one too many", i+1)
				}
				want := all[0]
				all = all[1:]
				c.compare(t, i+1, &r, err, &want)
			}
			if len(all) > 0 {
				t.Errorf("%d lines too few", len(all))
			}
		})
	}
}

func (c *corpus) compare(t *testing.T, line int, r *Record, err error, want *sent) {
	t.Helper()
	if want.Garbage != nil || strings.HasPrefix(c.file, "haproxy") && want.Status == 400 && want.Target != "*" {
		// Of "quit" Apache makes a request for "/", when it writes the parts.
		if err == nil && !(c.decoded && string(r.Method) == "quit") {
			t.Errorf("line %d: no error for garbage", line)
		}
		if err != nil && !errors.Is(err, ErrRequest) && !errors.Is(err, ErrNUL) {
			t.Errorf("line %d: %v for garbage", line, err)
		}
		return
	}
	if err != nil {
		// nginx does not write the parts of what it could not read.
		if !(want.Status == 400 && errors.Is(err, ErrRequest)) {
			t.Errorf("line %d: %v", line, err)
		}
		return
	}
	target := bytesOf(want.Target)
	if i := bytes.Index(target, []byte("://")); i > 0 && target[0] != '/' {
		target = target[i+3:]
		target = target[bytes.IndexByte(target, '/'):]
	}
	if c.decoded {
		target = bytes.Replace(target, []byte("/a%20b/.."), nil, 1)
		target, _, _ = bytes.Cut(target, []byte("#")) // no query of Apache's has a fragment
	}
	check := func(what string, got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("line %d: %s is %q, want %q", line, what, got, want)
		}
	}
	if want.Inexact != r.Inexact {
		t.Errorf("line %d: inexact is %v", line, r.Inexact)
	}
	check("target", r.Target, target)
	check("method", r.Method, []byte(want.Method))
	if r.Protocol != nil {
		check("protocol", r.Protocol, []byte(want.Protocol))
	}
	if r.Status != want.Status {
		t.Errorf("line %d: status is %d, want %d", line, r.Status, want.Status)
	}
	holds := strings.Fields(c.holds)
	held := func(what string) bool {
		return slices.Contains(holds, what)
	}
	check("remote", r.Remote, []byte(want.Remote))
	if held("host") {
		check("host", r.Host, []byte(want.Host))
	}
	if hits := want.Hits; hits != nil && r.Hits != *hits || hits == nil && r.Hits != -1 {
		t.Errorf("line %d: hits is %d", line, r.Hits)
	}
	if held("body") {
		c.text(t, line, "body", r.Body, want.Body)
	} else if r.Body != nil {
		t.Errorf("line %d: there is a body", line)
	}
	if want.Status != 400 { // of which nginx has no headers
		for _, h := range []struct {
			short, name string
			want        *string
		}{{"ua", "User-Agent", want.UserAgent}, {"ref", "referer", want.Referer}, {"xff", "x_forwarded_for", want.XForwardedFor}, {"al", "Accept-Language", want.AcceptLanguage}} {
			got, logged := r.Header(h.name)
			if logged != held(h.short) {
				t.Errorf("line %d: %s logged: %v", line, h.name, logged)
			}
			if logged && !want.Inexact {
				c.text(t, line, h.name, got, h.want)
			}
		}
	}
	c.compareTime(t, line, r, want)
}

// text compares what may not have been sent.
func (c *corpus) text(t *testing.T, line int, what string, got []byte, want *string) {
	t.Helper()
	if want != nil && *want == "-" && c.file != "caddy-json" && c.file != "nginx-none" && c.file != "sluice-json" {
		if string(got) != "-" && got != nil {
			t.Errorf("line %d: %s is %q for a hyphen", line, what, got)
		}
		return
	}
	if want == nil || (c.empty && *want == "") {
		if got != nil {
			t.Errorf("line %d: %s is %q, want none", line, what, got)
		}
		return
	}
	if got == nil || !bytes.Equal(got, bytesOf(*want)) {
		t.Errorf("line %d: %s is %q, want %q", line, what, got, bytesOf(*want))
	}
}

func (c *corpus) compareTime(t *testing.T, line int, r *Record, want *sent) {
	t.Helper()
	if r.Start != c.start {
		t.Errorf("line %d: start is %v", line, r.Start)
	}
	moment := func(f float64) time.Time { return time.UnixMicro(int64(f * 1e6)) }
	earliest, latest := moment(want.Began).Add(-r.Precision-2*time.Millisecond), moment(want.Ended)
	if r.Start {
		const prompt = 300 * time.Millisecond // for a server to see that a request begins
		if limit := moment(want.Began).Add(prompt); limit.Before(latest) {
			latest = limit
		}
		// One that is reckoned from an end of whole seconds may be half of one off.
		latest = latest.Add(r.Precision / time.Second * (time.Second / 2))
	}
	if r.Time.Before(earliest) || r.Time.After(latest) {
		t.Errorf("line %d: time is %v, want one from %v to %v", line, r.Time, earliest, latest)
	}
	if r.Time.Location() != time.UTC || r.Precision <= 0 {
		t.Errorf("line %d: location %v, precision %v", line, r.Time.Location(), r.Precision)
	}
}

func TestDetectFindsTheFormatOfEachLog(t *testing.T) {
	for _, c := range corpora {
		t.Run(c.file, func(t *testing.T) {
			f, err := Detect(corpusLines(t, c.file))
			if c.format == "" {
				if !errors.Is(err, ErrUndetected) {
					t.Fatalf("got %v and %v, want no format", f, err)
				}
				if strings.Contains(err.Error(), "idsite") {
					t.Error("the error has content of the log")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if f.Name() != c.format {
				t.Errorf("got %s, want %s", f.Name(), c.format)
			}
		})
	}
}
