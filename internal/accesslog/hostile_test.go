package accesslog

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestLongLinesTakeNoLongerThanTheirLength(t *testing.T) {
	request := `{"ts":1795870295.3,"request":{"method":"GET","uri":"/","headers":{`
	fill := func(before, piece, after string) []byte {
		return []byte(before + strings.Repeat(piece, (MaxLength-len(before)-len(after))/len(piece)) + after)
	}
	lines := [][]byte{
		fill(`192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET /`, `\"`, ` HTTP/1.1" 200 1 "-" "-"`),
		fill(`192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET /`, `\`, `" HTTP/1.1" 200 1 "-" "-"`),
		fill(`192.0.2.7 - `, ` [`, ``),
		fill(`192.0.2.7:1 `, `[28/Nov/2026:12:45:52.001] `, ``),
		fill(`192.0.2.7:1 [28/Nov/2026:12:45:52.001] f b/s 0/0/0/0/0 200 `, `#22`, ``),
		fill(`2026-11-28T12:45:52+00:00|0.001|192.0.2.7|GET /`, `|`, ``),
		fill(``, `, `, ``), fill(``, ` : `, ``), fill(``, `"`, ``), fill(``, `{"a":`, ``), fill(``, "2026-11-28 ", ``), fill(``, "\t", ``),
		fill(request+`"A":["`, `x","`, `"]}}}`),
		fill(request+`"A":["`, `\"","`, `"]}}}`),
		fill(request, `"A":["x"],`, `"B":[]}}}`),
		fill(request+`"`, `A`, `":["x"]}}}`),
		fill(`{"`, `headers.`, `":{"a":1,"b":2}}`),
		fill(`{"time":"2026-11-28T12:45:52Z","request":"GET /`, `\u0041`, ` HTTP/1.1"}`),
		fill("", "1", ""),
	}
	formats := []*Format{}
	for _, name := range Names() {
		formats = append(formats, named(t, name))
	}
	for _, spec := range []string{nginxNone, nginxCustom, apacheCustom, `$upstream_addr $msec $request_uri`} {
		f, err := of(spec)
		if err != nil {
			t.Fatal(err)
		}
		formats = append(formats, f)
	}
	const most = 2 * time.Second // a thousand times what is needed, on a machine that is busy
	var r Record
	for _, f := range formats {
		for i, line := range lines {
			p := f.NewParser()
			if f.Name() == "iis" || f.Name() == "cloudfront" {
				_ = p.Parse([]byte("#Fields: date time cs-uri-stem"), &r)
			}
			began := time.Now()
			err := p.Parse(line, &r)
			if took := time.Since(began); took > most {
				t.Errorf("%s took %v for line %d", f.Name(), took, i)
			}
			if err == nil && !bytes.HasPrefix(r.Target, []byte("/")) {
				t.Errorf("%s: line %d has the target %.20q", f.Name(), i, r.Target)
			}
		}
	}
}

func TestACutLineIsNoRecordOfAnotherRequest(t *testing.T) {
	for _, c := range corpora {
		t.Run(c.file+" "+c.format, func(t *testing.T) {
			p := c.made(t).NewParser()
			var whole, cut Record
			for i, line := range corpusLines(t, c.file) {
				line = bytes.TrimRight(line, "\r\n")
				if p.Parse(line, &whole) != nil || len(line) > 2000 {
					continue
				}
				for n := range line {
					if p.Parse(line[:n], &cut) == nil && !bytes.Equal(cut.Target, whole.Target) {
						t.Fatalf("line %d, cut to %d bytes, has the target %q, want %q", i+1, n, cut.Target, whole.Target)
					}
				}
			}
		})
	}
}

func TestManyValuesOfAHeaderMakeARecordInexact(t *testing.T) {
	line := `{"ts":1795870295.3,"request":{"method":"GET","uri":"/","headers":{"A":["x"` + strings.Repeat(`,"y"`, maxJoined) + `],"B":["z","z"]}}}`
	var r Record
	p := named(t, "caddy").NewParser()
	if err := p.Parse([]byte(line), &r); err != nil || r.Inexact {
		t.Fatalf("got %v, inexact %v", err, r.Inexact)
	}
	if err := p.Parse([]byte(strings.Replace(line, `"x"`, `"x","x"`, 1)), &r); err != nil || !r.Inexact {
		t.Fatalf("got %v, inexact %v", err, r.Inexact)
	}
}
