package accesslog

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// FuzzParse gives lines to the parser of each format. A line is a record, is to be
// skipped, or has a fault with a place in it.
func FuzzParse(f *testing.F) {
	seen := make(map[string]bool)
	for _, c := range corpora {
		if seen[c.file] {
			continue
		}
		seen[c.file] = true
		for i, line := range corpusLines(f, c.file) {
			if len(line) < 2000 && i < 12 {
				f.Add(line)
			}
		}
	}
	for _, bb := range benchmarks {
		f.Add([]byte(bb.line))
	}
	formats := make([]*Format, 0, len(names)+3)
	for _, name := range names {
		formats = append(formats, named(f, name))
	}
	for _, spec := range []string{nginxCustom, nginxNone, apacheCustom} {
		made, err := of(spec)
		if err != nil {
			f.Fatal(err)
		}
		formats = append(formats, made)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		before := bytes.Clone(line)
		for _, made := range formats {
			p := made.NewParser()
			for _, name := range []string{"iis", "cloudfront"} {
				if made.Name() == name {
					var r Record
					for _, l := range corpusLines(t, name)[:4] {
						_ = p.Parse(l, &r) // for its columns
					}
				}
			}
			checkParse(t, p, line)
		}
		if !bytes.Equal(before, line) {
			t.Error("the line has changed")
		}
	})
}

func checkParse(t *testing.T, p *Parser, line []byte) {
	t.Helper()
	var r Record
	err := p.Parse(line, &r)
	if err == nil {
		if len(r.Target) == 0 || r.Time.Year() < firstYear-1 || r.Time.Year() > lastYear+1 || r.Precision <= 0 {
			t.Errorf("a record without a target or a time: %s", described(&r))
		}
		return
	}
	if errors.Is(err, ErrDirective) || errors.Is(err, ErrEmpty) {
		return
	}
	e, ok := errors.AsType[*ParseError](err)
	if !ok || e.Field == "" || e.Pos < 0 || e.Pos > len(line) {
		t.Errorf("%v of a line of %d bytes", err, len(line))
	}
}

// FuzzSpec makes formats of any text, and reads lines with those that there are.
func FuzzSpec(f *testing.F) {
	for _, spec := range []string{nginxCombined, nginxCustom, nginxNone, nginxJSON, apacheVhost, apacheCustom, specForwarded,
		`$time_iso8601 $uri$is_args$args $upstream_addr`, `%{%d/%b/%Y %T}t.%{msec_frac}t %!200{x}i %^ti %U%q`} {
		f.Add(spec, benchCombined)
	}
	f.Fuzz(func(t *testing.T, spec, line string) {
		for _, make := range []func(string) (*Format, error){Nginx, Apache} {
			made, err := make(spec)
			if err != nil {
				if made != nil || !errors.Is(err, ErrSpec) {
					t.Errorf("got %v and %v", made, err)
				}
				continue
			}
			checkParse(t, made.NewParser(), []byte(line))
		}
	})
}

// asNginx writes a value as ngx_http_log_escape does.
func asNginx(s []byte) string {
	var b strings.Builder
	for _, c := range s {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			fmt.Fprintf(&b, `\x%02X`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// asNginxJSON writes a value as ngx_escape_json does.
func asNginxJSON(s []byte) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteString(`\` + string(rune(c)))
		case strings.IndexByte("\n\r\t\b\f", c) >= 0:
			b.WriteString(`\` + string("nrtbf"[strings.IndexByte("\n\r\t\b\f", c)]))
		case c < ' ':
			fmt.Fprintf(&b, `\u%04X`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// asApache writes a value as ap_escape_logitem does.
func asApache(s []byte) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteString(`\` + string(rune(c)))
		case strings.IndexByte("\b\n\r\t\v", c) >= 0:
			b.WriteString(`\` + string("bnrtv"[strings.IndexByte("\b\n\r\t\v", c)]))
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// FuzzRoundTrip writes requests as nginx and Apache log them. What is read must be what
// was written.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("a=1&b=%22"), []byte(benchAgent), []byte("https://example.org/"), uint32(1795869952))
	f.Add([]byte("q=\"x\"\\\\x22\\"), []byte("\\\" \x00\x01\x7f\xff\" \"-"), []byte("-"), uint32(1e9))
	f.Add([]byte("q=\\"), []byte("\\"), []byte(""), uint32(1e9))
	f.Add([]byte("#?\\\\"), []byte("\n\b\f\r\v\t"), []byte("\""), uint32(1e9))
	f.Fuzz(func(t *testing.T, query, agent, referer []byte, sec uint32) {
		if sec < firstSecond {
			return
		}
		target := append([]byte("/matomo.php?"), query...)
		request := append(append([]byte("GET "), target...), " HTTP/1.1"...)
		at := time.Unix(int64(sec), 0).In(time.FixedZone("", -12600))
		variants := []struct {
			name, format, spec string
			write              func([]byte) string
		}{
			{"nginx as combined", "combined", "", asNginx},
			{"Apache as combined", "combined", "", asApache},
			{"nginx", "", nginxCombined, asNginx},
			{"Apache", "", specCombined, asApache},
			{"nginx JSON", "", "escape=json " + nginxCombined, asNginxJSON},
			{"nginx JSON objects", "nginx-json", "", asNginxJSON},
			{"objects without escape=json", "nginx-json", "", asNginx},
		}
		for _, v := range variants {
			made, err := Named(v.format)
			if v.spec != "" {
				made, err = of(v.spec)
			}
			if err != nil {
				t.Fatal(err)
			}
			line := fmt.Sprintf(`192.0.2.7 - - [%s] "%s" 200 43 "%s" "%s"`, at.Format(commonLayout), v.write(request), v.write(referer), v.write(agent))
			if v.format == "nginx-json" {
				line = fmt.Sprintf(`{"time":"%s","request":"%s","http_referer":"%s","http_user_agent":"%s"}`, at.Format(time.RFC3339), v.write(request), v.write(referer), v.write(agent))
			}
			var r Record
			if err := made.NewParser().Parse([]byte(line), &r); err != nil {
				t.Errorf("%s: %v", v.name, err)
				continue
			}
			if !bytes.Equal(r.Target, target) || !r.Time.Equal(at) {
				t.Errorf("%s: got %q at %v, want %q at %v", v.name, r.Target, r.Time, target, at)
			}
			for name, want := range map[string][]byte{"user-agent": agent, "referer": referer} {
				got, logged := r.Header(name)
				if string(want) == "-" && v.name != "nginx JSON" {
					want = nil
				}
				if !logged || !bytes.Equal(got, want) {
					t.Errorf("%s: %s is %q, want %q", v.name, name, got, want)
				}
			}
		}
	})
}
