package main

import (
	"bufio"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestPartsAreChosenBy(t *testing.T) {
	tests := []struct {
		name, only, want string
	}{
		{"nothing: all", "", partNames()},
		{"a whole name", "accept-http-64", "accept-http-64"},
		{"the beginning of names up to a dash", "accept-http", "accept-http-64, accept-http-256"},
		{"several, in the order in which they run", "drain,accept-https-64", "accept-https-64, drain"},
		{"two beginnings", "files-gzip,pages", "files-gzip-64, files-gzip-256, pages-64"},
		{"a beginning that ends within a word: none", "accept-htt", "error"},
		{"an unknown name beside a known one: none", "drain,sink", "error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			chosen, err := choose(tt.only)
			var names []string
			for _, p := range chosen {
				names = append(names, p.name)
			}
			got := strings.Join(names, ", ")
			if err != nil {
				got = "error"
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLoadIsReadFromWhatWrkPrints(t *testing.T) {
	const text = "Running 3s test\n  1 threads and 64 connections\nRequests/sec:  10.00\n" +
		"bench requests=30000 us=3000000 p50=1500 p99=9000 notok=2 socket=1\n"
	got, err := parseLoad(text)
	want := load{Requests: 30000, Took: 3 * time.Second, P50: 1500 * time.Microsecond, P99: 9 * time.Millisecond, NotOK: 2, SocketFaults: 1}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "bench requests=x", "bench requests=0 us=1 p50=0 p99=0 notok=0 socket=0"} {
		if got, err := parseLoad(bad); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, got)
		}
	}
}

func TestProcFilesAreRead(t *testing.T) {
	const stat = "42 (a (b) c) S 1 42 42 0 -1 4194304 1 2 3 4 150 50 0 0 20 0 9 0 1 1 1"
	if got, want := statTime(stat), 2*time.Second; got != want {
		t.Errorf("CPU time: got %v, want %v", got, want)
	}
	if got := statTime("gone"); got != 0 {
		t.Errorf("CPU time of nothing: got %v, want 0", got)
	}
	if got, want := statusBytes("VmRSS:\t  99 kB\nRssAnon:\t    2048 kB\n", "RssAnon:"), int64(2<<20); got != want {
		t.Errorf("anonymous memory: got %d, want %d", got, want)
	}
	if anonMemory(os.Getpid()) == 0 {
		t.Error("anonymous memory of this process: got 0")
	}
}

func TestMetricsAreReadWithTheirLabels(t *testing.T) {
	m := parseMetrics("# HELP a b\na{x=\"y z\"} 2\nb 1e3\nbad\n")
	if got := m.get(`a{x="y z"}`); got != 2 {
		t.Errorf("with labels: got %v, want 2", got)
	}
	if got := m.get("b"); got != 1000 {
		t.Errorf("without: got %v, want 1000", got)
	}
	if got := m.get("missing"); !math.IsNaN(got) {
		t.Errorf("missing: got %v, want not a number", got)
	}
}

func TestMissingMetricsFailTheCheckOfAcceptedHits(t *testing.T) {
	ours := []load{{Requests: 10}}
	good := samples{storedHits: 12, pendingHits: 12, difference: 0}
	if err := checkAccepted(good, nil, ours); err != nil {
		t.Errorf("all there: got %v, want nil", err)
	}
	for name := range good {
		m := samples{storedHits: 12, pendingHits: 12, difference: 0}
		delete(m, name)
		if checkAccepted(m, nil, ours) == nil {
			t.Errorf("without %s: got nil, want an error", name)
		}
	}
	if checkAccepted(samples{storedHits: 12, pendingHits: 11, difference: 0}, nil, ours) == nil {
		t.Error("a hit stored and not pending: got nil, want an error")
	}
	if checkAccepted(samples{storedHits: 9, pendingHits: 9, difference: 0}, nil, ours) == nil {
		t.Error("a hit answered and not stored: got nil, want an error")
	}
	if checkAccepted(good, nil, []load{{Requests: 10, NotOK: 1}}) == nil {
		t.Error("an answer that is not 2xx: got nil, want an error")
	}
}

func TestAnswersAreReadOneAfterTheOther(t *testing.T) {
	r := bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nGIFHTTP/1.1 204 No Content\r\nDate: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"))
	for _, want := range []int{200, 204} {
		if got, err := readAnswer(r); err != nil || got != want {
			t.Fatalf("got %d, %v, want %d", got, err, want)
		}
	}
	if got, err := readAnswer(r); err == nil {
		t.Errorf("a body cut short: got %d, want an error", got)
	}
	if got, err := readAnswer(bufio.NewReader(strings.NewReader("SSH-2.0-x\r\n\r\n"))); err == nil {
		t.Errorf("not HTTP: got %d, want an error", got)
	}
}

func TestSamplesMakeRequestsAndSets(t *testing.T) {
	list, err := loadSamples(filepath.Join("..", "..", "..", "testdata", "bench", "hits.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(list), 400; got != want {
		t.Errorf("got %d hits, want %d", got, want)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range list {
		head := string(list[i].request())
		if strings.Count(head, "\r\n") != 6 || !strings.HasPrefix(head, "GET /") || !strings.HasSuffix(head, "\r\n\r\n") {
			t.Fatalf("hit %d: bad request %q", i, head)
		}
		if s := list[i].set(5e9, rng); s.Hits[0].Site == 0 || s.Hits[0].At != 5 || len(s.Hits[0].Params) == 0 {
			t.Fatalf("hit %d: bad set %+v", i, s)
		}
	}
}

func TestMedianIsTheMiddle(t *testing.T) {
	if got := median([]float64{9, 1, 5}); got != 5 {
		t.Errorf("got %v, want 5", got)
	}
	if got := median([]float64{7}); got != 7 {
		t.Errorf("got %v, want 7", got)
	}
	if got, want := thousands(1234567), "1,234,567"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestVariedHitsDifferInTheirOwnParametersOnly(t *testing.T) {
	s := sample{Query: "action_name=Page+9&idsite=4&r=834909&_id=00fdfeae8e903fd9&url=https%3A%2F%2Fa%2Fr&pv_id=cwDamt"}
	rng := rand.New(rand.NewPCG(1, 2))
	got := string(s.vary(rng))
	if got == s.Query || len(got) != len(s.Query) {
		t.Errorf("got %q, want another query of the same length as %q", got, s.Query)
	}
	want, have := strings.Split(s.Query, "&"), strings.Split(got, "&")
	for _, i := range []int{0, 1, 4} {
		if have[i] != want[i] {
			t.Errorf("got %q, want %q", have[i], want[i])
		}
	}
}

func TestOthersAreWhatTheMachineDidBesides(t *testing.T) {
	line := "cpu  100 0 50 9999 9999 10 20 20 70 0"
	if got, want := busyTime(line), 2*time.Second; got != want {
		t.Errorf("busy: got %v, want %v", got, want)
	}
	from := usage{}
	to := usage{at: time.Second, machine: time.Second, own: time.Second / 2}
	if got, want := others(from, to)*float64(runtime.NumCPU()), 0.5; got != want {
		t.Errorf("others: got %v CPUs, want %v", got, want)
	}
}
