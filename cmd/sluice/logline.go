package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"sluice/internal/accesslog"
)

// byteOrderMark is what some of Windows' programs begin a file with.
var byteOrderMark = []byte("\xef\xbb\xbf")

// A hit from the future would wait until then, and all of its visitor behind it; from
// further back than logOldest Matomo takes it for one of now.
const (
	logAhead  = 10 * time.Minute // clocks differ
	logOldest = 20 * 365 * 24 * time.Hour
)

// line takes in one line.
func (l *logReader) line(ctx context.Context, index int32, f *logFile, line accesslog.Line, r *accesslog.Record) error {
	line.Text = bytes.TrimPrefix(line.Text, byteOrderMark)
	switch {
	case line.TooLong:
		l.tooLong(f, line)
		return nil
	case len(bytes.TrimSpace(line.Text)) == 0:
		l.sum.skip("empty", f, line.Number)
		return nil
	}
	switch err := f.parser.Parse(line.Text, r); {
	case errors.Is(err, accesslog.ErrDirective):
		l.sum.skip("directives", f, line.Number)
		return nil
	case errors.Is(err, accesslog.ErrRequest):
		l.sum.skip("no_request", f, line.Number)
		return nil
	case line.End == 0 && (err != nil || !endsItself(line.Text)):
		l.sum.skip("cut_last_line", f, line.Number) // the server is writing it
		return nil
	case err != nil:
		l.sum.fault("not_parsed", f, line.Number, err.Error())
		return nil
	}
	if why := l.passesOver(r); why != "" {
		l.sum.skip(why, f, line.Number)
		return nil
	}
	if why := wrongTime(r.Time); why != "" {
		l.sum.fault("wrong_time", f, line.Number, why)
		return nil
	}
	f.note(r)
	at := r.Time.UnixNano()
	l.ranges.Add(index, []byte(l.how.server), at)
	if l.sum.From == nil || r.Time.Before(*l.sum.From) {
		l.sum.From = new(r.Time.UTC())
	}
	if l.sum.To == nil || r.Time.After(*l.sum.To) {
		l.sum.To = new(r.Time.UTC())
	}
	// A line means what the directive before it says: that goes with it.
	payload := line.Text
	if d := f.parser.Directive(); d != nil {
		payload = slices.Concat(d, []byte("\n"), line.Text)
	}
	l.kept++
	err := l.sorter.Add(ctx, accesslog.Item{Time: at, File: index, Line: line.Number, Payload: payload})
	if errors.Is(err, accesslog.ErrPayload) {
		l.kept--
		l.tooLong(f, line)
		return nil
	}
	return err
}

// passesOver says why a request is not taken, in a word of logReasons; "" if it is.
func (l *logReader) passesOver(r *accesslog.Record) string {
	switch {
	case !mayTrack(r.Target):
		return "not_tracking"
	case r.Hits >= 0 && r.Status < http.StatusBadRequest:
		// Also with 0 hits: a retry, one that was passed to Matomo, or nothing to be stored.
		return "taken_by_sluice"
	case !l.how.from.IsZero() && (r.Time.Before(l.how.from) || !r.Time.Before(l.how.to)):
		return "outside_window"
	case bytes.Contains(r.Target, []byte("token_auth=***")):
		return "masked_token" // Matomo would count a wrong one
	case l.how.statuses[1] == 0 && redirected(r):
		return "redirected" // and so logged once more, where it led to
	case l.how.statuses[1] != 0 && (r.Status < l.how.statuses[0] || r.Status > l.how.statuses[1]):
		return "other_status"
	}
	return ""
}

// wrongTime says what is wrong with the time of a request; "" if nothing is.
func wrongTime(at time.Time) string {
	switch age := time.Since(at); {
	case age < -logAhead:
		return "its time is in the future"
	case age >= logOldest:
		return "its time is further back than Matomo records"
	}
	return ""
}

// endsItself says whether a line without an end is all there. One that ends with a number
// may have more digits to come, and would be another line then.
func endsItself(line []byte) bool {
	return bytes.HasSuffix(line, []byte(`"`)) || bytes.HasSuffix(line, []byte("}"))
}

// redirected says whether the server sent the client elsewhere with its request. Matomo
// itself does so for redirecturl, and has recorded the hit then.
func redirected(r *accesslog.Record) bool {
	return r.Status >= 300 && r.Status < 400 && r.Status != http.StatusNotModified && !bytes.Contains(r.Target, []byte("redirecturl="))
}

// mayTrack passes over what no tracker could be; what is left the edge judges.
func mayTrack(target []byte) bool {
	path, _, _ := bytes.Cut(target, []byte("?"))
	return bytes.Contains(path, []byte("matomo.php")) || bytes.Contains(path, []byte("piwik.php")) ||
		bytes.Contains(path, []byte("js/")) && !bytes.HasSuffix(path, []byte(".js")) || bytes.IndexByte(path, '%') >= 0
}

func (l *logReader) tooLong(f *logFile, line accesslog.Line) {
	l.sum.fault("too_long", f, line.Number, fmt.Sprintf("the line has %d bytes", line.Length))
}
