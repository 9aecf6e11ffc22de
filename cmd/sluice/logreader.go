package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sluice/internal/accesslog"
	"sluice/internal/admin"
)

// A file's format is found by its first lines.
const (
	logSample      = 500
	logSampleBytes = 4 << 20
)

// A logReader reads access logs, puts their lines in order, and gives what may track.
type logReader struct {
	how    logReading
	sorter *accesslog.Sorter
	ranges accesslog.Ranges
	files  []*logFile
	kept   int64 // lines that were given to it
	sum    *logSum

	progress *logProgress
	phase    *logPhase // that it is in
}

// logReading says how logs are read.
type logReading struct {
	format   *accesslog.Format // nil: found for each file
	zone     *time.Location    // of times that do not say theirs; nil: not known
	server   string
	sites    admin.SiteRanges
	from, to time.Time // zero: any
	statuses [2]int    // zero: any
}

// A logFile is one of the files that are read.
type logFile struct {
	name   string
	server string // whose log it is
	format *accesslog.Format
	parser *accesslog.Parser
	header []string // the names of headers that are asked for
	fields []byte   // the directive that was in force last: a parser that goes back needs it

	noted int    // of the tracking requests
	held  []bool // by them, in the order of logLacks
}

// read takes in all files. An error ends the import; what is wrong with a file or a line
// is counted.
func (l *logReader) read(ctx context.Context, arguments []string) error {
	paths, repeats, problems := accesslog.Expand(arguments)
	for _, p := range problems {
		l.unreadable(l.open(p.Name), p.Err)
	}
	for _, r := range repeats {
		l.sum.skip("named_twice", l.open(r.Name), 0)
		l.progress.say(fmt.Sprintf("%s is %s and is read once", printable(r.Name), printable(r.Of)))
	}
	var total int64
	for _, p := range paths {
		if p.Size < 0 {
			total = 0
			break
		}
		total += p.Size
	}
	l.phase = l.progress.begin("reading", total)
	var before int64
	for _, p := range paths {
		if err := l.file(ctx, p, before); err != nil {
			return err
		}
		before += max(p.Size, 0)
		l.phase.done.Store(before)
	}
	return nil
}

// open begins with a file. Without --server each log is taken for a server's own.
func (l *logReader) open(name string) *logFile {
	return &logFile{name: name, server: cmp.Or(l.how.server, accesslog.LogOf(name)), format: l.how.format}
}

func (l *logReader) unreadable(f *logFile, err error) {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err // the file is named beside it
	}
	l.sum.fault("unreadable", f, 0, err.Error())
}

// file takes in a file, behind others of so many bytes.
func (l *logReader) file(ctx context.Context, p accesslog.Path, before int64) error {
	f := l.open(p.Name)
	in, err := p.Open()
	if err != nil {
		l.unreadable(f, err)
		return nil
	}
	defer in.Close()
	index := int32(len(l.files))
	next, stop := iter.Pull2(accesslog.Lines(in))
	defer stop()
	sample, more, ended := l.begin(f, next)
	if f.format == nil {
		return nil
	}
	f.parser = f.format.NewParser()
	f.header = slices.Compact(slices.Sorted(slices.Values(append(f.format.Headers(), logHeaders...))))
	l.files = append(l.files, f)
	counted := logSumFile{Name: p.Name, Server: f.server, Format: f.format.Name()}
	l.progress.say(fmt.Sprintf("%s: %s", printable(p.Name), f.format.Name()))
	var r accesslog.Record
	take := func(line accesslog.Line) error {
		counted.Lines++
		l.sum.Lines++
		l.phase.lines.Add(1)
		l.phase.done.Store(before + in.Consumed())
		if err := ctx.Err(); err != nil {
			return err
		}
		return l.line(ctx, index, f, line, &r)
	}
	for _, line := range sample {
		if err := take(line); err != nil {
			return err
		}
	}
	for more {
		line, err, ok := next()
		if !ok {
			break
		}
		if err != nil {
			ended = err
			continue
		}
		if err := take(line); err != nil {
			return err
		}
	}
	if ended != nil {
		l.sum.fault("damaged", f, counted.Lines, ended.Error())
	}
	l.sum.Files = append(l.sum.Files, counted)
	l.sum.lacks(f)
	return nil
}

