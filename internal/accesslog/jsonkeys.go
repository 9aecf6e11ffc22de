package accesslog

import (
	"bytes"
	"strings"
	"time"
)

type jsonField uint8

const (
	jsonNone jsonField = iota
	jsonTime
	jsonRemote
	jsonHost
	jsonMethod
	jsonRequest
	jsonTarget
	jsonQuery
	jsonProtocol
	jsonStatus
	jsonDuration
	jsonBody
	jsonScheme
	jsonHandled
	jsonHits
	jsonHeader
	jsonFields
)

// A jsonKey is what a key means. Of several keys for one field the one with the lowest
// rank is taken.
type jsonKey struct {
	field  jsonField
	rank   uint8
	header []byte
}

// A jsonGrammar reads logs with an object a line.
type jsonGrammar struct {
	whole  map[string]jsonKey // with the names of the objects around it
	last   map[string]jsonKey // without
	finish func(j *jsonScan, p *Parser, r *Record) error
	loose  bool // "" and "-" stand for what is not there
}

const headersOf = "headers."

// enter is told of each object before its keys.
func (g *jsonGrammar) enter(j *jsonScan) {
	if g.loose {
		return
	}
	switch string(j.path) {
	case "request.headers":
		j.r.complete = true
	case "request.tls":
		j.r.Scheme = SchemeHTTPS
	}
}

// leaf takes a value. Its key is as it stands in the line.
func (g *jsonGrammar) leaf(j *jsonScan, key []byte, v jsonValue) {
	const longest = 256 // more than any name in use, so that long lines do not take for ever
	if len(j.path) > longest || (string(v.raw) == "null" && !v.text) {
		return
	}
	if i := bytes.LastIndex(j.path, []byte(headersOf)); i >= 0 && len(j.path)-i-len(headersOf) == len(key) {
		if i == 0 || j.path[i-1] == '.' || j.path[i-1] == '_' {
			g.header(j, j.path[:i], key, v)
		}
		return
	}
	k, ok := g.whole[string(j.path)]
	if !ok {
		if k, ok = g.last[string(j.path[len(j.path)-len(key):])]; !ok {
			if g.loose && len(key) > len(httpPrefix) && strings.EqualFold(string(key[:len(httpPrefix)]), httpPrefix) {
				j.r.addHeader(key[len(httpPrefix):], g.text(j.r, v))
			}
			return
		}
	}
	if k.field == jsonHeader {
		j.r.addHeader(k.header, g.text(j.r, v))
		return
	}
	if found := &j.found[k.field]; !found.inside || k.rank < found.rank {
		v.inside, v.rank = true, k.rank
		*found = v
	}
}

const httpPrefix = "http_"

// header takes a header out of an object of headers, which has them by their names;
// outer are the names of the objects around it. What Caddy has blackened (Caddy: the
// option log_credentials) counts as not logged.
func (g *jsonGrammar) header(j *jsonScan, outer, key []byte, v jsonValue) {
	ofAnswer := string(outer) != "request."
	if g.loose {
		ofAnswer = bytes.Contains(outer, []byte("resp"))
	}
	if ofAnswer || (string(v.raw) == "REDACTED" && isRedacted(string(key))) {
		return
	}
	j.r.joinHeader(key, g.text(j.r, v))
}

func isRedacted(name string) bool {
	switch headerName(name) {
	case "cookie", "authorization", "proxy-authorization":
		return true
	}
	return false
}

// text gives a value with its escapes undone, nil if it stands for none.
func (g *jsonGrammar) text(r *Record, v jsonValue) []byte {
	if g.loose && (len(v.raw) == 0 || string(v.raw) == "-") {
		return nil
	}
	if !v.text {
		return v.raw
	}
	return r.undo(v.raw, escapeJSON)
}

