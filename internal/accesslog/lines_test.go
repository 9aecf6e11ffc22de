package accesslog

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

func TestLines(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	tests := []struct {
		name, input string
		want        []Line // Text apart
		text        []string
	}{
		{"nothing", "", nil, nil},
		{"one", "a\n", []Line{{1, 0, 1, nil, 1, false}}, []string{"a"}},
		{"cut", "a\nbc", []Line{{1, 0, 1, nil, 1, false}, {2, 2, 2, nil, 0, false}}, []string{"a", "bc"}},
		{"CR LF", "a\r\n\r\nb\n", []Line{{1, 0, 1, nil, 2, false}, {2, 3, 0, nil, 2, false}, {3, 5, 1, nil, 1, false}}, []string{"a", "", "b"}},
		{"CR elsewhere", "\ra\r\r\nb\r", []Line{{1, 0, 3, nil, 2, false}, {2, 5, 2, nil, 0, false}}, []string{"\ra\r", "b\r"}},
		{"empty", "\n\n", []Line{{1, 0, 0, nil, 1, false}, {2, 1, 0, nil, 1, false}}, []string{"", ""}},
		{"NUL and no UTF-8", "\x00\xff\n\x00", []Line{{1, 0, 2, nil, 1, false}, {2, 3, 1, nil, 0, false}}, []string{"\x00\xff", "\x00"}},
		{"longest", long + "\n" + long + "\r\n" + long, []Line{{1, 0, MaxLine, nil, 1, false}, {2, MaxLine + 1, MaxLine, nil, 2, false}, {3, 2*MaxLine + 3, MaxLine, nil, 0, false}}, []string{long, long, long}},
		{"too long", long + "x\na\n" + long + "y\r\n" + long + "z", []Line{
			{1, 0, MaxLine + 1, nil, 1, true},
			{2, MaxLine + 2, 1, nil, 1, false},
			{3, MaxLine + 4, MaxLine + 1, nil, 2, true},
			{4, 2*MaxLine + 7, MaxLine + 1, nil, 0, true},
		}, []string{"", "a", "", ""}},
		{"much too long", strings.Repeat(long, 3) + "\r\nb", []Line{{1, 0, 3 * MaxLine, nil, 2, true}, {2, 3*MaxLine + 2, 1, nil, 0, false}}, []string{"", "b"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			for got, err := range Lines(strings.NewReader(tt.input)) {
				if err != nil {
					t.Fatal(err)
				}
				if n >= len(tt.want) {
					t.Fatalf("line %d, want %d lines", n+1, len(tt.want))
				}
				text, w := string(got.Text), tt.want[n]
				if got.Number != w.Number || got.Offset != w.Offset || got.Length != w.Length || got.End != w.End || got.TooLong != w.TooLong || text != tt.text[n] {
					t.Errorf("line %d: %d %d %d %d %v %.10q, want %+v", n, got.Number, got.Offset, got.Length, got.End, got.TooLong, text, w)
				}
				n++
			}
			if n != len(tt.want) {
				t.Errorf("%d lines, want %d", n, len(tt.want))
			}
		})
	}
}

func TestLinesEndWithTheReadersError(t *testing.T) {
	fault := errors.New("disk fault")
	for _, input := range []string{"", "a\n", "a\nb"} {
		var got strings.Builder
		var last error
		for line, err := range Lines(io.MultiReader(strings.NewReader(input), iotest.ErrReader(fault))) {
			if last != nil {
				t.Error("a line after the error")
			}
			got.Write(line.Text)
			got.WriteString("\n"[:min(1, line.End)])
			last = err
		}
		if got.String() != input || last != fault {
			t.Errorf("%q: got %q, %v", input, got.String(), last)
		}
	}
}

// endless is a line without an end, of so many bytes.
type endless struct{ left int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), e.left))
	e.left -= int64(n)
	clear(p[:n])
	return n, nil
}

func TestLinesSkipLongLinesInBoundedMemory(t *testing.T) {
	const length = 300 << 20
	runtime.GC()
	before := heapBytes()
	for line, err := range Lines(&endless{length}) {
		if err != nil || !line.TooLong || line.Length != length || line.End != 0 || line.Text != nil {
			t.Errorf("%+v, %v", line, err)
		}
	}
	const bound = 6 << 20
	if grown := int64(heapBytes()) - int64(before); grown > bound {
		t.Errorf("heap grew by %d bytes", grown)
	}
}

// FuzzLines checks that the lines, put together again, are the input.
func FuzzLines(f *testing.F) {
	for _, s := range []string{"", "a", "a\n", "a\r\n\r\n\n\r", "\x00\xff\n", "a\nb\r"} {
		f.Add([]byte(s), uint32(0), true)
	}
	f.Add([]byte("a\r\nb"), uint32(MaxLine-1), false)
	f.Add([]byte("ab\nc"), uint32(MaxLine), true)
	f.Add([]byte("\r\nb"), uint32(lineBuffer-1), true)
	f.Fuzz(func(t *testing.T, input []byte, stretch uint32, byByte bool) {
		// One line in the middle is stretched, up to twice what is allowed.
		filler := bytes.Repeat([]byte{'x'}, int(stretch%(2*MaxLine)))
		half := len(input) / 2
		input = bytes.Join([][]byte{input[:half], filler, input[half:]}, nil)
		var r io.Reader = bytes.NewReader(input)
		if byByte {
			r = iotest.HalfReader(r)
		}
		offset, number := int64(0), int64(0)
		ended := false
		for line, err := range Lines(r) {
			if err != nil {
				t.Fatal(err)
			}
			if number++; ended || line.Number != number || line.Offset != offset {
				t.Fatalf("line %d at %d is said to be %d at %d", number, offset, line.Number, line.Offset)
			}
			raw := input[offset:][:line.Length+int64(line.End)]
			content, end := raw[:line.Length], string(raw[line.Length:])
			if end != "" && end != "\n" && end != "\r\n" || end == "\n" && bytes.HasSuffix(content, []byte("\r")) || bytes.IndexByte(content, '\n') >= 0 {
				t.Fatalf("line %d is %.50q with end %q", number, content, end)
			}
			if line.TooLong != (line.Length > MaxLine) || !line.TooLong && !bytes.Equal(line.Text, content) || line.TooLong && line.Text != nil {
				t.Fatalf("line %d: text of %d bytes for %d", number, len(line.Text), line.Length)
			}
			ended = line.End == 0
			offset += int64(len(raw))
		}
		if offset != int64(len(input)) {
			t.Fatalf("%d bytes, want %d", offset, len(input))
		}
	})
}
