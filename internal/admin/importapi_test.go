package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"sluice/internal/hit"
)

// randomHit has bytes of all kinds in all fields.
func randomHit(r *rand.Rand) hit.Pending {
	text := func() string {
		b := make([]byte, r.IntN(12))
		for i := range b {
			b[i] = byte(r.Uint32())
			if r.IntN(2) == 0 {
				b[i] = "abc\"\\<>&\u2028\x00\n{}"[r.IntN(15)]
			}
		}
		return string(b)
	}
	p := hit.Pending{
		ID:         hit.ID{Generation: r.Uint64(), Block: r.Uint64(), Index: r.Uint32()},
		ReceivedAt: time.Date(2026, 3, 1, 0, 0, 0, r.IntN(1e9), time.UTC).UnixNano(),
		Environment: &hit.Environment{
			ClientIP: text(), UserAgent: text(), AcceptLanguage: text(), Referer: text(), ClientHints: text(), VisitorCookie: text(),
			Headers: text(), DoNotTrack: r.IntN(2) == 0, DataSaver: r.IntN(2) == 0,
		},
		Hit: hit.Hit{
			Form: hit.Form(r.IntN(2)), Rights: hit.Rights(r.IntN(2)), Params: []byte(text()), Site: r.Int64() - 1<<62,
			At: r.Int64N(1 << 37),
		},
		Uncertain: uint64(r.IntN(2)),
	}
	if p.Rights == hit.Theirs {
		p.Token = text()
	}
	return p
}

func exported(t testing.TB, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestAnExportReadsBackAsItWas: all fields, all bytes, waiting or buried.
func TestAnExportReadsBackAsItWas(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		want := randomHit(r)
		line := exported(t, showPending(want, Export))
		if r.IntN(2) == 0 {
			want.Uncertain = 0
			line = exported(t, showDead(&hit.DeadLetter{ID: want.ID, ReceivedAt: want.ReceivedAt, BuriedAt: 7, Environment: *want.Environment,
				Hit: want.Hit, Reason: "poison", Status: 500, Answer: []byte("\xff<b>")}, Export))
		}
		got, err := parseExported(line)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%s\nreads back as %+v, %v\nwant %+v", line, got, err, want)
		}
	}
}

