package accesslog

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The fields of nginx's and Apache's formats.

// nginxField reads the name of a variable of nginx.
func nginxField(f *Format, rest string) (token, int, error) {
	name, n := rest, len(rest)
	if rest[0] == '{' {
		end := strings.IndexByte(rest, '}')
		if end < 0 {
			return token{}, 0, fmt.Errorf("${ without }")
		}
		name, n = rest[1:end], end+1
	} else if i := strings.IndexFunc(rest, func(c rune) bool {
		return c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9')
	}); i >= 0 {
		name, n = rest[:i], i
	}
	if name == "" {
		return token{literal: []byte("$")}, 0, nil
	}
	t := token{name: "$" + name, kind: ErrShape}
	switch name {
	case "remote_addr":
		t.read = readRemote
	case "host", "server_name":
		t.read = readHost
	case "time_local":
		t.read, t.kind = readCommonTime, ErrTime
	case "time_iso8601":
		t.read, t.kind = readISOTime, ErrTime
	case "msec":
		t.read, t.kind = readEpoch, ErrTime
	case "request":
		t.read, t.kind = readRequest, ErrRequest
	case "request_method":
		t.read = func(_ *Format, v []byte, _ *Record, g *gathered) bool { g.method = v; return isMethod(v) }
		t.kind = ErrRequest
	case "request_uri":
		t.read = func(_ *Format, v []byte, r *Record, _ *gathered) (ok bool) {
			r.Target, ok = originForm(v, r)
			return ok
		}
		t.kind = ErrRequest
	case "uri", "document_uri":
		t.read = func(_ *Format, v []byte, _ *Record, g *gathered) bool { g.uri = v; return true }
	case "args", "query_string":
		t.read = readQuery
	case "status":
		t.read = readStatus
	case "scheme", "https":
		t.read = readScheme
	case "request_body":
		f.HasBody = true
		t.read = readBody
	case "request_time":
		t.read = readTook(time.Second)
	default:
		if h, ok := strings.CutPrefix(name, "http_"); ok {
			t.read = f.header(strings.ReplaceAll(h, "_", "-"))
		}
	}
	return t, n, nil
}

func readQuery(_ *Format, v []byte, _ *Record, g *gathered) bool {
	if !absent(v) {
		g.query = v
	}
	return true
}

// apacheField reads a directive of Apache.
func apacheField(f *Format, rest string) (token, int, error) {
	n := 0
	for n < len(rest) && strings.IndexByte("<>!,0123456789", rest[n]) >= 0 {
		n++ // conditions and redirects
	}
	argument := ""
	if n < len(rest) && rest[n] == '{' {
		end := strings.IndexByte(rest[n:], '}')
		if end < 0 {
			return token{}, 0, fmt.Errorf("%%{ without }")
		}
		argument = rest[n+1 : n+end]
		n += end + 1
	}
	if n == len(rest) {
		return token{}, 0, fmt.Errorf("%%%s: a directive is missing", rest)
	}
	if rest[n] == '%' {
		return token{literal: []byte("%")}, n + 1, nil
	}
	letter := rest[n]
	n++
	t := token{name: "%" + string(letter), kind: ErrShape}
	if argument != "" {
		t.name = "%{" + argument + "}" + string(letter)
	}
	switch {
	case letter == 'h', letter == 'a' && (argument == "" || argument == "c"):
		t.read = readRemote
	case letter == 'v' || letter == 'V':
		t.read = readHost
	case letter == 't':
		read, ends, err := apacheTime(argument)
		if err != nil {
			return token{}, 0, err
		}
		t.read, t.kind, f.Ends = read, ErrTime, ends
	case letter == 'r':
		t.read, t.kind = readRequest, ErrRequest
	case letter == 'm':
		t.read = func(_ *Format, v []byte, _ *Record, g *gathered) bool { g.method = v; return isMethod(v) }
		t.kind = ErrRequest
	case letter == 'U':
		t.read = func(_ *Format, v []byte, _ *Record, g *gathered) bool { g.uri = v; return true }
	case letter == 'q':
		t.read = readQuery
	case letter == 's':
		t.read = readStatus
	case letter == 'D':
		t.read = readTook(time.Microsecond)
	case letter == 'T':
		t.read = readTook(map[string]time.Duration{"": time.Second, "s": time.Second, "ms": time.Millisecond, "us": time.Microsecond}[argument])
	case letter == 'i':
		t.read = f.header(argument)
	}
	return t, n, nil
}

// apacheTime reads the argument of %t, and whether the time is that of the end.
func apacheTime(argument string) (read reader, ends bool, err error) {
	argument, ends = strings.CutPrefix(argument, "end:")
	argument = strings.TrimPrefix(argument, "begin:")
	switch argument {
	case "":
		return readCommonTime, ends, nil
	case "sec":
		return readEpoch, ends, nil
	case "msec", "usec":
		unit := map[string]int64{"msec": 1000, "usec": 1_000_000}[argument]
		return func(_ *Format, v []byte, r *Record, g *gathered) bool {
			n, err := strconv.ParseInt(string(v), 10, 64)
			g.exact = true
			r.Time = time.Unix(n/unit, n%unit*(1e9/unit))
			return err == nil
		}, ends, nil
	}
	layout, err := strftime(argument)
	return func(_ *Format, v []byte, r *Record, _ *gathered) bool {
		t, err := time.Parse(layout, string(v))
		r.Time = t
		return err == nil
	}, ends, err
}

// strftime gives Go's layout for one of strftime with a zone.
func strftime(s string) (string, error) {
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'M': "04", 'S': "05", 'z': "-0700", 'b': "Jan", 'B': "January", 'y': "06", 'e': "_2",
		'T': "15:04:05", 'F': "2006-01-02", 'R': "15:04", 'D': "01/02/06", '%': "%", 'Z': "MST",
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		l, ok := layouts[s[i]]
		if !ok {
			return "", fmt.Errorf("%%{%s}t: %%%c is not known", s, s[i])
		}
		b.WriteString(l)
	}
	if !strings.Contains(b.String(), "-0700") {
		return "", fmt.Errorf("%%{%s}t: want %%z, or nobody knows the time's zone", s)
	}
	return b.String(), nil
}
