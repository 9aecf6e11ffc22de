package main

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/internal/accesslog"
	"sluice/internal/admin"
)

// logSum counts what became of lines. It is what --json prints.
type logSum struct {
	V      int              `json:"v"`
	Import string           `json:"import,omitempty"`
	DryRun bool             `json:"dry_run"`
	State  string           `json:"state"` // open, complete, or "" when nothing was taken
	From   *time.Time       `json:"from"`
	To     *time.Time       `json:"to"`
	Lines  int64            `json:"lines"`
	Hits   int64            `json:"hits"`  // taken
	Sites  map[string]int64 `json:"sites"` // hits by site
	admin.LateHits
	Skipped map[string]*logTally `json:"skipped"` // lines, by the words of logReasons
	Faulty  map[string]*logTally `json:"faulty"`  // lines and files, by the same
	Formats []*logSumFormat      `json:"formats"`
	Files   []logSumFile         `json:"files"`
}

// A logTally counts the lines of one reason.
type logTally struct {
	Count   int64                    `json:"count"`
	Servers map[string]*logServerSum `json:"servers"`
}

// A logServerSum is the part of one server in a [logTally].
type logServerSum struct {
	Count    int64      `json:"count"`
	Examples []logPlace `json:"examples"` // the first ones
}

// A logPlace is an example.
type logPlace struct {
	File string `json:"file"`
	Line int64  `json:"line,omitempty"`
	Why  string `json:"why,omitempty"`
}

// A logSumFormat is what logs do not hold of what Matomo reads, by the words of logLacks.
type logSumFormat struct {
	Name  string   `json:"name"`
	Lacks []string `json:"lacks"`
	Files []string `json:"files"`
}

type logSumFile struct {
	Name   string `json:"name"`
	Server string `json:"server"`
	Format string `json:"format"`
	Lines  int64  `json:"lines"`
}

func newLogSum(dry bool) *logSum {
	return &logSum{
		V: 1, DryRun: dry, Sites: map[string]int64{}, Skipped: map[string]*logTally{}, Faulty: map[string]*logTally{},
		Formats: []*logSumFormat{}, Files: []logSumFile{},
	}
}

// skip counts a line that is passed over, line 0 for a whole file.
func (s *logSum) skip(why string, f *logFile, line int64) { count(s.Skipped, why, f, line, "") }

// fault counts something that is wrong.
func (s *logSum) fault(kind string, f *logFile, line int64, why string) {
	count(s.Faulty, kind, f, line, why)
}

// maxLogExamples is how many examples are kept of one reason and server.
const maxLogExamples = 3

func count(tallies map[string]*logTally, kind string, f *logFile, line int64, why string) {
	t := tallies[kind]
	if t == nil {
		t = &logTally{Servers: map[string]*logServerSum{}}
		tallies[kind] = t
	}
	t.Count++
	s := t.Servers[f.server]
	if s == nil {
		s = &logServerSum{}
		t.Servers[f.server] = s
	}
	if s.Count++; s.Count <= maxLogExamples {
		s.Examples = append(s.Examples, logPlace{f.name, line, why})
	}
}

// logReasons are the words for why something is not taken, as people read them.
var logReasons = map[string]struct {
	text  string
	loses bool // hits, perhaps
}{
	"empty":           {"empty", false},
	"directives":      {"directives", false},
	"no_request":      {"no request", false},
	"cut_last_line":   {"cut last line", false},
	"not_tracking":    {"not tracking", false},
	"taken_by_sluice": {"taken by Sluice itself", false},
	"outside_window":  {"outside of --window", false},
	"other_status":    {"another --status", false},
	"other_sites":     {"of other sites", false},
	"masked_token":    {"with a token that the log hides", true},
	"redirected":      {"redirected by the server, and logged where it led to", false},
	"duplicate":       {"in another file, too", false},
	"known":           {"imported before", false},
	"nothing":         {"Matomo records nothing", false},
	"refused":         {"Matomo refuses them", true},
	"without_body":    {"POST without a body in the log, which cannot be replayed", true},
	"named_twice":     {"files named twice", false},

	"not_parsed":     {"not parsed", true},
	"too_long":       {"too long", true},
	"damaged":        {"damaged files", true},
	"unreadable":     {"unreadable files", true},
	"unknown_zone":   {"files without a time zone", true},
	"wrong_time":     {"of the future, or further back than Matomo records", true},
	"unknown_format": {"files of unknown format", true},
	"mixed_sites":    {"bulks of hits of wanted and of other sites", true},
}

// logLacks are the words for what a log may not hold of what Matomo reads, and what that
// costs, the worst first.
var logLacks = []struct {
	word, text string
	held       func(f *accesslog.Format, r *accesslog.Record) bool
}{
	{"query", "no queries: nothing can be replayed", func(_ *accesslog.Format, r *accesslog.Record) bool { return bytes.IndexByte(r.Target, '?') >= 0 }},
	{"method", "no methods: every request counts as GET", func(_ *accesslog.Format, r *accesslog.Record) bool { return r.Method != nil }},
	{"user_agent", "no User-Agent: no browser, system and device, robots are not known, and visitors are told apart otherwise (config_id)", holds("user-agent")},
	{"accept_language", "no Accept-Language: no browser language, no country by language, and visitors are told apart otherwise (config_id)", holds("accept-language")},
	{"body", "no bodies: POST requests cannot be replayed", func(f *accesslog.Format, r *accesslog.Record) bool { return f.Body() || r.Body != nil }},
	{"start", "no beginnings of requests, as far as is known: each is late by the time that it took", func(_ *accesslog.Format, r *accesslog.Record) bool { return r.Start }},
	{"fractions", "no fractions of seconds: requests of one second are in the order of the files", func(_ *accesslog.Format, r *accesslog.Record) bool { return r.Precision < time.Second }},
	{"cookie", "no cookies: who opted out by cookie is recorded, and visitor IDs of third-party cookies are not known", holds("cookie")},
	{"dnt", "no Do Not Track: recorded also where Matomo is set to heed it", holds("dnt", "x-do-not-track")},
	{"referer", "no Referer: no page address where a request has neither url nor urlref", holds("referer")},
	{"client_hints", "no client hints: devices by their User-Agent alone where a request has no uadata", holds("sec-ch-ua", "sec-ch-ua-mobile")},
}