func (g *jsonGrammar) parse(p *Parser, s []byte, r *Record) error {
	j := &p.json
	if err := j.read(g, s, r); err != nil {
		return err
	}
	if v := &j.found[jsonStatus]; v.inside {
		var ok bool
		if r.Status, ok = status(v.raw); !ok {
			return fault("status", v.pos, ErrMismatch)
		}
	}
	r.Method, r.Protocol = j.get(jsonMethod), j.get(jsonProtocol)
	r.Body = j.get(jsonBody)
	if host := j.get(jsonHost); host != nil {
		r.Host = host
	}
	if remote := j.get(jsonRemote); remote != nil && string(remote) != "-" {
		if r.Remote = withoutPort(remote, false); !isAddress(r.Remote) {
			return fault("remote", j.found[jsonRemote].pos, ErrMismatch)
		}
	}
	r.setScheme(schemeOf(j.get(jsonScheme), fieldScheme))
	if v := &j.found[jsonTime]; v.inside {
		if err := j.scan.end.readAny(v.raw, &p.common); err != nil {
			return fault("time", v.pos, err)
		}
	}
	if !j.found[jsonTime].inside {
		return fault("time", 0, ErrMismatch)
	}
	return g.finish(j, p, r)
}

// get gives the text of a field, nil if there is none.
func (j *jsonScan) get(f jsonField) []byte {
	if v := j.found[f]; v.inside {
		return j.grammar.text(j.r, v)
	}
	return nil
}

// target takes path and query, which may be in one value or in two.
func (j *jsonScan) target(r *Record) error {
	v := &j.found[jsonTarget]
	if !v.inside {
		return fault("request", 0, ErrMismatch)
	}
	if (j.found[jsonMethod].inside && !isMethod(r.Method)) || (j.found[jsonProtocol].inside && !isProtocol(r.Protocol)) {
		return fault("request", v.pos, ErrRequest)
	}
	path, query := j.get(jsonTarget), j.get(jsonQuery)
	var err error
	if len(query) == 0 || bytes.IndexByte(path, '?') >= 0 {
		err = r.setTarget(path)
	} else {
		err = r.setParts(path, bytes.TrimPrefix(query, []byte("?")))
	}
	if err != nil {
		return fault("request", v.pos, err)
	}
	return nil
}

