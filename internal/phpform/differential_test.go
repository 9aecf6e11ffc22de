package phpform

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

var queryPieces = []string{
	"a", "b", "a", "b", "=", "=", "=", "&", "&", "&", "idsite=1", "&cip=", "__Host-", "_Host-", "Host-", "Secure-", "_",
	".", " ", "+", "%20", "%00", "%2E", "[", "]", "[", "]", "[]", "[x]", "[ ]", "[\t]", "%5B", "%5D", "%5b", "%5d",
	"%", "%4", "%zz", "%E9", "%26", "%3D", ";", "\x00", "é", "\xff", "0", "1", "01", "-", "GLOBALS", "this", "#", "?",
}

var numberPieces = []string{
	" ", "\t", "\n", "\v", "\f", "\r", "+", "-", "0", "1", "9", "00", ".", ".", "e", "E", "e-", "0x1A", "1e0", "1.0", "1e400", "5e-324",
	"9223372036854775807", "9223372036854775808", "922337203685477580", "-9223372036854775808", "18446744073709551616", "9.2e18",
	"&#49;", "&#x31;", "&#0048;", "&#X39", "&#9;", "&#13;", "&#11;", "&#12;", "&#32;", "&#101;", "&#46;", "&#45;", "&#0;", "&amp;", "&#38;#49;", "&",
	"\x00", "a", "_", ",", "inf", "nan", "é", "\xa0", "%31", "%00", "%", "%3", "+1",
}

var urlPieces = []string{
	"http:", "//", "/", "?", "?", "#", ":", "@", "[", "]", "80", "65535", "65536", "0", "00", "a", "A", "file:", "file://", "host", "user:pw@", "\x00", "\x1f", "\x7f",
	" ", "\t", "-1", "-0", "+8", "1a", "?a=1&b=2", "matomo.php", "matomo.php?idsite=1&rec=1", "http://h/m.php?", "::1", "c:", ".", "-", "%", "é",
}

// corpus gives the kept inputs of one kind: a quoted Go string a line, or several
// separated by spaces. Empty lines and lines that begin with "#" are left out.
func corpus(t testing.TB, name string) []string {
	t.Helper()
	data, err := os.ReadFile("testdata/corpus/" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	var inputs []string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		s, err := strconv.Unquote(line)
		if err != nil {
			t.Fatalf("%s: %s: %v", name, line, err)
		}
		inputs = append(inputs, s)
	}
	return inputs
}

// longQueries stand at and around PHP's limits.
func longQueries() []string {
	var queries []string
	for depth := MaxDepth - 2; depth <= MaxDepth+2; depth++ {
		nested := strings.Repeat("[x]", depth)
		for _, tail := range []string{"", "[", "[y", "[]", "y[z]", "[ ]"} {
			queries = append(queries, "a=1&a"+nested+tail+"=2&b=3", "a"+nested+tail+"=2&a=1", "..Host-"+nested+tail)
		}
		queries = append(queries, "a=1&a"+strings.Repeat("[", depth)+"=2", "a=1&a"+strings.Repeat("[", depth)+"]=2", "a=1&a"+strings.Repeat("[]", depth))
	}
	for n := MaxVars - 1; n <= MaxVars+2; n++ {
		queries = append(queries,
			numbered("v", n), strings.Repeat("=1&", n)+"a=1", strings.Repeat("&", n)+"a=1",
			strings.Repeat("a=1&", n)+"b=2", strings.Repeat("a[]=1&", n)+"b=2&a=3", numbered("&&v", n), numbered("a[", n))
	}
	return append(queries, "a="+strings.Repeat("%20", 1<<16)+"&b=1", strings.Repeat("x.", 1<<15)+"=1", strings.Repeat("[", 1<<15), "a"+strings.Repeat("%5B", 1<<15))
}

func numbered(name string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s%d=%d&", name, i, i)
	}
	return b.String()
}

// asBody makes a body that parse_str reads as PHP reads bodies: a raw NUL would
// end it.
func asBody(s string) string { return strings.ReplaceAll(s, "\x00", "") }

