package proxy

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The bodies of the tracker. info is what Matomo prints when it has tracked
// nothing (core/Tracker/Response.php, unchanged since 4.0).
const (
	gif = "GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00!\xf9\x04\x01\x00\x00\x00\x00" +
		",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
	info = "This resource is part of Matomo. Keep full control of your data with the leading free and open source " +
		"<a href='https://matomo.org' target='_blank' rel='noopener noreferrer nofollow'>web analytics & conversion optimisation platform</a>.<br>\n" +
		"This file is the endpoint for the Matomo tracking API. If you want to access the Matomo UI or use the Reporting API, " +
		"please use <a href='index.php'>index.php</a> instead.\n"
	unavailable = "The hit could not be stored. Try again later.\n"
	tooLarge    = "The request is too large.\n"
	badBody     = "The request's body could not be read.\n"
	tooManyHits = "Too many hits at once; this one was not stored. Try again later.\n"
	timedOut    = "The request's body took too long.\n"

	tooManyRequests = "Too many requests at once. Try again later.\n"
)

// The content types of the tracker, in Matomo's spelling of the header's name.
const (
	typeGIF  = "Content-Type: image/gif"
	typeHTML = "Content-type: text/html; charset=UTF-8" // what PHP sends by itself
	typeJSON = "Content-Type: application/json"
	typeText = "Content-Type: text/plain; charset=utf-8"
)

// An answer is what a tracking request is answered with.
type answer struct {
	status      int
	contentType string
	bodies      [2]string // written one behind the other
	bulk        bool      // the body is the JSON of a bulk, from tracked and invalid
	tracked     int
	invalid     int

	noStore   bool // Cache-Control: no-store
	cors      bool // the two lines that Matomo sends for every method but GET
	preflight bool // the three lines of a preflight
	wait      int  // seconds of Retry-After; 0 is none
	close     bool // the connection must end: its input is not at a request's begin

	// cookies are further header lines, each with its line end.
	cookies []byte

	extra *headerSet // further headers; the way through net/http has them by itself

	relayed *relay // Matomo's own answer, instead of all the above
}

// success is the answer to a request whose hit was recorded or is left out.
func success(get, image bool) answer {
	a := answer{status: http.StatusOK, noStore: get, cors: !get}
	if !image {
		a.status, a.contentType = http.StatusNoContent, typeHTML
		return a
	}
	a.contentType, a.bodies[0] = typeGIF, gif
	return a
}

// refusal is the answer to a hit that Matomo would not take: it prints the image
// first and then, as nothing was tracked, the page.
func refusal(get, image bool) answer {
	a := answer{status: http.StatusBadRequest, noStore: get, cors: !get}
	if !image {
		a.contentType, a.bodies[0] = typeHTML, info
		return a
	}
	a.contentType, a.bodies = typeGIF, [2]string{gif, info}
	return a
}

// nothing is the answer to a request without parameters.
func nothing(get bool) answer {
	a := answer{status: http.StatusOK, contentType: typeHTML, bodies: [2]string{info}, cors: !get}
	if !get {
		a.status = http.StatusBadRequest
	}
	return a
}

// preflight is the answer to a browser's question before a request.
func preflight() answer {
	return answer{status: http.StatusNoContent, contentType: typeHTML, preflight: true}
}

// bulkAnswer is the answer to a bulk. Whether the indices of invalid hits would
// be told depends on the token, which cannot be judged here: they are left out,
// as for any token but a superuser's.
func bulkAnswer(get, body bool, tracked, invalid int) answer {
	a := answer{status: http.StatusOK, contentType: typeJSON, bulk: body, tracked: tracked, invalid: invalid, cors: !get}
	if !body {
		a.status = http.StatusNoContent
	}
	return a
}

// bulkFailure is the answer to a bulk that Matomo refuses as a whole, whatever its
// send_image says.
func bulkFailure(get bool, status int) answer {
	return answer{status: status, contentType: typeJSON, bodies: [2]string{`{"status":"error","tracked":0,"invalid":0}`}, cors: !get}
}

// fault is an answer of the edge itself.
func fault(status int, text string, get bool) answer {
	a := answer{status: status, contentType: typeText, bodies: [2]string{text}, noStore: true, cors: !get}
	if status == http.StatusServiceUnavailable {
		a.wait = retryAfterSeconds
	}
	return a
}

// retryAfterSeconds is what a client is asked to wait when its hit could not be
// stored.
const retryAfterSeconds = 5