func holds(headers ...string) func(*accesslog.Format, *accesslog.Record) bool {
	return func(_ *accesslog.Format, r *accesslog.Record) bool {
		return slices.ContainsFunc(headers, func(name string) bool {
			_, logged := r.Header(name)
			return logged
		})
	}
}

// note looks at the first tracking requests of a file for what it holds.
func (f *logFile) note(r *accesslog.Record) {
	if f.noted == logSample {
		return
	}
	f.noted++
	if f.held == nil {
		f.held = make([]bool, len(logLacks))
	}
	for i := range logLacks {
		f.held[i] = f.held[i] || logLacks[i].held(f.format, r)
	}
}

// lacks adds what a file does not hold, if it has tracking requests at all.
func (s *logSum) lacks(f *logFile) {
	if f.noted == 0 {
		return
	}
	lacks := []string{}
	for i, held := range f.held {
		if !held {
			lacks = append(lacks, logLacks[i].word)
		}
	}
	for _, same := range s.Formats {
		if same.Name == f.format.Name() && slices.Equal(same.Lacks, lacks) {
			same.Files = append(same.Files, f.name)
			return
		}
	}
	s.Formats = append(s.Formats, &logSumFormat{f.format.Name(), lacks, []string{f.name}})
}

// logSum prints what became of the lines.
func (o *printer) logSum(s *logSum) {
	verb := "taken"
	if s.DryRun {
		verb = "would be taken"
	}
	tone := toneOK
	if len(s.Faulty) > 0 {
		tone = toneWarn
	}
	o.printf("%s  %s hits %s, of %s lines in %d files\n", o.mark(tone), number(s.Hits), verb, number(s.Lines), len(s.Files))
	for _, site := range slices.Sorted(maps.Keys(s.Sites)) {
		o.printf("    site %s: %s\n", site, number(s.Sites[site]))
	}
	for _, why := range slices.Sorted(maps.Keys(s.Skipped)) {
		tone := toneUnset
		if logReasons[why].loses {
			tone = toneWarn
		}
		o.printf("%s  %s passed over: %s\n", o.mark(tone), number(s.Skipped[why].Count), logReasons[why].text)
		if logReasons[why].loses {
			o.logServers(s.Skipped[why])
		}
	}
	if s.Late != 0 {
		o.printf("%s  %s\n", o.mark(toneWarn), lateText(s.LateHits))
	}
	for _, why := range slices.Sorted(maps.Keys(s.Faulty)) {
		o.printf("%s  %s: %s\n", o.mark(toneBad), logReasons[why].text, number(s.Faulty[why].Count))
		o.logServers(s.Faulty[why])
	}
	for _, f := range s.Formats {
		o.logLacks(f)
	}
}

// lateText says how many hits are late, by what is known.
func lateText(l admin.LateHits) string {
	if l.Late < 0 {
		return "it is not known how many hits are older than hits already recorded for the same visitors: MySQL does not answer"
	}
	text := number(l.Late) + " hits are older than hits already recorded for the same visitors"
	if l.LateBy == "site" {
		text = number(l.Late) + " hits are older than hits already delivered for the same sites (an account on MySQL would tell by visitor)"
	}
	return text
}

// maxLogNames is how many servers or files are named.
const maxLogNames = 10

// logServers prints the examples of a reason; where it has several servers, one of each
// and how many lines it has, the most first.
func (o *printer) logServers(t *logTally) {
	names := slices.SortedFunc(maps.Keys(t.Servers), func(a, b string) int {
		return cmp.Or(cmp.Compare(t.Servers[b].Count, t.Servers[a].Count), cmp.Compare(a, b))
	})
	for i, name := range names {
		if i == maxLogNames {
			o.printf("    and %d more servers\n", len(names)-i)
			return
		}
		examples, indent := t.Servers[name].Examples, "    "
		if len(names) > 1 {
			o.printf("    %s of %s\n", number(t.Servers[name].Count), printable(name))
			examples, indent = examples[:1], "        "
		}
		for _, e := range examples {
			o.printf("%s%s\n", indent, e.text())
		}
	}
}

func (e *logPlace) text() string {
	text := printable(e.File)
	if e.Line > 0 {
		text += ", line " + strconv.FormatInt(e.Line, 10)
	}
	if e.Why != "" {
		text += ": " + printable(e.Why)
	}
	return text
}

// logLacks prints what logs do not hold.
func (o *printer) logLacks(f *logSumFormat) {
	if len(f.Lacks) == 0 {
		return
	}
	files := f.Files[:min(len(f.Files), maxLogNames)]
	more := ""
	if n := len(f.Files) - len(files); n > 0 {
		more = " and " + strconv.Itoa(n) + " more files"
	}
	o.printf("%s  not in these logs (%s): %s%s\n", o.mark(toneUnset), f.Name, printable(strings.Join(files, ", ")), more)
	for _, l := range logLacks {
		if slices.Contains(f.Lacks, l.word) {
			o.printf("    %s\n", l.text)
		}
	}
}
