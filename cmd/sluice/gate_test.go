package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/archivegate"
	"sluice/internal/hit"
	"sluice/internal/testkit"
	"sluice/queue"
)

// noonZone is a timezone where it is about noon now, so that 20 hours ago was yesterday
// there whenever the test runs.
func noonZone() string {
	return fmt.Sprintf("UTC%+d", 12-time.Now().UTC().Hour())
}

// live runs a command against an edge, with the time as it is. What the arguments say
// counts more than where this edge is.
func (s *server) live(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(&process{
		args: args, env: []string{"SLUICE_ADMIN_LISTEN=" + s.private, "SLUICE_DATA_DIR=" + s.dir}, stdin: strings.NewReader(""), stdout: &out, stderr: &errs,
		signals: make(chan os.Signal), now: time.Now, zone: time.UTC, pid: 1,
	})
	return code, out.String(), errs.String()
}

// yesterday is a hit of 20 hours ago.
func yesterday(site int) string {
	return fmt.Sprintf("idsite=%d&rec=1&url=http%%3A%%2F%%2Fexample.org%%2F&cdt=%d", site, time.Now().Add(-20*time.Hour).Unix())
}

// A day goes through its states, and the commands say so with their exit codes.
func TestGateFollowsADay(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{Sites: []testkit.Site{{ID: 1, Timezone: noonZone()}, {ID: 2, Timezone: noonZone()}}})

	token := file(t, "token", testkit.SuperToken, 0o600)
	s := startServer(t, filepath.Join(t.TempDir(), "data"), m.Serve(t), "--matomo.token-file="+token)
	must := func(want int, wanted string, args ...string) string {
		t.Helper()
		code, stdout, stderr := s.live(args...)
		if code != want || !strings.Contains(stdout+stderr, wanted) {
			t.Fatalf("sluice %s: exit %d, %q, %q; want %d with %q", strings.Join(args, " "), code, stdout, stderr, want, wanted)
		}
		return stdout
	}
	must(0, "complete", "gate", "check", "--all", "--wait=30s", "--interval=1s") // once the probes have answered

	must(0, "paused", "drain", "pause")
	if code := s.hit(yesterday(1)); code != 200 {
		t.Fatalf("a hit was answered with %d", code)
	}
	must(75, "reopened  site 1", "gate", "check", "--site=1", "--date=finished")
	must(75, "1 hits wait", "gate", "check", "--all")
	must(0, "complete  site 2", "gate", "check", "--site", "2", "--date", "yesterday")
	if out := must(0, "", "gate", "sites", "--complete"); out != "2\n" {
		t.Errorf("complete sites: %q, want 2", out)
	}
	if out := must(75, "", "gate", "check", "--all", "-q"); out != "" {
		t.Errorf("-q prints %q", out)
	}
	if out := must(75, "", "gate", "check", "--site=2", "--date=today", "-q"); out != "" {
		t.Errorf("-q prints %q", out)
	}
	s.hit(yesterday(2))
	if out := must(75, "", "gate", "sites", "--complete"); out != "" {
		t.Errorf("with no complete site this is printed: %q", out)
	}
	must(75, "", "gate", "check", "--wait=2s", "--interval=1s", "-q")
	must(0, "let through", "gate", "check", "--site=1", "--max-hold=10m")
	must(0, "reopened", "gate", "sites")
	must(0, "2026", "gate", "status", "--date=2026-01-05")

	must(0, "", "drain", "resume")
	must(0, "complete  2 of 2 sites", "gate", "wait", "--all", "--for=30s", "--interval=1s")
	if out := must(0, "", "gate", "sites", "--complete", "--date=yesterday"); out != "1,2\n" {
		t.Errorf("complete sites: %q, want 1,2", out)
	}
	var a archivegate.Answer
	if err := json.Unmarshal([]byte(must(0, "", "gate", "check", "--site=1", "--json")), &a); err != nil {
		t.Fatal(err)
	}
	if a.Accepted != 1 || a.Imported != 1 || a.Pending != 0 || !a.Complete || a.Epoch != 2 || a.Zone != noonZone() {
		t.Errorf("answer %+v", a)
	}
	must(0, "agree", "gate", "rebuild")

	must(0, "held by logs", "gate", "hold", "logs", "--for=1h", "--site=2")
	must(75, "held by logs", "gate", "check")
	must(0, "held by logs", "gate", "status")
	must(0, "released", "gate", "release", "logs")
	must(64, "no such hold", "gate", "release", "logs")
	must(0, "", "gate", "check", "-q", "--wait=5s", "--interval=1s")
}