// appendHeaders appends the answer's own header lines, each with its line end:
// all but Content-Length, Date and Connection.
func (a *answer) appendHeaders(b []byte, origin []byte) []byte {
	b = append(append(b, a.contentType...), "\r\n"...)
	b = append(b, a.cookies...)
	if a.noStore {
		b = append(b, "Cache-Control: no-store\r\n"...)
	}
	if a.wait > 0 {
		b = strconv.AppendInt(append(b, "Retry-After: "...), int64(a.wait), 10)
		b = append(b, "\r\n"...)
	}
	if a.cors {
		b = append(b, "Access-Control-Allow-Origin: "...)
		if origin == nil {
			b = append(b, '*')
		} else {
			b = append(b, origin...)
		}
		b = append(b, "\r\nAccess-Control-Allow-Credentials: true\r\n"...)
	}
	if a.preflight {
		b = append(b, "Access-Control-Allow-Methods: GET, POST\r\n"+
			"Access-Control-Allow-Headers: *\r\nAccess-Control-Allow-Origin: *\r\n"...)
	}
	return b
}

// appendBody appends the body.
func (a *answer) appendBody(b []byte) []byte {
	if a.bulk {
		b = append(b, `{"status":"success","tracked":`...)
		b = strconv.AppendInt(b, int64(a.tracked), 10)
		b = append(b, `,"invalid":`...)
		b = strconv.AppendInt(b, int64(a.invalid), 10)
		return append(b, '}')
	}
	b = append(b, a.bodies[0]...)
	return append(b, a.bodies[1]...)
}

// maxCountDigits bounds the counts of a bulk's answer.
const maxCountDigits = 20

func (a *answer) bodyLen() int {
	if a.bulk {
		var digits [maxCountDigits]byte
		return len(`{"status":"success","tracked":,"invalid":}`) +
			len(strconv.AppendInt(digits[:0], int64(a.tracked), 10)) +
			len(strconv.AppendInt(digits[:0], int64(a.invalid), 10))
	}
	return len(a.bodies[0]) + len(a.bodies[1])
}

// statusLines are the first lines of the answers that the fast path gives.
var statusLines = map[int]string{
	http.StatusOK:         "HTTP/1.1 200 OK\r\n",
	http.StatusNoContent:  "HTTP/1.1 204 No Content\r\n",
	http.StatusBadRequest: "HTTP/1.1 400 Bad Request\r\n",
}

// append appends the whole answer as HTTP/1.1 has it.
func (a *answer) append(b []byte, origin []byte, date []byte, last bool) []byte {
	if a.relayed != nil {
		return a.relayed.append(b, date, last, a.extra)
	}
	b = appendStatusLine(b, a.status)
	b = append(a.appendHeaders(b, origin), a.extra.lines()...)
	if a.status != http.StatusNoContent {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(a.bodyLen()), 10)
		b = append(b, "\r\n"...)
	}
	b = append(append(append(b, "Date: "...), date...), "\r\n"...)
	if last || a.close {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, "\r\n"...)
	return a.appendBody(b)
}

func appendStatusLine(b []byte, status int) []byte {
	if line, ok := statusLines[status]; ok {
		return append(b, line...)
	}
	b = strconv.AppendInt(append(b, "HTTP/1.1 "...), int64(status), 10)
	return append(append(append(b, ' '), http.StatusText(status)...), "\r\n"...)
}

// write sends the answer through net/http, with the same headers in the same
// spelling.
func (a *answer) write(w http.ResponseWriter, origin []byte, last bool) {
	if a.relayed != nil {
		a.relayed.write(w)
		return
	}
	h := w.Header()
	// A nil value keeps net/http from adding a line of its own when the spelling
	// is not the one that it looks for.
	h["Content-Type"] = nil
	for line := range strings.SplitSeq(string(a.appendHeaders(nil, origin)), "\r\n") {
		if name, value, ok := strings.Cut(line, ": "); ok {
			h[name] = append(h[name], value) // a bulk sets a cookie for each hit
		}
	}
	if a.status != http.StatusNoContent {
		h["Content-Length"] = []string{strconv.Itoa(a.bodyLen())}
	}
	if last || a.close {
		h["Connection"] = []string{"close"}
	}
	w.WriteHeader(a.status)
	if a.status != http.StatusNoContent {
		// The client is gone if this fails; its hit is stored.
		_, _ = w.Write(a.appendBody(nil))
	}
}

// appendDate appends a time as HTTP has it.
func appendDate(b []byte, t time.Time) []byte { return t.UTC().AppendFormat(b, http.TimeFormat) }
