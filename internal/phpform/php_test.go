package phpform

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")
	countFlag = flag.Int("count-random", 15000, "random inputs for each comparison with PHP")
)

// phpSettings are PHP's own defaults, whatever php.ini the machine has.
var phpSettings = []string{
	"-n", "-d", "max_input_vars=1000", "-d", "max_input_nesting_level=64",
	"-d", "arg_separator.input=&", "-d", "error_reporting=0", "-d", "log_errors=0",
}

func phpPath(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("php")
	if err != nil {
		t.Fatalf("php is not installed, and these tests compare with PHP itself: `make test` installs it (%v)", err)
	}
	return path
}

// An oracle is a running PHP that answers questions about inputs.
type oracle struct {
	in  io.Writer
	out *bufio.Reader
}

func startOracle(t testing.TB) *oracle {
	t.Helper()
	cmd := exec.Command(phpPath(t), append(phpSettings, "testdata/oracle.php")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start php: %v", err)
	}
	t.Cleanup(func() {
		in.Close() // The script ends with its input.
		if err := cmd.Wait(); err != nil {
			t.Errorf("php ended with %v", err)
		}
	})
	return &oracle{in: in, out: bufio.NewReaderSize(out, 1<<20)}
}

// ask reads PHP's answer into answer.
func (o *oracle) ask(t testing.TB, answer any, operation string, arguments ...string) {
	t.Helper()
	line := []byte(operation)
	for _, a := range arguments {
		line = append(line, ' ')
		line = base64.StdEncoding.AppendEncode(line, []byte(a))
	}
	if _, err := o.in.Write(append(line, '\n')); err != nil {
		t.Fatalf("write to php: %v", err)
	}
	got, err := o.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("read from php: %v", err)
	}
	if err := json.Unmarshal(got, answer); err != nil {
		t.Fatalf("php answered %q: %v", got, err)
	}
}

func (o *oracle) holds(t testing.TB, operation string, arguments ...string) bool {
	t.Helper()
	var yes bool
	o.ask(t, &yes, operation, arguments...)
	return yes
}

// A variable is one of PHP's; Value is nil for an array. Both strings travel as
// bytes, which JSON writes in base64.
type variable struct {
	Name  []byte
	Value *[]byte
}

func (o *oracle) parse(t testing.TB, query string) []variable {
	t.Helper()
	var list [][2]*[]byte
	o.ask(t, &list, "parse", query)
	variables := make([]variable, len(list))
	for i, pair := range list {
		variables[i] = variable{*pair[0], pair[1]}
	}
	return variables
}

// compareParse reports how Parse and Pairs differ from PHP for one query.
func (o *oracle) compareParse(t testing.TB, query string) {
	t.Helper()
	form := Parse([]byte(query))
	want := o.parse(t, query)
	for _, v := range want {
		value, kind := form.Raw(string(v.Name))
		if v.Value == nil {
			if kind != Array {
				t.Errorf("query %q: %q is %v, PHP has an array", query, v.Name, kind)
			}
			continue
		}
		if kind != Scalar || value != string(*v.Value) {
			t.Errorf("query %q: %q is %v %q, PHP has %q", query, v.Name, kind, value, *v.Value)
		}
	}
	names := make(map[string]Kind)
	for p := range Pairs([]byte(query)) {
		switch {
		case p.Removed:
			delete(names, string(p.Name))
		case p.Array:
			names[string(p.Name)] = Array
		default:
			names[string(p.Name)] = Scalar
		}
	}
	for name, kind := range names {
		if form.Kind(name) != kind {
			t.Errorf("query %q: Pairs has %q as %v, Parse as %v", query, name, kind, form.Kind(name))
		}
	}
	if len(names) != len(want) {
		t.Errorf("query %q: %d variables, PHP has %d", query, len(names), len(want))
	}

	again := AppendReencoded(nil, []byte(query))
	if !o.holds(t, "same", query, string(again)) {
		t.Errorf("query %q: PHP reads the re-encoded %q otherwise", query, again)
	}
	if twice := AppendReencoded(nil, again); string(twice) != string(again) {
		t.Errorf("query %q: re-encoded twice is %q, once %q", query, twice, again)
	}
}

func (o *oracle) compareMerge(t testing.TB, get, post string) {
	t.Helper()
	if merged := Merge([]byte(get), []byte(post)); !o.holds(t, "merged", get, post, string(merged)) {
		t.Errorf("PHP reads Merge(%q, %q) = %q otherwise", get, post, merged)
	}
}

func (o *oracle) compareURL(t testing.TB, s string) {
	t.Helper()
	var want *[]byte
	o.ask(t, &want, "query", s)
	got, ok := ParseURLQuery(s)
	if ok != (want != nil) || ok && got != string(*want) {
		text := "none"
		if want != nil {
			text = strconv.Quote(string(*want))
		}
		t.Errorf("ParseURLQuery(%q) = %q, %v, PHP has %s", s, got, ok, text)
	}
}

// compareValue compares how one value is read, as bytes and as a number.
func (o *oracle) compareValue(t testing.TB, s string) {
	t.Helper()
	var decoded []byte
	if o.ask(t, &decoded, "decode", s); Unescape([]byte(s)) != string(decoded) {
		t.Errorf("Unescape(%q) = %q, PHP has %q", s, Unescape([]byte(s)), decoded)
	}
	var encoded []byte
	if o.ask(t, &encoded, "encode", s); string(AppendEscaped(nil, s)) != string(encoded) {
		t.Errorf("AppendEscaped(%q) = %q, PHP has %q", s, AppendEscaped(nil, s), encoded)
	}
	if want := o.holds(t, "empty", s); Empty(s) != want {
		t.Errorf("Empty(%q) = %v, PHP has %v", s, !want, want)
	}
	var want string
	if o.ask(t, &want, "intval", s); fmt.Sprint(Intval(s)) != want {
		t.Errorf("Intval(%q) = %d, PHP has %s", s, Intval(s), want)
	}
	const def = -77
	query := "v=" + string(encoded)
	o.ask(t, &want, "int", query, "v", fmt.Sprint(def))
	if got := Parse([]byte(query)).Int("v", def); fmt.Sprint(got) != want {
		t.Errorf("Int of %q = %d, Matomo reads %s (default %d)", s, got, want, def)
	}
}

// randomly runs check on random inputs made from pieces. The seed is logged, and
// -seed runs the same inputs again.
func randomly(t *testing.T, pieces []string, check func(r *rand.Rand, input func() string)) {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range *countFlag {
		check(r, func() string { return randomText(r, pieces) })
		if t.Failed() {
			return
		}
	}
}

func randomText(r *rand.Rand, pieces []string) string {
	var b strings.Builder
	for range 1 + r.IntN(14) {
		if r.IntN(30) == 0 {
			b.WriteByte(byte(r.IntN(256)))
			continue
		}
		b.WriteString(pieces[r.IntN(len(pieces))])
	}
	return b.String()
}
