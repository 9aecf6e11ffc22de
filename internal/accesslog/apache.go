package accesslog

import (
	"fmt"
	"strings"
	"time"
)

// Apache returns the format that a LogFormat of Apache describes: its text, or the whole
// directive as it stands in the configuration. The error wraps [ErrSpec].
//
// Apache logs when it received a request, but for times that begin with "end:"
// (Apache: mod_log_config). %U is the path that the server has decoded and shortened.
// Directives of no use are skipped, whatever they hold.
func Apache(spec string) (*Format, error) {
	const name = "Apache format"
	text := apacheText(spec)
	pieces, err := cut(text, '%', func(pos int) ([]piece, int, error) {
		made, size, err := apacheDirective(text[pos:])
		if err != nil {
			return nil, 0, fmt.Errorf("%s: at byte %d: %w", name, pos, err)
		}
		return made, size, nil
	})
	if err != nil {
		return nil, err
	}
	return compile(name, pieces, escapeApache)
}

// apacheText takes a description out of what the configuration has around it.
func apacheText(spec string) string {
	spec = strings.TrimSpace(spec)
	rest, directive := strings.CutPrefix(spec, "LogFormat")
	if !directive {
		return spec
	}
	rest = strings.TrimSpace(rest)
	if rest == "" || rest[0] != '"' {
		return rest
	}
	var b strings.Builder
	for i := 1; i < len(rest) && rest[i] != '"'; i++ {
		if rest[i] == '\\' && i+1 < len(rest) && (rest[i+1] == '"' || rest[i+1] == '\\') {
			i++
		}
		b.WriteByte(rest[i])
	}
	return b.String()
}

// apacheDirective reads the directive that s begins with and says how long it is.
func apacheDirective(s string) ([]piece, int, error) {
	argument, i := "", 1
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case c == '{':
			end := strings.IndexByte(s[i:], '}')
			if end < 0 {
				return nil, 0, fmt.Errorf("a brace that is not closed: %w", ErrSpec)
			}
			argument = s[i+1 : i+end]
			i += end
			continue
		case c == '<' || c == '>' || c == '!' || c == ',' || isDigit(c):
			continue // which of two requests, and for which statuses
		}
		break
	}
	if i >= len(s) {
		return nil, 0, fmt.Errorf("no directive: %w", ErrSpec)
	}
	letter, size := s[i], i+1
	if letter == '^' { // of three letters
		size = min(i+3, len(s))
		return []piece{{item: item{name: s[:size]}}}, size, nil
	}
	it := item{name: s[:size]}
	switch letter {
	case '%':
		return []piece{{text: "%"}}, size, nil
	case 't':
		pieces, err := apacheTime(argument, it)
		return pieces, size, err
	case 'h':
		it.kind, it.name = fieldRemote, "%h"
	case 'a':
		if it.kind = fieldRemote; argument == "c" {
			it.kind = fieldPeer
		}
	case 'u':
		it.kind = fieldUser
	case 'r':
		it.kind = fieldRequest
	case 'm':
		it.kind = fieldMethod
	case 'U':
		it.kind = fieldPath
	case 'q':
		it.kind = fieldQuery
	case 'H':
		it.kind = fieldProtocol
	case 'b', 'B', 'I', 'O', 'S':
		it.kind = fieldSize
	case 's':
		it.kind = fieldStatus
	case 'v':
		it.kind = fieldServer
	case 'V':
		it.kind = fieldHost
	case 'D':
		it.kind, it.unit = fieldDuration, time.Microsecond
	case 'T':
		it.kind, it.unit = fieldDuration, apacheUnit(argument)
	case 'i':
		it.kind, it.header = fieldHeader, []byte(argument)
	}
	return []piece{{item: it}}, size, nil
}

func apacheUnit(argument string) time.Duration {
	switch argument {
	case "ms":
		return time.Millisecond
	case "us":
		return time.Microsecond
	}
	return time.Second
}

// apacheTime makes the pieces of %{argument}t.
func apacheTime(argument string, it item) ([]piece, error) {
	if argument == "" {
		it.kind = fieldCommon
		return []piece{{text: "["}, {item: it}, {text: "]"}}, nil
	}
	it.kind = fieldTime
	argument, it.end = strings.CutPrefix(argument, "end:")
	argument = strings.TrimPrefix(argument, "begin:")
	switch argument {
	case "sec":
		it.layout = layout{{op: opEpoch}}
	case "msec":
		it.layout = layout{{op: opEpochMilli}}
	case "usec":
		it.layout = layout{{op: opEpochMicro}}
	case "msec_frac":
		it.layout = layout{{op: opMilli}}
	case "usec_frac":
		it.layout = layout{{op: opMicro}}
	default:
		l, err := strftime(argument)
		if err != nil {
			return nil, err
		}
		it.layout = l
	}
	return []piece{{item: it}}, nil
}

// strftime makes a layout. Years of two digits and names of zones are not read,
// since they may mean several things.
func strftime(s string) (layout, error) {
	var l layout
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			l = append(l, layoutPart{text: s[i : i+1]})
			continue
		}
		i++
		if i == len(s) {
			return nil, fmt.Errorf("a time that ends with a percent sign: %w", ErrSpec)
		}
		switch s[i] {
		case 'Y', 'm', 'd', 'e', 'H', 'M', 'S', 'z', 'b', opEpoch:
			l = append(l, layoutPart{op: s[i]})
		case 'h':
			l = append(l, layoutPart{op: 'b'})
		case 'T':
			l = append(l, isoTimeParts...)
		case 'F':
			l = append(l, isoDateParts...)
		case 'R':
			l = append(l, isoTimeParts[:3]...)
		case '%':
			l = append(l, layoutPart{text: "%"})
		default:
			return nil, fmt.Errorf("a time with %%%c, which is not read: %w", s[i], ErrSpec)
		}
	}
	return l, nil
}