func TestGateLockRunsOneCommandAtATime(t *testing.T) {
	run := startServer(t, filepath.Join(t.TempDir(), "data"), nobody).live
	if code, stdout, _ := run("gate", "lock", "--", "sh", "-c", "echo inside; exit 3"); code != 3 || stdout != "inside\n" {
		t.Errorf("exit %d, %q; want the command's 3", code, stdout)
	}
	began, goOn := filepath.Join(t.TempDir(), "began"), filepath.Join(t.TempDir(), "go")
	done := make(chan int, 1)
	go func() {
		code, _, _ := run("gate", "lock", "--for=10s", "sh", "-c", "touch "+began+"; while [ ! -e "+goOn+" ]; do sleep .05; done")
		done <- code
	}()
	deadline := time.Now().Add(20 * time.Second)
	for _, err := os.Stat(began); err != nil && time.Now().Before(deadline); _, err = os.Stat(began) {
		time.Sleep(10 * time.Millisecond)
	}
	if code, stdout, stderr := run("gate", "lock", "echo", "inside"); code != 75 || stdout != "" || !strings.Contains(stderr, "has it until") {
		t.Errorf("a second one: exit %d, %q, %q; want 75", code, stdout, stderr)
	}
	if code, _, _ := run("gate", "lock", "--name=other", "true"); code != 0 {
		t.Errorf("another name: exit %d", code)
	}
	if err := os.WriteFile(goOn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 0 {
		t.Errorf("the first one: exit %d", code)
	}
	if code, _, _ := run("gate", "lock", "true"); code != 0 {
		t.Errorf("after it: exit %d", code)
	}
	if code, _, stderr := run("gate", "lock", "/no/such/command"); code != 64 {
		t.Errorf("no command: exit %d, %s", code, stderr)
	}
}

// Whatever goes wrong has its own code and a clear line, and is never "complete".
func TestGateRefusals(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{Sites: []testkit.Site{{ID: 1, Timezone: "UTC"}, {ID: 2, Timezone: "Mars/Olympus"}, {ID: 3, Timezone: "Pacific/Apia"}}})

	token := file(t, "token", testkit.SuperToken, 0o600)
	s := startServer(t, filepath.Join(t.TempDir(), "data"), m.Serve(t), "--matomo.token-file="+token)
	if code, stdout, _ := s.live("gate", "check", "--site=1", "--wait=30s", "--interval=1s"); code != 0 {
		t.Fatalf("exit %d, %s", code, stdout)
	}
	guarded := startServer(t, filepath.Join(t.TempDir(), "data"), nobody, "--admin.token-file="+file(t, "admin", "0123456789abcdef0123456789abcdef", 0o600))
	wrong := file(t, "wrong", "fedcba9876543210fedcba9876543210", 0o600)
	tests := []struct {
		name string
		args string
		code int
		text string
	}{
		{"unknown site", "gate check --site=99", 64, "no such site: 99"},
		{"no number", "gate check --site=shop", 64, "want one site's number"},
		{"no day", "gate check --date=gestern", 64, "want YYYY-MM-DD"},
		{"a day that the calendar does not have", "gate check --date=2026-02-30", 64, "2026-02-30"},
		{"a day before the site was made", "gate check --site=1 --date=1995-01-01", 64, "made on"},
		{"a day that the place left out", "gate check --site=3 --date=2011-12-30", 64, "had no 2011-12-30"},
		{"unknown timezone", "gate check --site=2", 75, "Mars/Olympus"},
		{"one of all is unknown", "gate check --all", 75, "unknown"},
		{"nobody there", "gate check --admin.listen=127.0.0.1:1", 75, "no Sluice is running"},
		{"nobody at the address", "gate check --url=http://127.0.0.1:1", 75, "no Sluice is running"},
		{"no address", "gate check --url=127.0.0.1:1", 64, "want an address"},
		{"wrong token", "gate check --url=http://" + guarded.private + " --admin.token-file=" + wrong, 77, "admin token"},
		{"no token", "gate check --url=http://" + guarded.private, 77, "admin token"},
		{"wrong token while waiting", "gate wait --for=1m --url=http://" + guarded.private + " --admin.token-file=" + wrong, 77, "admin token"},
		{"wrong settings", "gate check --admin.token-file=/no/such/file", 78, "admin.token-file"},
		{"wrong flag", "gate check --day=today", 64, "unknown flag"},
		{"two forms", "gate sites --complete --json", 64, "--complete"},
		{"a bad hold", "gate hold a/b", 64, "a name is"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := s.live(strings.Fields(tt.args)...)
			if code != tt.code || !strings.Contains(stdout+stderr, tt.text) || strings.Contains(stdout, "complete  ") {
				t.Errorf("exit %d, %q, %q; want %d with %q", code, stdout, stderr, tt.code, tt.text)
			}
		})
	}
}

