package config

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseFile(t *testing.T) {
	tests := []struct {
		name, text string
		want       string // entries as name=text@line
		fault      string
	}{
		{"empty is nothing", "", "", ""},
		{"only comments are nothing", "# a\n\n# b\n", "", ""},
		{"dots and nesting are the same", "a.b: 1\nc:\n  d: 10s\n", "a.b=1@1 c.d=10s@3", ""},
		{"value is its text", "a: 0x10\nb: yes\nc: \"2GiB\"\nd: :8443\n", "a=0x10@1 b=yes@2 c=2GiB@3 d=:8443@4", ""},
		{"list is joined", "a: [x, y]\nb:\n  - z\n", "a=x,y@1 b=z@3", ""},
		{"empty value is as if it were not there", "a:\nb: {}\nc: ~\n", "", ""},
		{"name set twice is a fault", "a: 1\na: 2\n", "a=1@1", "f:2): is set twice: first in line 1"},
		{"name set twice by nesting is a fault", "a.b: 1\na: {b: 2}\n", "a.b=1@1", "is set twice"},
		{"list of lists is a fault", "a: [[1]]\n", "", "want a list of plain values"},
		{"alias is a fault", "a: &x 1\nb: *x\n", "a=1@1", "anchors and aliases"},
		{"number as a name is a fault", "1: a\n", "", "want the name of a setting"},
		{"list at the top is a fault", "- a\n", "", "want lines of NAME: VALUE"},
		{"second document is a fault", "a: 1\n---\nb: 2\n", "a=1@1", "want one document"},
		{"no YAML is a fault", "a: [\n", "", "is not YAML"},
		{"deep nesting is a fault", "a: {b: {c: {d: {e: {f: {g: 1}}}}}}\n", "", "want lines of NAME: VALUE"},
		{"control characters are a fault", "a: \x00\n", "", "is not YAML"},
		{"huge file is a fault", strings.Repeat("#", maxFile+1), "", "want at most 1MiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			entries, faults := parseFile("f", []byte(tt.text))
			var got []string
			for _, e := range entries {
				got = append(got, fmt.Sprintf("%s=%s@%d", e.name, e.text, e.line))
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if (tt.fault == "") != (len(faults) == 0) || !strings.Contains(faults.Error(), tt.fault) {
				t.Errorf("faults %v, want %q", faults, tt.fault)
			}
		})
	}
}

func FuzzParseFile(f *testing.F) {
	for _, seed := range []string{"", "a: 1\n", "a: {b: [c, d]}\n", "a: &x [1]\nb: *x\n", "<<: {a: 1}\n", "? [a]\n: b\n", "a: |\n  b\n", "%YAML 1.2\n---\na: !!binary aGk=\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, faults := parseFile("f", data)
		seen := make(map[string]bool)
		for _, e := range entries {
			if e.name == "" && len(faults) == 0 {
				// YAML allows an empty name; it is unknown to everybody later.
				continue
			}
			if seen[e.name] {
				t.Errorf("%q is given twice", e.name)
			}
			seen[e.name] = true
		}
		for _, fault := range faults {
			if strings.ContainsAny(fault.Want, "\n") {
				t.Errorf("fault has more than one line: %q", fault.Want)
			}
		}
	})
}

func FuzzParseByteSize(f *testing.F) {
	for _, seed := range []string{"0", "1B", "2GiB", "1.5 MB", "-1kB", "1e400PiB", "infTB"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		size, err := ParseByteSize(text)
		if err != nil {
			return
		}
		if size < 0 {
			t.Fatalf("%q is %d bytes", text, size)
		}
		again, err := ParseByteSize(size.String())
		if err != nil || again != size {
			t.Errorf("%q is %v, which reads as %v (%v)", text, size, again, err)
		}
	})
}

func TestByteSizeString(t *testing.T) {
	for size, want := range map[ByteSize]string{0: "0", 1: "1B", 1 << 10: "1KiB", 1500: "1500B", 2 << 30: "2GiB", 3 << 50: "3PiB"} {
		if got := size.String(); got != want {
			t.Errorf("%d bytes print as %q, want %q", int64(size), got, want)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"sink.lanes", "listen", "listen-http"}
	for name, want := range map[string]string{"sink.lane": "sink.lanes", "lisen": "listen", "sink_lanes": "sink.lanes", "xyz": "", "a": ""} {
		if got := nearest(name, known); got != want {
			t.Errorf("nearest to %q is %q, want %q", name, got, want)
		}
	}
}
