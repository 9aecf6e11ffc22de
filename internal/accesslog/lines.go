package accesslog

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"iter"
)

// MaxLine is how long a line may be, in bytes without its end.
const MaxLine = 1 << 20

// A Line is one line of an input.
type Line struct {
	Number int64 // from 1
	Offset int64 // of its first byte, in decompressed bytes
	Length int64 // in bytes, without its end
	// Text is the line without its end, whatever its bytes, NULs and invalid UTF-8
	// among them; nil if TooLong. It is valid until the next line.
	Text []byte
	// End is how many bytes end the line: 2 for CR LF, 1 for LF, and 0 for the last
	// line of an input that does not end with one, which may have been cut.
	End     int
	TooLong bool // longer than MaxLine, skipped
}

// Lines gives the lines of r, which need not be buffered. Memory is bounded by MaxLine
// and a buffer, whatever r holds. An error of r other than [io.EOF] comes last, with a
// zero Line, after a last line of what r gave before it; that one has no end and may
// have been cut. Only one goroutine at a time may use it, and only once.
func Lines(r io.Reader) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		s := scanner{r: bufio.NewReaderSize(r, lineBuffer)}
		for {
			line, err := s.next()
			if (line.Length > 0 || line.End > 0) && !yield(line, nil) {
				return
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(Line{}, err)
				return
			}
		}
	}
}

// lineBuffer holds nearly every line, so that it need not be copied.
const lineBuffer = 64 << 10

type scanner struct {
	r      *bufio.Reader
	number int64
	offset int64
	long   []byte // of a line that does not fit into r
}

// next gives a line, which is empty with an End of 0 if there is none. It gives a line
// and an error together when the error ended the line.
func (s *scanner) next() (Line, error) {
	s.number++
	line := Line{Number: s.number, Offset: s.offset}
	raw, err := s.r.ReadSlice('\n')
	length := int64(len(raw))
	if errors.Is(err, bufio.ErrBufferFull) {
		raw, length, err = s.readLong(raw)
	}
	s.offset += length

	switch {
	case bytes.HasSuffix(raw, []byte("\r\n")):
		line.End = 2
	case bytes.HasSuffix(raw, []byte("\n")):
		line.End = 1
	}
	line.Length = length - int64(line.End)
	line.TooLong = line.Length > MaxLine
	if !line.TooLong {
		line.Text = raw[:line.Length]
	}
	return line, err
}

// readLong reads on in a line that begins with head and fills the reader's buffer. It
// gives all of the line if that is no longer than a line may be, and else the last part
// of it, two bytes at least.
func (s *scanner) readLong(head []byte) (raw []byte, length int64, err error) {
	s.long = append(s.long[:0], head...)
	length = int64(len(head))
	for {
		piece, err := s.r.ReadSlice('\n')
		length += int64(len(piece))
		s.long = append(s.long, piece...)
		if len(s.long) > MaxLine+len("\r\n") {
			s.long = append(s.long[:0], s.long[len(s.long)-len("\r\n"):]...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return s.long, length, err
		}
	}
}
