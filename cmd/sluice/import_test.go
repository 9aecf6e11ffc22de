package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/admin"
	"sluice/internal/hit"
	"sluice/queue"
)

// aStore gives a queue and a client that is in control of it.
func aStore(t *testing.T) (*queue.Queue, *admin.Client) {
	t.Helper()
	q, err := queue.Open(queue.Options{Dir: t.TempDir(), Reserve: 64 << 20, Log: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	room := queueRoom{q}
	server, err := admin.New(admin.Config{Control: "key"}, admin.Parts{
		Queue: room, Reader: room, DeadLetters: room, Importer: room, Drain: noDrain{}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	client, stop := admin.NewLocalClient(server.Handler(), "key")
	t.Cleanup(stop)
	return q, client
}

// leased leases n hits and gives them without their ids.
func leased(t *testing.T, q *queue.Queue, n int) (hits []hit.Pending, ids []hit.ID) {
	t.Helper()
	for len(hits) < n {
		got, err := q.Lease(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range got {
			ids = append(ids, p.ID)
			p.ID = hit.ID{}
			hits = append(hits, p)
		}
	}
	return hits, ids
}

// TestHitsAreTheSameInAnotherStore: everything of a hit survives export and import,
// waiting or buried.
func TestHitsAreTheSameInAnotherStore(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	bytesOf := func(n int) []byte {
		b := make([]byte, r.IntN(n))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	a, from := aStore(t)
	b, to := aStore(t)
	const sets, perSet = 60, 5
	for range sets {
		s := &hit.RequestSet{ReceivedAt: time.Now().UnixNano(), Environment: hit.Environment{
			ClientIP: "2001:db8::7", UserAgent: string(bytesOf(50)), AcceptLanguage: "de", Referer: string(bytesOf(9)), ClientHints: `{"HTTP_SEC_CH_UA":"x"}`,
			VisitorCookie: string(bytesOf(17)), Headers: "x-a: b\n", DoNotTrack: r.IntN(2) == 0, DataSaver: r.IntN(2) == 0,
		}}
		for range perSet {
			h := hit.Hit{Site: r.Int64N(5), At: time.Now().Unix() - r.Int64N(1e6), Params: append([]byte("rec=1&x="), bytesOf(300)...)}
			if r.IntN(3) == 0 {
				h.Form, h.Params = hit.Object, []byte(`{"rec":1,"x":"\u0000<é>"}`)
			}
			if r.IntN(3) == 0 {
				h.Rights, h.Token = hit.Theirs, "0123456789abcdef"
			}
			s.Hits = append(s.Hits, h)
		}
		if err := a.Append(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	var file bytes.Buffer
	for h, err := range from.Hits(t.Context(), admin.PeekFilter{}, admin.Export) {
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewEncoder(&file).Encode(h); err != nil {
			t.Fatal(err)
		}
	}
	want, ids := leased(t, a, sets*perSet)
	var list []hit.Settlement
	for _, id := range ids {
		list = append(list, hit.Settlement{ID: id, As: hit.Dead, Reason: "poison", Answer: []byte("no")})
	}
	if err := a.Settle(0, list); err != nil {
		t.Fatal(err)
	}
	var letters bytes.Buffer
	for d, err := range from.Dead(t.Context(), admin.DeadFilter{}, admin.Export) {
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewEncoder(&letters).Encode(d); err != nil {
			t.Fatal(err)
		}
	}
	done, err := to.Import(t.Context(), file.Bytes(), admin.ImportCall{})
	if err != nil || done.Taken != sets*perSet || done.Faulty+int64(len(done.Skipped)) != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	if got, _ := leased(t, b, sets*perSet); !reflect.DeepEqual(got, want) {
		t.Error("waiting hits are others in the second store")
	}
	// The letters are the same hits, so that the second store takes none of them, and the
	// first takes all.
	if done, err = to.Import(t.Context(), letters.Bytes(), admin.ImportCall{}); err != nil || done.Skipped["imported before"] != sets*perSet {
		t.Errorf("%+v, %v", done, err)
	}
	if done, err = from.Import(t.Context(), letters.Bytes(), admin.ImportCall{}); err != nil || done.Requeued != sets*perSet {
		t.Errorf("%+v, %v", done, err)
	}
	if got, _ := leased(t, a, sets*perSet); !reflect.DeepEqual(got, want) {
		t.Error("buried hits are others when they have come back")
	}
}

// importLines makes lines of an export of another store out of one of this.
func importLines(t *testing.T, line string, n int) string {
	t.Helper()
	_, rest, ok := strings.Cut(line, `","received_at"`)
	if !ok {
		t.Fatalf("an odd line: %s", line)
	}
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"id":"00000000000000aa-%d-%d","received_at"%s`, i/7+1, i%7, rest)
	}
	return b.String()
}

func TestImportCommand(t *testing.T) {
	s := startServer(t, filepath.Join(t.TempDir(), "data"), nobody)
	s.hit("idsite=1&rec=1&url=http://shop.example/a")
	_, line, _ := s.run("queue", "export")
	all := importLines(t, line, 2500)
	parts := strings.SplitAfter(all, "\n")
	parts[1500] = "secret-query\n" + parts[1500]
	good := file(t, "good.jsonl", all, 0o600)
	bad := file(t, "bad.jsonl", strings.Join(parts, ""), 0o600)
	long := file(t, "long.jsonl", parts[0]+strings.Repeat("x", admin.MaxImport)+"\n"+"y", 0o600)
	masked := file(t, "masked.jsonl", strings.Replace(line, `"complete":true`, `"complete":false`, 1), 0o600)
	for _, tt := range []struct {
		name, args string
		code       int
		want       string
	}{
		{"a dry run takes nothing", "--dry-run " + good, 0, "ok  2,500 hits would be taken\n"},
		{"faulty lines do not stop the others", bad, 1, "ok  2,500 hits wait\nXX  1 lines cannot be taken\n    " + bad + ", line 1501: it is not one JSON object: invalid character 's' looking for beginning of value\n"},
		{"a second import takes nothing", good, 0, "ok  0 hits wait\n--  2,500 hits skipped: imported before\n"},
		{"a line without an end", long, 1, "ok  0 hits wait\n--  1 hits skipped: imported before\nXX  2 lines cannot be taken\n    " + long + ", line 2: it is longer than 16.0 MiB\n    " + long + ", line 3: "},
		{"what is not whole", masked, 1, "ok  0 hits wait\nXX  1 lines cannot be taken\n    " + masked + ", line 1: it does not hold the whole hit: want a line of \"sluice queue export\"\n"},
		{"standard input, empty", "-", 0, "ok  0 hits wait\n"},
		{"as JSON", "--json " + good, 0, `{"v":1,"lines":2500,"taken":0,"requeued":0,"skipped":{"imported before":2500},"faulty":0,"faults":[]}` + "\n"},
		{"a missing file", "/no/such/file", 1, "sluice: queue import: open /no/such/file: no such file or directory\n"},
		{"without the key", good + " --data-dir=/nowhere", 77, "sluice: queue import: this needs the admin token"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var code int
			var stdout, stderr string
			args := append([]string{"queue", "import"}, strings.Fields(tt.args)...)
			if strings.Contains(tt.args, "--data-dir") {
				code, stdout, stderr = command(nil, append(args, "--admin.listen="+s.private)...)
			} else {
				code, stdout, stderr = s.run(args...)
			}
			if code != tt.code || !strings.HasPrefix(stdout+stderr, tt.want) {
				t.Errorf("exit %d\n%s%swant %d\n%s", code, stdout, stderr, tt.code, tt.want)
			}
			if strings.Contains(stdout+stderr+s.log.String(), "secret-query") {
				t.Error("the content of a line is shown")
			}
		})
	}
	own := file(t, "own.jsonl", line, 0o600)
	if code, stdout, stderr := s.run("queue", "import", own); code != 0 || stdout != "ok  0 hits wait\n--  1 hits skipped: waiting here\n" {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	if _, stdout, _ := s.run("queue", "stats"); !strings.HasPrefix(stdout, "accepted 2,501 = delivered 0 + invalid 0 + dead 0 + pending 2,501     ok\n") {
		t.Errorf("stats:\n%s", stdout)
	}
}

// TestAnImportSaysHowFarItGot when the queue is full, and goes on from there.
func TestAnImportSaysHowFarItGot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := startServer(t, dir, nobody)
	s.hit("idsite=1&rec=1&url=http://shop.example/" + strings.Repeat("a", 4000))
	_, line, _ := s.run("queue", "export")
	path := file(t, "all.jsonl", importLines(t, line, 600), 0o600)
	s.stop()
	free, _, err := queue.FreeSpace(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Half of the disk must stay free, and more: it does not.
	s = startServer(t, dir, nobody, fmt.Sprintf("--queue.reserve=%dB", min(free+free/2, 1<<40)))
	code, stdout, stderr := s.run("queue", "import", path)
	want := "sluice: queue import: stopped at line 1 of " + path + ": import: the queue is full: free disk space is below the reserve\n  try: the same command again"
	if code != 1 || !strings.HasPrefix(stdout+stderr, want) {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	s.stop()
	s = startServer(t, dir, nobody)
	if code, stdout, stderr = s.run("queue", "import", path); code != 0 || stdout != "ok  600 hits wait\n" {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
}

func TestBadRetentionIsRefused(t *testing.T) {
	for value, want := range map[string]int{"0": 0, "30m": exitSettings, "720h": 0, "87601h": exitSettings} {
		code, stdout, stderr := command(nil, "check", "--data-dir="+t.TempDir(), "--queue.reserve=64MiB", "--matomo.url=http://m", "--queue.dead-retention="+value)
		if code != want || want != 0 && !strings.Contains(stdout+stderr, "want 0 (until they are sent again), or 1h to 87600h") {
			t.Errorf("%s: exit %d, %s%s", value, code, stdout, stderr)
		}
	}
}