// begin finds the format of a file, if it is not known, by its first lines, and gives these
// and whether there are more. Without a format nothing is to be read from it: what is
// wrong is counted.
func (l *logReader) begin(f *logFile, next func() (accesslog.Line, error, bool)) (sample []accesslog.Line, more bool, ended error) {
	var texts [][]byte
	more = true
	for size := 0; f.format == nil && len(sample) < logSample && size < logSampleBytes; {
		line, err, ok := next()
		if more = ok; !ok {
			break
		}
		if err != nil {
			ended = err
			continue
		}
		line.Text = bytes.Clone(line.Text)
		sample, size = append(sample, line), size+len(line.Text)
		if line.End > 0 || len(texts) == 0 { // else it may be cut
			texts = append(texts, bytes.TrimPrefix(line.Text, byteOrderMark))
		}
	}
	if f.format == nil {
		format, err := accesslog.Detect(texts)
		switch {
		case errors.Is(err, accesslog.ErrNoLines) && ended != nil:
			l.sum.fault("damaged", f, 0, ended.Error())
		case errors.Is(err, accesslog.ErrNoLines) && !more:
			l.without(f, sample)
		case err != nil:
			l.sum.fault("unknown_format", f, 0, fmt.Sprintf("%v; --format, --nginx-format or --apache-format says which it is", errors.Join(err, ended)))
		}
		f.format = format
	}
	if f.format != nil && l.how.zone != nil {
		f.format = f.format.In(l.how.zone)
	}
	if f.format != nil && !f.format.Zoned() {
		l.sum.fault("unknown_zone", f, 0, f.format.Name()+" has local times; --timezone says of which zone")
		f.format = nil
	}
	return sample, more, ended
}

// without takes in a file that has no requests: headers of IIS, or nothing.
func (l *logReader) without(f *logFile, lines []accesslog.Line) {
	for _, line := range lines {
		switch {
		case line.TooLong:
			l.tooLong(f, line)
		case bytes.HasPrefix(line.Text, []byte("#")):
			l.sum.skip("directives", f, line.Number)
		default:
			l.sum.skip("empty", f, line.Number)
		}
	}
	l.sum.Lines += int64(len(lines))
	l.sum.Files = append(l.sum.Files, logSumFile{Name: f.name, Server: f.server, Lines: int64(len(lines))})
}

// A loggedLine is a request in its place, and where it stands.
type loggedLine struct {
	file    *logFile
	line    int64
	request admin.LoggedRequest
}

// sorted gives the requests by time, each once.
func (l *logReader) sorted(ctx context.Context) iter.Seq2[*loggedLine, error] {
	return func(yield func(*loggedLine, error) bool) {
		split := func(payload []byte) (server, line []byte, err error) {
			_, line = cutDirective(payload)
			return []byte(l.how.server), line, nil
		}
		var r accesslog.Record
		for item, err := range accesslog.Identify(l.sorter.Sorted(ctx), &l.ranges, split) {
			if err != nil {
				yield(nil, err)
				return
			}
			f := l.files[item.File]
			if item.Duplicate {
				l.sum.skip("duplicate", f, item.Line)
				l.sent(1)
				continue
			}
			fields, line := cutDirective(item.Payload)
			if fields != nil && !bytes.Equal(fields, f.fields) {
				f.parser, f.fields = f.format.NewParser(), bytes.Clone(fields)
				_ = f.parser.Parse(fields, &r) // a directive is no record
			}
			if err := f.parser.Parse(line, &r); err != nil {
				yield(nil, fmt.Errorf("%s, line %d: %w", f.name, item.Line, err)) // it was parsed once
				return
			}
			one := &loggedLine{f, item.Line, requestOf(f, &r, item.Time, item.ID)}
			if !yield(one, nil) {
				return
			}
		}
	}
}