// MySQL, or Matomo, away at the start: what was kept of the list tells what it can.
func TestGateWithoutMatomo(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{Sites: []testkit.Site{{ID: 1, Timezone: noonZone()}}})
	dir := filepath.Join(t.TempDir(), "data")
	token := file(t, "token", testkit.SuperToken, 0o600)
	s := startServer(t, dir, nobody, "--matomo.token-file="+token)
	if code, stdout, _ := s.live("gate", "check"); code != 75 || !strings.Contains(stdout, "unknown") || !strings.Contains(stdout, "not known") {
		t.Errorf("without any list: exit %d, %q; want 75, unknown", code, stdout)
	}
	s.stop()
	s = startServer(t, dir, m.Serve(t), "--matomo.token-file="+token)
	if code, stdout, _ := s.live("gate", "check", "--wait=30s", "--interval=1s"); code != 0 {
		t.Errorf("exit %d, %q; want complete", code, stdout)
	}
	s.stop()
	s = startServer(t, dir, nobody, "--matomo.token-file="+token, "--gate.queued-tracking=ignore")
	s.hit(yesterday(1))
	if code, stdout, _ := s.live("gate", "check", "--site=1"); code != 75 || !strings.Contains(stdout, "reopened") {
		t.Errorf("with a kept list and a hit that waits: exit %d, %q; want reopened", code, stdout)
	}
}

// A million hits over forty zones and the clock changes of three years are counted
// twice: by the queue and the gate, and hit by hit with the clock on the wall.
func TestCountersAgreeWithEveryHit(t *testing.T) {
	n := *gateHits
	counted := countHits(t, n)
	if counted < int64(n)/2 {
		t.Errorf("%d of %d hits were compared", counted, n)
	}
}

var gateHits = flag.Int("gate-hits", 30_000, "hits of the comparison of the gate's counters with every hit")

