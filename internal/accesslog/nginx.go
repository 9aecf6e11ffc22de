package accesslog

import (
	"fmt"
	"strings"
	"time"
)

// Nginx returns the format that a log_format of nginx describes: its text, or the whole
// directive as it stands in the configuration. In front there may be escape=default,
// escape=json or escape=none. The error wraps [ErrSpec].
//
// nginx logs a request when it has been answered; with $request_time records say
// when it began (nginx: ngx_http_log_module). Variables of no use are skipped, whatever
// they hold.
func Nginx(spec string) (*Format, error) {
	const name = "nginx format"
	text, e, err := nginxText(spec)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	pieces, err := cut(text, '$', func(pos int) ([]piece, int, error) {
		variable, size := nginxVariable(text[pos:])
		if variable == "" {
			return nil, 0, fmt.Errorf("%s: no variable at byte %d: %w", name, pos, ErrSpec)
		}
		return []piece{{item: nginxItem(variable)}}, size, nil
	})
	if err != nil {
		return nil, err
	}
	return compile(name, pieces, e)
}

// nginxVariable gives the name of the variable that s begins with, and how long it is
// with its sign.
func nginxVariable(s string) (string, int) {
	if strings.HasPrefix(s, "${") {
		end := strings.IndexByte(s, '}')
		if end < 0 {
			return "", 0
		}
		return s[2:end], end + 1
	}
	n := 1
	for n < len(s) && (isLetter(s[n]) || isDigit(s[n]) || s[n] == '_') {
		n++
	}
	return s[1:n], n
}

// nginxItem says what a variable is.
func nginxItem(variable string) item {
	it := item{name: "$" + variable}
	switch variable {
	case "remote_addr":
		it.kind = fieldRemote
	case "realip_remote_addr":
		it.kind = fieldPeer
	case "remote_user":
		it.kind = fieldUser
	case "time_local":
		it.kind, it.end = fieldCommon, true
	case "time_iso8601":
		it.kind, it.layout, it.end = fieldTime, isoParts, true
	case "msec":
		it.kind, it.layout, it.end = fieldTime, layout{{op: opSecondsDot}}, true
	case "request_time":
		it.kind, it.unit = fieldDuration, time.Second
	case "request":
		it.kind = fieldRequest
	case "request_method":
		it.kind = fieldMethod
	case "request_uri":
		it.kind = fieldTarget
	case "uri", "document_uri":
		it.kind = fieldPath
	case "is_args":
		it.kind = fieldIsArgs
	case "args", "query_string":
		it.kind = fieldArgs
	case "server_protocol":
		it.kind = fieldProtocol
	case "status":
		it.kind = fieldStatus
	case "body_bytes_sent", "bytes_sent", "request_length":
		it.kind = fieldSize
	case "request_body":
		it.kind = fieldBody
	case "host":
		it.kind = fieldHost
	case "server_name":
		it.kind = fieldServer
	case "scheme":
		it.kind = fieldScheme
	case "https":
		it.kind = fieldHTTPS
	case "content_type":
		it.kind, it.header = fieldHeader, []byte("content-type")
	default:
		if header, ok := strings.CutPrefix(variable, "http_"); ok {
			it.kind, it.header = fieldHeader, []byte(header)
		}
	}
	it.list = strings.HasPrefix(variable, "upstream_") || strings.HasSuffix(variable, "_forwarded_for")
	return it
}

// nginxText takes a description out of what the configuration has around it.
func nginxText(spec string) (string, escaping, error) {
	spec = strings.TrimSpace(spec)
	rest, directive := strings.CutPrefix(spec, "log_format")
	if directive {
		_, rest, _ = strings.Cut(strings.TrimSpace(rest), " ")
		rest = strings.TrimSuffix(strings.TrimSpace(rest), ";")
	}
	e := escapeNginx
	rest = strings.TrimSpace(rest)
	if word, after, found := strings.Cut(rest, " "); strings.HasPrefix(word, "escape=") {
		switch word {
		case "escape=default":
		case "escape=json":
			e = escapeJSON
		case "escape=none":
			e = escapeNone
		default:
			found = false
		}
		if !found {
			return "", 0, fmt.Errorf("an escape at byte 0 that is none of default, json and none: %w", ErrSpec)
		}
		rest = strings.TrimSpace(after)
	}
	if !directive && !strings.HasPrefix(rest, "'") {
		return rest, e, nil
	}
	text, err := unquoteAll(rest)
	return text, e, err
}

// unquoteAll joins strings in quotes as nginx does.
func unquoteAll(s string) (string, error) {
	var b strings.Builder
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		quote := s[0]
		if quote != '\'' && quote != '"' {
			return "", fmt.Errorf("a text without quotes: %w", ErrSpec)
		}
		i := 1
		for ; i < len(s) && s[i] != quote; i++ {
			if s[i] != '\\' || i+1 == len(s) {
				b.WriteByte(s[i])
				continue
			}
			i++
			switch s[i] {
			case '"', '\'', '\\':
				b.WriteByte(s[i])
			case 't':
				b.WriteByte('\t')
			case 'r':
				b.WriteByte('\r')
			case 'n':
				b.WriteByte('\n')
			default:
				b.WriteByte('\\')
				b.WriteByte(s[i])
			}
		}
		if i >= len(s) {
			return "", fmt.Errorf("a quote that is not closed: %w", ErrSpec)
		}
		s = s[i+1:]
	}
	return b.String(), nil
}