// looseJSON reads JSON that people make of nginx's variables, in their own or in other
// programs' words.
var looseJSON = &jsonGrammar{loose: true, finish: finishLoose, whole: map[string]jsonKey{
	"client.ip":                 {field: jsonRemote, rank: 1},
	"client.address":            {field: jsonRemote, rank: 2},
	"source.ip":                 {field: jsonRemote, rank: 2},
	"source.address":            {field: jsonRemote, rank: 3},
	"http.request.method":       {field: jsonMethod},
	"http.request.body.content": {field: jsonBody},
	"http.response.status_code": {field: jsonStatus},
	"url.original":              {field: jsonTarget, rank: 1},
	"url.path":                  {field: jsonTarget, rank: 4},
	"url.query":                 {field: jsonQuery, rank: 1},
	"url.domain":                {field: jsonHost, rank: 2},
	"url.scheme":                {field: jsonScheme, rank: 1},
	"user_agent.original":       {field: jsonHeader, header: []byte("user-agent")},
	"request.method":            {field: jsonMethod},
	"request.uri":               {field: jsonTarget, rank: 1},
	"request.url":               {field: jsonTarget, rank: 1},
	"request.path":              {field: jsonTarget, rank: 4},
	"request.query":             {field: jsonQuery, rank: 1},
	"request.body":              {field: jsonBody, rank: 1},
}, last: map[string]jsonKey{
	"msec": {field: jsonTime}, "time_iso8601": {field: jsonTime, rank: 1}, "time_local": {field: jsonTime, rank: 2},
	"@timestamp": {field: jsonTime, rank: 3}, "timestamp": {field: jsonTime, rank: 4}, "time": {field: jsonTime, rank: 5},
	"ts": {field: jsonTime, rank: 6}, "datetime": {field: jsonTime, rank: 7}, "date": {field: jsonTime, rank: 8},

	"remote_addr": {field: jsonRemote}, "client_ip": {field: jsonRemote, rank: 1}, "clientip": {field: jsonRemote, rank: 1},
	"remote_ip": {field: jsonRemote, rank: 2}, "remote": {field: jsonRemote, rank: 3}, "client": {field: jsonRemote, rank: 4},
	"ip": {field: jsonRemote, rank: 5}, "realip_remote_addr": {field: jsonRemote, rank: 6},

	"http_host": {field: jsonHost}, "host": {field: jsonHost, rank: 1}, "vhost": {field: jsonHost, rank: 3},
	"server_name": {field: jsonHost, rank: 4}, "domain": {field: jsonHost, rank: 5},

	"request_method": {field: jsonMethod}, "http_method": {field: jsonMethod, rank: 1}, "method": {field: jsonMethod, rank: 1}, "verb": {field: jsonMethod, rank: 2},

	"request": {field: jsonRequest}, "request_line": {field: jsonRequest, rank: 1},

	"request_uri": {field: jsonTarget}, "url": {field: jsonTarget, rank: 2}, "uri": {field: jsonTarget, rank: 3},
	"request_path": {field: jsonTarget, rank: 4}, "path": {field: jsonTarget, rank: 5},
	"args": {field: jsonQuery}, "query_string": {field: jsonQuery}, "query": {field: jsonQuery, rank: 2}, "request_args": {field: jsonQuery, rank: 2},

	"server_protocol": {field: jsonProtocol}, "protocol": {field: jsonProtocol, rank: 1}, "proto": {field: jsonProtocol, rank: 1},

	"status": {field: jsonStatus}, "status_code": {field: jsonStatus, rank: 1}, "response_code": {field: jsonStatus, rank: 2}, "code": {field: jsonStatus, rank: 3},

	"request_time": {field: jsonDuration}, "request_body": {field: jsonBody}, "body": {field: jsonBody, rank: 2},
	"scheme": {field: jsonScheme}, "https": {field: jsonScheme, rank: 2},

	"user_agent": {field: jsonHeader, header: []byte("user-agent")}, "useragent": {field: jsonHeader, header: []byte("user-agent")}, "agent": {field: jsonHeader, header: []byte("user-agent")},
	"referer": {field: jsonHeader, header: []byte("referer")}, "referrer": {field: jsonHeader, header: []byte("referer")}, "http_referrer": {field: jsonHeader, header: []byte("referer")},
	"x_forwarded_for": {field: jsonHeader, header: []byte("x-forwarded-for")}, "x-forwarded-for": {field: jsonHeader, header: []byte("x-forwarded-for")},
	"accept_language": {field: jsonHeader, header: []byte("accept-language")}, "accept-language": {field: jsonHeader, header: []byte("accept-language")},
}}

func finishLoose(j *jsonScan, p *Parser, r *Record) error {
	if v := &j.found[jsonDuration]; v.inside {
		j.scan.takeDuration(v.raw, time.Second)
	}
	if err := r.settle(&j.scan.start, &j.scan.end, j.scan.took, j.scan.tookUnit, p.loc); err != nil {
		return fault("time", j.found[jsonTime].pos, err)
	}
	v := &j.found[jsonRequest]
	if !v.inside {
		return j.target(r)
	}
	request := j.get(jsonRequest)
	if len(request) > 0 && request[0] == '/' && j.found[jsonMethod].inside { // a target by that name
		j.found[jsonTarget] = *v
		return j.target(r)
	}
	if err := r.setRequest(request); err != nil {
		return fault("request", v.pos, err)
	}
	return nil
}