// countHits gives how many hits of all days were compared.
func countHits(t *testing.T, n int) (compared int64) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	from, until := time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	q, err := queue.Open(queue.Options{
		Dir: t.TempDir(), Reserve: 64 << 20, Log: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet(),
		Now: func() time.Time { return from }, // no counter is so old that it is let go
	})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()

	type day struct{ accepted, pending int64 }
	places := make([]*time.Location, len(gateZones))
	brute := make([]map[string]day, len(gateZones))
	var sites []archivegate.Site
	for i, name := range gateZones {
		if places[i], err = time.LoadLocation(name); err != nil {
			t.Fatal(err)
		}
		brute[i] = map[string]day{}
		sites = append(sites, archivegate.Site{ID: int64(i + 1), Zone: name, Created: from})
	}
	left := 0 // hits that stay pending
	for done := 0; done < n; {
		set := &hit.RequestSet{ReceivedAt: from.UnixNano()}
		for range min(500, n-done) {
			i := rng.IntN(len(places))
			at := from.Add(time.Duration(rng.Int64N(int64(until.Sub(from)))))
			if rng.IntN(2) == 0 { // around a change of the clock, where there is one
				if start, _ := at.In(places[i]).ZoneBounds(); start.After(from) {
					at = start.Add(time.Duration(rng.IntN(52*3600)-26*3600) * time.Second)
				}
			}
			at = at.Truncate(time.Second)
			d := brute[i][at.In(places[i]).Format(time.DateOnly)]
			d.accepted++
			params := "settled"
			if rng.IntN(n/300+1) == 0 {
				params, left = "left", left+1
				d.pending++
			}
			brute[i][at.In(places[i]).Format(time.DateOnly)] = d
			set.Hits = append(set.Hits, hit.Hit{Site: int64(i + 1), At: at.Unix(), Params: []byte(params)})
		}
		if err := q.Append(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		done += len(set.Hits)
	}
	for seen := 0; seen < n; {
		pending, err := q.Lease(t.Context(), 2000)
		if err != nil {
			t.Fatal(err)
		}
		seen += len(pending)
		var list []hit.Settlement
		for _, p := range pending {
			if string(p.Params) == "settled" {
				list = append(list, hit.Settlement{ID: p.ID, As: hit.Delivered})
			}
		}
		if err := q.Settle(0, list); err != nil {
			t.Fatal(err)
		}
	}
	for q.Stats().Pending != int64(left) {
		time.Sleep(time.Millisecond) // the last settlements are written within 100 ms
	}

	after := until.AddDate(0, 0, 3) // the last day below is over in every zone
	g, err := archivegate.New(archivegate.Config{Edge: "e"}, archivegate.Parts{
		Ledger: ledgerRoom{q}, Arrivals: arrived{after}, Drain: func() archivegate.Drain { return archivegate.Drain{} }, Lister: listOf(sites), Keeper: keeper{t.TempDir()},
		Log: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet(), Now: func() time.Time { return after },
	})
	if err != nil {
		t.Fatal(err)
	}
	waiting := make([]int64, len(sites))
	for d := from.AddDate(0, 0, -3); !d.After(until.AddDate(0, 0, 1)); d = d.AddDate(0, 0, 1) {
		date := d.Format(time.DateOnly)
		answers, err := g.Sites(t.Context(), archivegate.Query{Date: date})
		if err != nil {
			continue // before the sites were made
		}
		for _, a := range answers {
			i := a.Site - 1
			want := brute[i][date]
			waiting[i] += want.pending
			compared += a.Accepted
			if a.Accepted != want.accepted || a.Pending != waiting[i] || (a.State == archivegate.StateComplete) != (waiting[i] == 0) {
				t.Fatalf("%s, %s: %d accepted, %d pending, %s; want %d and %d", a.Zone, date, a.Accepted, a.Pending, a.State, want.accepted, waiting[i])
			}
		}
	}
	return compared
}

// arrived stands for a public listener without requests.
type arrived struct{ at time.Time }

func (a arrived) Written() time.Time { return a.at }

type listOf []archivegate.Site

func (l listOf) Sites(context.Context) ([]archivegate.Site, error) { return l, nil }

// gateZones change their clocks in many ways, or never.
var gateZones = []string{
	"UTC", "Europe/Berlin", "Europe/London", "Europe/Lisbon", "Europe/Moscow", "Europe/Chisinau", "America/New_York", "America/Chicago", "America/Phoenix",
	"America/St_Johns", "America/Santiago", "America/Sao_Paulo", "America/Havana", "America/Asuncion", "America/Caracas", "America/Nuuk", "America/Scoresbysund",
	"Africa/Cairo", "Africa/Casablanca", "Africa/Lagos", "Asia/Beirut", "Asia/Gaza", "Asia/Tehran", "Asia/Kolkata", "Asia/Kathmandu", "Asia/Tokyo", "Asia/Almaty",
	"Asia/Yangon", "Australia/Lord_Howe", "Australia/Adelaide", "Australia/Eucla", "Australia/Sydney", "Pacific/Auckland", "Pacific/Chatham", "Pacific/Apia",
	"Pacific/Kiritimati", "Pacific/Easter", "Pacific/Marquesas", "Atlantic/Azores", "US/Pacific",
}
