package proxy

import (
	"bytes"
	"net/http"
	"strconv"
	"time"
)

// A Header is one header of answers.
type Header struct{ Name, Value string }

// A headerSet is headers that all answers of one kind of listener have, besides their
// own. It never changes.
type headerSet struct {
	fields []Header // names as net/http spells them
	wire   []byte   // the same as lines, each with its line end
}

// headerSets renders the headers for plain answers and for those over TLS, nil where
// there are none.
func headerSets(fields []Header, hsts time.Duration) (plain, secure *headerSet) {
	plain = newHeaderSet(fields)
	if hsts == 0 {
		return plain, plain
	}
	age := "max-age=" + strconv.FormatInt(int64(hsts/time.Second), 10)
	return plain, newHeaderSet(append(fields[:len(fields):len(fields)], Header{"Strict-Transport-Security", age}))
}

func newHeaderSet(fields []Header) *headerSet {
	if len(fields) == 0 {
		return nil
	}
	s := &headerSet{}
	for _, h := range fields {
		h.Name = http.CanonicalHeaderKey(h.Name)
		s.fields = append(s.fields, h)
		s.wire = append(append(append(append(s.wire, h.Name...), ": "...), h.Value...), "\r\n"...)
	}
	return s
}

// extra gives the headers of answers that go out over TLS or in the clear.
func (v *tuned) extra(https bool) *headerSet {
	if https {
		return v.secure
	}
	return v.plain
}

// lines gives the headers as they stand in HTTP/1.1.
func (s *headerSet) lines() []byte {
	if s == nil {
		return nil
	}
	return s.wire
}

// policy is the header of which a file of ours keeps its own: browsers obey both.
const policy = "content-security-policy"

// replaces says whether a header gives way to one of the set. File says that the answer
// is one of Matomo's files from our copies.
func (s *headerSet) replaces(name []byte, file bool) bool {
	if s == nil || file && is(name, policy) {
		return false
	}
	for _, h := range s.fields {
		if len(h.Name) == len(name) && bytes.EqualFold([]byte(h.Name), name) {
			return true
		}
	}
	return false
}

// apply sets the headers of an answer through net/http.
func (s *headerSet) apply(h http.Header, file bool) {
	if s == nil {
		return
	}
	for _, f := range s.fields {
		if file && is(f.Name, policy) {
			h[f.Name] = append(h[f.Name], f.Value)
			continue
		}
		h[f.Name] = []string{f.Value}
	}
}

// spliced appends to b the head of a file's answer with the headers of the set, and
// gives the body apart, so that it is not copied.
func (s *headerSet) spliced(b, answer []byte) (head, body []byte) {
	end := bytes.Index(answer, []byte("\r\n\r\n")) + len("\r\n")
	for line := range bytes.SplitAfterSeq(answer[:end], []byte("\n")) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		if !s.replaces(name, true) {
			b = append(b, line...)
		}
	}
	b = append(append(b, s.wire...), "\r\n"...)
	return b, answer[end+len("\r\n"):]
}

// validHeader says whether a header can be written as it is.
func validHeader(h Header) bool {
	for i := range len(h.Name) {
		if !tokenByte[h.Name[i]] {
			return false
		}
	}
	for i := range len(h.Value) {
		if !valueByte[h.Value[i]] {
			return false
		}
	}
	return h.Name != ""
}