func TestOnlyWholeHitsAreImported(t *testing.T) {
	w := newWorld()
	waiting := string(exported(t, showPending(w.pending[1], Export)))
	buried := string(exported(t, showDead(w.dead[0], Export)))
	change := func(line, from, to string) string {
		if !strings.Contains(line, from) {
			t.Fatalf("no %s in %s", from, line)
		}
		return strings.Replace(line, from, to, 1)
	}
	for _, tt := range []struct{ name, line, want string }{
		{"as it is", waiting, ""},
		{"a letter as it is", buried, ""},
		{"masked", string(exported(t, showPending(w.pending[0], Masked))), errIncomplete.Error()},
		{"with its token hidden", string(exported(t, showPending(w.pending[1], Full))), errIncomplete.Error()},
		{"no object", "7", "it is not one JSON object"},
		{"half a line", waiting[:len(waiting)/2], "it is not one JSON object"},
		{"two objects", strings.TrimSpace(waiting) + waiting, "it is not one JSON object"},
		{"not UTF-8", change(waiting, `"e_c`, "\"e\xff_c"), "it is not UTF-8"},
		{"a field of a later version", change(waiting, `"request":{`, `"request":{"more":1,`), `json: unknown field "more"`},
		{"no id", change(waiting, `"id":"`, `"id":"x`), hit.ErrBadID.Error()},
		{"a letter of another hit", change(buried, `"id":"0000000000000007-`, `"id":"0000000000000008-`), "different ids"},
		{"an unknown form", change(waiting, `"form":"object"`, `"form":"xml"`), "form: want"},
		{"unknown rights", change(waiting, `"rights":"theirs"`, `"rights":""`), "rights: want"},
		{"an unknown state", change(waiting, `"state":"`, `"state":"un`), "state: want"},
		{"a token without rights", change(waiting, `"rights":"theirs"`, `"rights":"ours"`), "token_auth: only"},
		{"no time", change(waiting, `"received_at":"2026`, `"received_at":"9026`), "received_at or at"},
		{"bytes in two fields", change(waiting, `"client_ip":"`, `"client_ip_base64":"YQ==","client_ip":"`), "_base64"},
		{"no base64", change(waiting, `"client_ip":"203.0.113.77"`, `"client_ip_base64":"*","client_ip":""`), "_base64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseExported([]byte(tt.line))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestImportCountsEveryLine(t *testing.T) {
	w := newWorld()
	line := string(exported(t, showPending(w.pending[1], Export)))
	lines := line + "x\n\n" + line + line + "y\n" + line + line
	w.outcomes = []hit.Imported{hit.ImportTaken, hit.ImportBefore, hit.ImportRequeued, hit.ImportMoved, hit.ImportTaken}
	c := newPair(t, w, control)
	call := ImportCall{Who: "anna", ImportOrder: hit.ImportOrder{Again: true, DryRun: true}}
	got, err := c.Import(t.Context(), []byte(lines), call)
	why := hit.ImportMoved.String()
	want := Imported{V: 1, Lines: 8, Taken: 2, Requeued: 1, Skipped: map[string]int64{"imported before": 1}, Faulty: 3}
	if err != nil || len(got.Faults) != 3 || got.Faults[0].Line != 7 || got.Faults[0].Why != why || got.Faults[1].Line != 2 || got.Faults[2].Line != 6 {
		t.Errorf("%+v, %v", got, err)
	}
	if got.Faults = nil; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if len(w.imported) != 5 || w.order != call.ImportOrder {
		t.Errorf("%d hits with %+v", len(w.imported), w.order)
	}
	// The queue stops at the third hit, line 5: the fault behind it is not of this answer.
	w.outcomes, w.failing = w.outcomes[:2], errors.New("the queue is full")
	got, err = c.Import(t.Context(), []byte(lines), call)
	if err != nil || got.Lines != 4 || got.Stopped != "the queue is full" || got.Faulty != 1 || got.Taken != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := newPair(t, w, "").Import(t.Context(), []byte(lines), call); err == nil || !strings.Contains(err.Error(), "control key") {
		t.Errorf("without the key: %v", err)
	}
	if _, err := c.Import(t.Context(), bytes.Repeat([]byte("x"), MaxImport+1), call); err == nil {
		t.Error("a body without a limit")
	}
}

func TestAnswersAddUp(t *testing.T) {
	sum := NewImported()
	for i := range 4 {
		next := NewImported()
		next.Lines, next.Taken, next.Skipped["uncertain"] = 10, 3, 2
		for j := range 4 {
			next.Fault(ImportFault{Line: int64(j + 1), Why: "x"})
		}
		sum.Add(next, "f", int64(10*i+1))
	}
	if sum.Lines != 40 || sum.Taken != 12 || sum.Skipped["uncertain"] != 8 || sum.Faulty != 16 || len(sum.Faults) != maxFaults || sum.Faults[9].Line != 22 {
		t.Errorf("%+v", sum)
	}
}

// TestAListIsNeverShortWithoutSayingSo: a time that JSON cannot write.
func TestAListIsNeverShortWithoutSayingSo(t *testing.T) {
	w := newWorld()
	w.pending[1].At = 1 << 50
	last := error(nil)
	for _, err := range newPair(t, w, control).Hits(t.Context(), PeekFilter{}, Export) {
		last = err
	}
	if last == nil {
		t.Error("the list ends as if it were whole")
	}
}

func FuzzParseExported(f *testing.F) {
	w := newWorld()
	for _, p := range w.pending {
		f.Add(exported(f, showPending(p, Export)))
	}
	f.Add(exported(f, showDead(w.dead[0], Export)))
	f.Add(fmt.Append(nil, `{"hit":null}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		p, err := parseExported(line)
		if err != nil {
			return
		}
		shown := showPending(p, Export)
		if _, err := json.Marshal(shown); err != nil {
			return // a time that the line could say and an answer cannot
		}
		again, err := parseExported(exported(t, shown))
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("%+v reads back as %+v, %v", p, again, err)
		}
	})
}
