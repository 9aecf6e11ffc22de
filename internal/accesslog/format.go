package accesslog

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Format is what the lines of a log look like. It never changes.
type Format struct {
	name    string
	grammar grammar
	loc     *time.Location // of times without a zone, nil if unknown
	holds   holdings
}

// A grammar reads lines. What it remembers of them is in the Parser.
type grammar interface {
	// parse reads a line without its line end into an empty record.
	parse(p *Parser, s []byte, r *Record) error
}

// holdings is what a format is known to hold.
type holdings struct {
	headers []string
	start   bool
	local   bool // times have no zone
	body    bool
}

// Name is what [Named] takes, or "nginx format" or "Apache format".
func (f *Format) Name() string { return f.name }

// Headers names the request headers that are known to be in every line, in lower case.
// JSON logs and those with a #Fields line tell more with each record: of these only a
// format from [Detect] knows some.
func (f *Format) Headers() []string { return slices.Clone(f.holds.headers) }

// Start says whether times are known to be when requests began, from the log or because
// it has how long they took.
func (f *Format) Start() bool { return f.holds.start }

// Zoned says whether times can be read: they have a zone, or [Format.In] gave one.
func (f *Format) Zoned() bool { return !f.holds.local || f.loc != nil }

// Body says whether bodies of requests are known to be logged.
func (f *Format) Body() bool { return f.holds.body }

// In returns the format with a location for times that have no zone. Where clocks were
// put back, such a time is the first of the two that it may be.
func (f *Format) In(loc *time.Location) *Format {
	g := *f
	g.loc = loc
	return &g
}

// NewParser returns a parser for the lines of one file.
func (f *Format) NewParser() *Parser {
	return &Parser{grammar: f.grammar, loc: f.loc}
}

// A Parser reads the lines of one file in their order.
type Parser struct {
	grammar grammar
	loc     *time.Location

	common commonTime
	scan   scan

	directive []byte // the last #Fields line
	columns   []item

	json jsonScan
}

// Parse reads a line, which may have its line end, into a record. The record is emptied
// first; its bytes are good until the line changes or the record is used again.
// It returns [ErrDirective] or [ErrEmpty] for a line that is to be skipped and a
// [*ParseError] for one that is no record; a later line may be one.
func (p *Parser) Parse(line []byte, r *Record) error {
	r.reset()
	line = bytes.TrimSuffix(line, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return ErrEmpty
	}
	if len(line) > MaxLength {
		return fault("line", MaxLength, ErrTooLong)
	}
	if i := bytes.IndexByte(line, 0); i >= 0 {
		return fault("line", i, ErrNUL)
	}
	return p.grammar.parse(p, line, r)
}

// Directive returns the #Fields line that is in force, nil if there is none. A parser that
// goes on in the middle of a file must have been given it.
func (p *Parser) Directive() []byte { return p.directive }

const (
	specCommon    = `%h %l %u %t "%r" %>s %b`
	specCombined  = specCommon + ` "%{Referer}i" "%{User-Agent}i"`
	specForwarded = specCombined + ` "%{X-Forwarded-For}i"`
)

// names has the formats that have names, the most specific first.
var names = []string{
	"sluice", "caddy", "nginx-json", "cloudfront", "iis", "alb", "haproxy",
	"nginx-main", "combined-vhost", "combined", "common-vhost", "common",
}

// Names lists what [Named] takes.
func Names() []string { return slices.Clone(names) }

// Named returns the format of a name:
//
//	common, combined     of Apache and nginx; combined is what Sluice writes, too
//	common-vhost,        the same behind the name of a host, which may have a port
//	combined-vhost
//	nginx-main           combined with X-Forwarded-For, as nginx.org's packages have it
//	nginx-json           an object a line, with the names that people use
//	caddy                Caddy's JSON
//	haproxy              HTTP and HTTPS logs, with or without a prefix from syslog;
//	                     its local times need [Format.In]
//	iis                  W3C extended, with a #Fields line
//	alb                  of AWS Application Load Balancers
//	cloudfront           standard logs, with a #Fields line
//	sluice               Sluice's own JSON
//
// Times of the common ones count as when the request was logged, which they are
// with nginx. Apache logs when it began: use [Apache] to have that known.
func Named(name string) (*Format, error) {
	switch name {
	case "common":
		return either(name, specCommon)
	case "combined":
		return either(name, specCombined)
	case "common-vhost":
		return either(name, "%v "+specCommon)
	case "combined-vhost":
		return either(name, "%v "+specCombined)
	case "nginx-main":
		return either(name, specForwarded)
	case "nginx-json":
		return &Format{name: name, grammar: looseJSON}, nil
	case "caddy":
		return &Format{name: name, grammar: caddyJSON, holds: holdings{start: true}}, nil
	case "sluice":
		headers := []string{"referer", "user-agent"}
		return &Format{name: name, grammar: sluiceJSON, holds: holdings{headers: headers, start: true}}, nil
	case "haproxy":
		return &Format{name: name, grammar: haproxy{}, holds: holdings{start: true, local: true}}, nil
	case "iis":
		return &Format{name: name, grammar: w3c{separator: ' '}}, nil
	case "cloudfront":
		return &Format{name: name, grammar: w3c{separator: '\t', cloudfront: true}}, nil
	case "alb":
		return &Format{name: name, grammar: albTemplate(), holds: holdings{headers: []string{"user-agent"}, start: true}}, nil
	}
	return nil, fmt.Errorf("no access log format is called %q: there are %s", name, strings.Join(names, ", "))
}

// either makes a format that nginx and Apache share.
func either(name, spec string) (*Format, error) {
	f, err := Apache(spec)
	if err != nil {
		return nil, err
	}
	t := f.grammar.(*template)
	t.escape = escapeEither
	t.own = name == "combined"
	for i := range t.items {
		t.items[i].end = true
	}
	f.name, f.holds.start = name, false
	return f, nil
}
