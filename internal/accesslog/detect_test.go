package accesslog

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func repeated(n int, line string) [][]byte { return slices.Repeat([][]byte{[]byte(line)}, n) }

func TestDetectWantsNineOfTenLines(t *testing.T) {
	common := `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET / HTTP/1.1" 200 1`
	tls := strings.Replace(common, "GET / HTTP/1.1", `\x16\x03\x01`, 1)
	tests := []struct {
		name   string
		sample [][]byte
		want   string
	}{
		{"nothing", nil, ""},
		{"empty lines and directives", [][]byte{[]byte("\n"), []byte("#Version: 1.0\n"), nil}, ""},
		{"all", repeated(3, common), "common"},
		{"a cut line of ten", append(repeated(9, common), []byte(common[:30])), "common"},
		{"two cut lines of ten", append(repeated(8, common), repeated(2, common[:30])...), ""},
		{"a change of formats after one of ten", append(repeated(1, common), repeated(9, benchCombined)...), "combined"},
		{"a change of formats half way", append(repeated(5, common), repeated(5, benchCombined)...), ""},
		{"few requests among garbage", append(repeated(5, tls), repeated(6, common)...), "common"},
		{"nothing but garbage", repeated(5, tls), ""},
		{"empty lines between", append(repeated(9, ""), repeated(3, common)...), "common"},
		{"binary garbage", repeated(3, "\x00\x01\xff"), ""},
		{"what a power failure left of a short log", append(repeated(3, common), []byte("\x00\x00\x00"+common)), "common"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Detect(tt.sample)
			if tt.want == "" {
				if !errors.Is(err, ErrUndetected) || f != nil {
					t.Fatalf("got %v and %v, want no format", f, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if f.Name() != tt.want {
				t.Errorf("got %s, want %s", f.Name(), tt.want)
			}
		})
	}
}

func TestDetectTellsWhatALogHolds(t *testing.T) {
	tests := []struct {
		name         string
		sample       [][]byte
		headers      string
		start, zoned bool
		body         bool
	}{
		{"nginx's JSON", corpusLines(t, "nginx-json"), "referer user-agent x-forwarded-for accept-language", true, true, true},
		{"JSON with less", repeated(2, benchmarks[2].line), "user-agent", true, true, false},
		{"JSON without a zone", repeated(2, `{"time":"2026-11-28T12:45:52","request":"GET / HTTP/1.1"}`), "", false, false, false},
		{"Caddy", corpusLines(t, "caddy-json"), "referer x-forwarded-for accept-language connection user-agent", true, true, false},
		{"HAProxy", corpusLines(t, "haproxy"), "", true, false, false},
		{"IIS", corpusLines(t, "iis"), "user-agent referer", true, true, false},
		{"CloudFront", corpusLines(t, "cloudfront"), "referer user-agent cookie x-forwarded-for", true, true, false},
		{"combined", repeated(2, benchCombined), "referer user-agent", false, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Detect(tt.sample)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(f.Headers(), " "); got != tt.headers || f.Start() != tt.start || f.Zoned() != tt.zoned || f.Body() != tt.body {
				t.Errorf("headers %q, start %v, zoned %v, body %v", got, f.Start(), f.Zoned(), f.Body())
			}
		})
	}
}

// TestDetectTellsWhatIsWrong: one short sentence, and nothing of the log in it.
func TestDetectTellsWhatIsWrong(t *testing.T) {
	common := `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET / HTTP/1.1" 200 1`
	tls := strings.Replace(common, "GET / HTTP/1.1", `\x16\x03\x01`, 1)
	for _, tt := range []struct {
		sample [][]byte
		want   string
	}{
		{repeated(2, "#Version: 1.0"), "there are no lines"},
		{repeated(2, "\x00"), "no line could be of any, the first because of line at byte 0: a NUL byte"},
		{repeated(2, "secret"), "none of the first 2 lines is in any"},
		{repeated(2, tls), "of the first 2 lines 2 have no request"},
		{append(repeated(2, common), repeated(3, "secret")...), "the nearest is common with 2 of the first 5 lines, and of the others the first has %h at byte 6: the line ends early"},
	} {
		_, err := Detect(tt.sample)
		if err == nil || err.Error() != ErrUndetected.Error()+": "+tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

func TestTimesAreThoseOfTheStandardLibrary(t *testing.T) {
	var c commonTime
	for day := time.Date(firstYear, 1, 1, 0, 0, 0, 0, time.UTC); day.Year() <= lastYear; day = day.Add(23*time.Hour + 59*time.Minute + 7*time.Second) {
		local := day.In(time.FixedZone("", (day.Day()-15)*1800))
		if _, offset := local.Zone(); offset > 14*3600 || local.Year() < firstYear || local.Year() > lastYear {
			continue
		}
		text := local.Format(commonLayout)
		for range 2 { // once from what it keeps
			if sec, err := c.read([]byte(text)); err != nil || sec != day.Unix() {
				t.Fatalf("%s is %d and %v, want %d", text, sec, err, day.Unix())
			}
		}
		var s stamp
		if err := s.readAny([]byte(local.Format(time.RFC3339)), &c); err != nil {
			t.Fatal(err)
		}
		if got, _, err := s.at(nil); err != nil || !got.Equal(day) {
			t.Fatalf("%s is %v and %v", text, got, err)
		}
	}
}

func TestATimeThatClocksShowTwiceIsTheFirst(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err)
	}
	f := named(t, "haproxy").In(berlin)
	var r Record
	line := `192.0.2.7:1 [25/Oct/2026:02:30:00.000] f b/s 0/0/0/0/0 200 1 - - ---- 1/1/0/0/0 0/0 "GET / HTTP/1.1"`
	if err := f.NewParser().Parse([]byte(line), &r); err != nil {
		t.Fatal(err)
	}
	if want := time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC); !r.Time.Equal(want) {
		t.Errorf("got %v, want %v", r.Time, want)
	}
}