func TestCorpusIsReadAsPHPReadsIt(t *testing.T) {
	o := startOracle(t)
	queries := append(corpus(t, "queries"), longQueries()...)
	for _, q := range queries {
		o.compareParse(t, q)
		o.compareValue(t, q)
	}
	kept := corpus(t, "queries")
	for i, get := range kept {
		o.compareMerge(t, get, asBody(kept[(i*7+3)%len(kept)]))
		o.compareMerge(t, get, asBody(get))
		o.compareMerge(t, "", asBody(get))
	}
	for _, s := range corpus(t, "numbers") {
		o.compareValue(t, s)
	}
	for _, s := range corpus(t, "urls") {
		o.compareURL(t, s)
	}
}

func TestRandomInputsAreReadAsPHPReadsThem(t *testing.T) {
	o := startOracle(t)
	t.Run("queries", func(t *testing.T) {
		randomly(t, queryPieces, func(_ *rand.Rand, input func() string) {
			o.compareParse(t, input())
		})
	})
	t.Run("merged", func(t *testing.T) {
		randomly(t, queryPieces, func(_ *rand.Rand, input func() string) {
			o.compareMerge(t, input(), asBody(input()))
		})
	})
	t.Run("values", func(t *testing.T) {
		randomly(t, numberPieces, func(_ *rand.Rand, input func() string) { o.compareValue(t, input()) })
	})
	t.Run("urls", func(t *testing.T) {
		randomly(t, urlPieces, func(_ *rand.Rand, input func() string) { o.compareURL(t, input()) })
	})
}

// TestRequestsAreReadAsPHPReadsThem sends real requests: what PHP reads from a
// body differs from what it reads from a string.
func TestRequestsAreReadAsPHPReadsThem(t *testing.T) {
	o := startOracle(t)
	address := startPHPServer(t)
	check := func(get, post string) {
		t.Helper()
		// A server refuses these bytes in the request line.
		var line []byte
		for _, c := range []byte(get) {
			if c <= ' ' || c >= 0x7f || c == '#' {
				line = AppendEscaped(line, []byte{c})
				continue
			}
			line = append(line, c)
		}
		// PHP's own web server, other than real ones, drops a leading "?".
		get = strings.TrimLeft(string(line), "?")
		merged := Merge([]byte(get), []byte(post))
		serialized, err := base64.StdEncoding.DecodeString(request(t, address, get, post))
		if err != nil {
			t.Fatal(err)
		}
		if !o.holds(t, "serialized", string(serialized), string(merged)) {
			t.Errorf("PHP reads query %.3000q and body %.3000q otherwise than Merge, %.3000q", get, post, merged)
		}
	}

	many := func(n int) string { return strings.Repeat("&", n) }
	for n := MaxVars - 1; n <= MaxVars+2; n++ {
		check(strings.Repeat("a=1&", n)+"b=2", "")
		check("", strings.Repeat("a=1&", n)+"b=2")
		check("", strings.Repeat("=1&", n)+"b=2")
		check("", many(n)+"b=2&c=3")
		check(many(n)+"b=2&c=3", many(n)+"d=2&e=3")
		check(strings.Repeat("a=1&", n)+"b=2", strings.Repeat("c=1&a=2&", n/2)+"d=2")
	}
	check(numbered("v", MaxVars/2), numbered("w", MaxVars/2))
	check("a=1", "b=1\x00x&c\x00d=2&e=%\x0041&f=%4\x00")
	kept := corpus(t, "queries")
	for i, get := range kept {
		check(get, kept[(i*5+1)%len(kept)])
	}
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range min(*countFlag, 400) {
		check(randomText(r, queryPieces), randomText(r, queryPieces))
	}
}

// startPHPServer runs PHP's own web server on loopback until the test ends.
func startPHPServer(t *testing.T) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	cmd := exec.CommandContext(t.Context(), phpPath(t), append(phpSettings, "-S", address, "testdata/request.php")...)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start php: %v", err)
	}
	lines := bufio.NewScanner(log)
	for lines.Scan() && !strings.Contains(lines.Text(), "started") {
	}
	drained := make(chan struct{})
	go func() { // Ends when the server does.
		defer close(drained)
		io.Copy(io.Discard, log)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-drained
		cmd.Wait() // It was killed, so it reports that.
	})
	return address
}

func request(t *testing.T, address, get, post string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("dial php: %v", err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /?%s HTTP/1.1\r\nHost: php\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", get, len(post), post)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("query %q: %v", get, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("query %q: php answered %d, %v", get, response.StatusCode, err)
	}
	return string(body)
}