// logHeaders are the headers that Matomo or the edge reads. JSON logs tell with each
// record which they have.
var logHeaders = []string{
	"accept-language", "content-type", "cookie", "dnt", "forwarded", "referer", "sec-ch-ua", "sec-ch-ua-arch", "sec-ch-ua-bitness",
	"sec-ch-ua-full-version-list", "sec-ch-ua-mobile", "sec-ch-ua-model", "sec-ch-ua-platform", "sec-ch-ua-platform-version",
	"sec-fetch-mode", "user-agent", "via", "x-do-not-track", "x-forwarded-for", "x-moz", "x-purpose",
}

// sent tells of lines that were judged.
func (l *logReader) sent(lines int64) {
	l.phase.lines.Add(lines)
	l.phase.done.Add(lines)
}

// cutDirective takes apart what was sorted: a line, and the directive before it if its
// format has such.
func cutDirective(payload []byte) (fields, line []byte) {
	if i := bytes.IndexByte(payload, '\n'); i >= 0 {
		return payload[:i], payload[i+1:]
	}
	return nil, payload
}

func requestOf(f *logFile, r *accesslog.Record, at int64, id accesslog.Identity) admin.LoggedRequest {
	out := admin.LoggedRequest{
		At: at, LineAt: time.Unix(0, at).Unix(), Line: slices.Clone(id[:]),
		Remote: string(r.Remote), Method: string(r.Method), Target: bytes.Clone(r.Target), HTTPS: r.Scheme == accesslog.SchemeHTTPS,
		HasBody: f.format.Body() || len(r.Body) > 0, Body: bytes.Clone(r.Body),
	}
	if a, err := netip.ParseAddrPort(out.Remote); err == nil {
		out.Remote = a.Addr().String()
	}
	for _, name := range f.header {
		if value, _ := r.Header(name); len(value) > 0 {
			out.Header = append(out.Header, []byte(name), bytes.Clone(value))
		}
	}
	if _, logged := r.Header("content-type"); !logged && len(out.Body) > 0 {
		out.Header = append(out.Header, []byte("Content-Type"), []byte("application/x-www-form-urlencoded")) // or Matomo read no such body
	}
	if r.Host != nil {
		out.Header = append(out.Header, []byte("Host"), bytes.Clone(r.Host))
	}
	return out
}

// How much is sent at once: an answer is waited for before more is. As JSON it is half as
// much again, which stays below [admin.MaxImport].
const (
	logBatchLines = 2000
	logBatchBytes = 4 << 20
)

// batches gives the requests in runs.
func (l *logReader) batches(ctx context.Context) iter.Seq2[[]*loggedLine, error] {
	return func(yield func([]*loggedLine, error) bool) {
		var batch []*loggedLine
		size := 0
		for one, err := range l.sorted(ctx) {
			if err != nil {
				yield(nil, err)
				return
			}
			n := 500 + len(one.request.Target) + len(one.request.Body)
			for _, text := range one.request.Header {
				n += len(text)
			}
			if len(batch) == logBatchLines || len(batch) > 0 && size+n > logBatchBytes {
				if !yield(batch, nil) {
					return
				}
				batch, size = nil, 0
			}
			batch, size = append(batch, one), size+n
		}
		if len(batch) > 0 {
			yield(batch, nil)
		}
	}
}

func encodeBatch(batch []*loggedLine) ([]byte, error) {
	var b bytes.Buffer
	e := gob.NewEncoder(&b)
	for _, one := range batch {
		if err := e.Encode(&one.request); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// parseWindow reads FROM..TO, each a day or a moment with a zone; a day is one of UTC, and
// TO's is within.
func parseWindow(s string) (from, to time.Time, err error) {
	first, last, ok := strings.Cut(s, "..")
	if !ok {
		return from, to, fmt.Errorf("%q: want FROM..TO", s)
	}
	moment := func(s string, end bool) (time.Time, error) {
		if d, err := time.Parse(time.DateOnly, s); err == nil {
			if end {
				d = d.AddDate(0, 0, 1)
			}
			return d, nil
		}
		return time.Parse(time.RFC3339, s)
	}
	if from, err = moment(first, false); err == nil {
		to, err = moment(last, true)
	}
	if err == nil && !from.Before(to) {
		err = fmt.Errorf("%q ends before it begins", s)
	}
	return from, to, err
}