// caddyJSON reads Caddy's access log (Caddy: modules/caddyhttp/logging.go). Its time is
// when the request had been answered.
var caddyJSON = &jsonGrammar{finish: finishCaddy, whole: map[string]jsonKey{
	"ts":                  {field: jsonTime},
	"request.client_ip":   {field: jsonRemote},
	"request.remote_ip":   {field: jsonRemote, rank: 1},
	"request.remote_addr": {field: jsonRemote, rank: 2}, // of old versions, with a port
	"request.method":      {field: jsonMethod},
	"request.host":        {field: jsonHost},
	"request.uri":         {field: jsonTarget},
	"request.proto":       {field: jsonProtocol},
	"status":              {field: jsonStatus},
	"duration":            {field: jsonDuration},
}}

func finishCaddy(j *jsonScan, p *Parser, r *Record) error {
	r.setScheme(SchemeHTTP)
	if v := &j.found[jsonDuration]; v.inside && !v.text {
		j.scan.takeDuration(v.raw, time.Second)
	}
	if err := r.settle(&j.scan.start, &j.scan.end, j.scan.took, j.scan.tookUnit, p.loc); err != nil {
		return fault("ts", j.found[jsonTime].pos, err)
	}
	return j.target(r)
}

// sluiceJSON reads what our own proxy writes (proxy: accesslog.go). Its time is when the
// request began, and fields without a value are left out.
var sluiceJSON = &jsonGrammar{finish: finishSluice, whole: map[string]jsonKey{
	"time":       {field: jsonTime},
	"remote":     {field: jsonRemote},
	"host":       {field: jsonHost},
	"method":     {field: jsonMethod},
	"path":       {field: jsonTarget},
	"query":      {field: jsonQuery},
	"proto":      {field: jsonProtocol},
	"status":     {field: jsonStatus},
	"tls":        {field: jsonScheme},
	"handled":    {field: jsonHandled},
	"hits":       {field: jsonHits},
	"referer":    {field: jsonHeader, header: []byte("referer")},
	"user_agent": {field: jsonHeader, header: []byte("user-agent")},
}}

var sluiceHeaders = [][]byte{[]byte("referer"), []byte("user-agent")}

func finishSluice(j *jsonScan, p *Parser, r *Record) error {
	if !j.found[jsonHandled].inside {
		return fault("handled", 0, ErrMismatch)
	}
	r.setScheme(SchemeHTTP)
	if j.found[jsonScheme].inside {
		r.Scheme = SchemeHTTPS
	}
	for _, name := range sluiceHeaders {
		if _, logged := r.Header(string(name)); !logged {
			r.addHeader(name, nil)
		}
	}
	if string(j.get(jsonHandled)) == "tracking" {
		n, ok := number(j.found[jsonHits].raw)
		if !ok {
			return fault("hits", j.found[jsonHits].pos, ErrMismatch)
		}
		r.Hits = int(n)
	}
	if err := r.settle(&j.scan.end, &j.scan.end, 0, 0, p.loc); err != nil {
		return fault("time", j.found[jsonTime].pos, err)
	}
	return j.target(r)
}

// readAny reads a time as any of the programs that write JSON may have it.
func (t *stamp) readAny(s []byte, common *commonTime) error {
	s = bytes.TrimSuffix(bytes.TrimPrefix(s, []byte("[")), []byte("]"))
	if len(s) == len(commonLayout) && s[2] == '/' {
		sec, err := common.read(s)
		t.setEpoch(sec, 0, time.Second)
		return err
	}
	if len(s) > 4 && s[4] == '-' {
		if n, ok := t.readISO(s); !ok || n != len(s) {
			return ErrTime
		}
		return nil
	}
	op := byte(opSecondsDot)
	switch digits := countDigits(s); {
	case digits >= 15:
		op = opEpochMicro
	case digits >= 12:
		op = opEpochMilli
	}
	n, ok := t.readEpoch(op, s)
	if !ok || (n != len(s) && op == opSecondsDot) || (n < len(s) && s[n] != '.') {
		return ErrTime
	}
	if op == opSecondsDot && t.precision < time.Microsecond { // than which no float64 is finer
		t.precision = time.Microsecond
	}
	return nil
}
