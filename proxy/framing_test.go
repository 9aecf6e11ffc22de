package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestFramingInPieces shows that it does not matter in which pieces requests come.
func TestFramingInPieces(t *testing.T) {
	good := get("/a") + post("/b", "GET / HTTP/1.1\nTransfer-Encoding: x\n") + "\r\n" + post("/c", "") + get("/d", "Transfer: x")
	bad := good + "POST /e HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"
	for size := 1; size < len(bad); size++ {
		f, taken := framing{}, 0
		for piece := range chunksOf(bad+"\r\n\r\n", size) {
			n := f.follow([]byte(piece))
			if taken += n; n < len(piece) {
				break
			}
		}
		if taken != len(bad)+1 || f.refused != "length_and_encoding" {
			t.Fatalf("in pieces of %d: %d bytes are taken and then %q, want %d", size, taken, f.refused, len(bad)+1)
		}
	}
}

func chunksOf(s string, size int) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for len(s) > 0 {
			n := min(size, len(s))
			if !yield(s[:n]) {
				return
			}
			s = s[n:]
		}
	}
}

// FuzzFraming gives any bytes to the framing and to net/http's parser: of what the one
// takes, the other finds the same requests, and none has two statements of its length.
func FuzzFraming(f *testing.F) {
	for _, tt := range badInputs {
		f.Add([]byte(tt.raw))
	}
	f.Add([]byte(get("/a") + post("/b", "xyz") + get("/c")))
	f.Fuzz(func(t *testing.T, b []byte) {
		var whole, byByte framing
		n := whole.follow(b)
		at := 0
		for at < len(b) && byByte.follow(b[at:at+1]) == 1 {
			at++
		}
		if at != n || whole.refused != byByte.refused {
			t.Fatalf("%d bytes and %q at once, %d and %q one by one", n, whole.refused, at, byByte.refused)
		}
		source := bytes.NewReader(b[:n])
		reader := bufio.NewReader(source)
		for {
			start := len(b[:n]) - source.Len() - reader.Buffered()
			req, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			head := len(b[:n]) - source.Len() - reader.Buffered()
			text := strings.ToLower("\n" + string(b[start:head]))
			lengths, codings := strings.Count(text, "\ncontent-length:"), strings.Count(text, "\ntransfer-encoding:")
			if lengths > 1 || lengths > 0 && codings > 0 {
				t.Fatalf("taken with %d lengths and %d codings: %q", lengths, codings, text)
			}
			if codings > 0 || req.Header["Upgrade"] != nil {
				return // the connection ends with this request
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
		}
	})
}
