package admin

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sluice/internal/hit"
)

func newPair(t *testing.T, w *world, key string) *Client {
	t.Helper()
	c, stop := NewLocalClient(newServer(t, w, Config{}).Handler(), key)
	t.Cleanup(stop)
	return c
}

func TestClientUnderstandsTheServer(t *testing.T) {
	w := newWorld()
	w.counters = []Counter{
		{Site: 1, Quarter: 96*20000 + 1, Accepted: 5, Delivered: 2}, {Site: 1, Quarter: 96*20000 + 90, Accepted: 1},
		{Site: 1, Quarter: 96 * 20001, Accepted: 2, Invalid: 1, Dead: 1}, {Site: 0, Quarter: -1, Accepted: 1},
	}
	w.report = Report{Shelves: 1, Blocks: 2, Hits: 3, Pending: 2, Dead: 1, Problems: []string{"one"}}
	c := newPair(t, w, control)
	ctx := t.Context()

	stats, err := c.Stats(ctx)
	if err != nil || stats.Sum.Accepted != 10 || stats.Behind.OldestAgeSeconds != 3600 || stats.Edge != "fra-1" || stats.Pace.In != nil {
		t.Errorf("stats %+v, %v", stats, err)
	}
	var days []SiteDay
	for d, err := range c.Sites(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		days = append(days, d)
	}
	want := []SiteDay{
		{Site: 0, Day: "1969-12-31", Accepted: 1, Pending: 1},
		{Site: 1, Day: "2024-10-04", Accepted: 6, Delivered: 2, Pending: 4},
		{Site: 1, Day: "2024-10-05", Accepted: 2, Invalid: 1, Dead: 1},
	}
	if len(days) != len(want) || days[0] != want[0] || days[1] != want[1] || days[2] != want[2] {
		t.Errorf("days %+v, want %+v", days, want)
	}
	n := 0
	for h, err := range c.Hits(ctx, PeekFilter{Site: siteOf(2)}, Masked) {
		if err != nil || h.Site != 2 {
			t.Errorf("hit %+v, %v", h, err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d hits of site 2, want 1", n)
	}
	for d, err := range c.Dead(ctx, DeadFilter{Reason: "poison"}, Full) {
		if err != nil || d.Reason != "poison" || d.Code != 500 || d.Answer != "<b>anna</b>" {
			t.Errorf("dead %+v, %v", d, err)
		}
	}
	summary, err := c.DeadSummary(ctx, DeadFilter{})
	if err != nil || summary.Total != 1 || summary.Newest != "0000000000000007-1-9" || summary.Groups[0].Sites[0] != 1 {
		t.Errorf("summary %+v, %v", summary, err)
	}
	for id, buried := range map[hit.ID]bool{{Generation: 7, Block: 1}: false, {Generation: 7, Block: 1, Index: 9}: true} {
		shown, err := c.Show(ctx, id, Full)
		if err != nil || (shown.Dead != nil) != buried || shown.Hit.ID != id.String() {
			t.Errorf("show %+v, %v", shown, err)
		}
	}
	if n, err := c.Requeue(ctx, Requeue{Who: "anna", Reason: "poison", UpTo: summary.Newest}); n != 1 || err != nil || w.requeued.UpTo.Index != 9 {
		t.Errorf("requeued %d, %v, %+v", n, err, w.requeued)
	}
	result, err := c.Verify(ctx)
	if err != nil || result.OK || result.Pending != 2 || len(result.Problems) != 1 {
		t.Errorf("verified %+v, %v", result, err)
	}
	if _, err := c.Pause(ctx, Pause{"anna", "update", 60}); err != nil || w.paused == "" {
		t.Errorf("pause %v", err)
	}
	if _, err := c.Resume(ctx, Resume{"anna"}); err != nil || w.paused != "" {
		t.Errorf("resume %v", err)
	}
	if err := c.Ready(ctx); err != nil {
		t.Errorf("ready %v", err)
	}
	w.failing = errors.New("the disk hangs")
	if err := c.Ready(ctx); err == nil || err.Error() != "the disk hangs" {
		t.Errorf("not ready: %v", err)
	}
}

func TestClientReportsAnErrorBehindTheFirstLines(t *testing.T) {
	w := newWorld()
	w.failing = errors.New("a block cannot be read")
	n, last := 0, error(nil)
	for _, err := range newPair(t, w, control).Hits(t.Context(), PeekFilter{}, Masked) {
		if last = err; err == nil {
			n++
		}
	}
	if n != 2 || last == nil || last.Error() != "a block cannot be read" {
		t.Errorf("%d hits and then %v", n, last)
	}
}

func TestDamagedDeadLettersHideNoOthers(t *testing.T) {
	w := newWorld()
	w.failing = errors.New("a letter cannot be read")
	c := newPair(t, w, control)
	n, last := 0, error(nil)
	for _, err := range c.Dead(t.Context(), DeadFilter{}, Masked) {
		if last = err; err == nil {
			n++
		}
	}
	if n != 1 || last == nil {
		t.Errorf("%d letters and then %v", n, last)
	}
	if s, err := c.DeadSummary(t.Context(), DeadFilter{}); err != nil || s.Total != 1 || s.Damaged != 1 {
		t.Errorf("summary %+v, %v", s, err)
	}
}

func TestClientTellsRefusalFromAbsence(t *testing.T) {
	_, err := newPair(t, newWorld(), "wrong").Verify(t.Context())
	if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Code != http.StatusUnauthorized || refused.Problem.Try == "" {
		t.Errorf("wrong key gives %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	if _, err := NewClient(addr, "", nil).Stats(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("closed port gives %v, want ErrNotRunning", err)
	}
}

func TestClientSurvivesWhatIsNoSluice(t *testing.T) {
	for _, body := range []string{"", "<html>", "{", `{"id":1}` + "\n", strings.Repeat("x", 1<<20)} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(body)) }))
		c := NewClient(server.Listener.Addr().String(), "", nil)
		if _, err := c.Show(t.Context(), hit.ID{}, Masked); err == nil {
			t.Errorf("%.10q is understood as a hit", body)
		}
		for _, err := range c.Hits(t.Context(), PeekFilter{}, Masked) {
			if err == nil {
				t.Errorf("%.10q is understood as a line", body)
			}
		}
		server.Close()
	}
}

func TestNewClientTakesTheLoopbackForEveryAddress(t *testing.T) {
	for addr, want := range map[string]string{
		":8444": "http://127.0.0.1:8444", "0.0.0.0:1": "http://127.0.0.1:1", "[::]:1": "http://127.0.0.1:1", "10.0.0.1:1": "http://10.0.0.1:1", "edge:1": "http://edge:1",
	} {
		if got := NewClient(addr, "", nil).base; got != want {
			t.Errorf("%s becomes %s, want %s", addr, got, want)
		}
	}
}

func TestPace(t *testing.T) {
	p := &pace{}
	if _, _, ok := p.rates(clock, Stats{}); ok {
		t.Error("a pace is known before anything was measured")
	}
	at := clock
	for i := range int64(200) {
		p.sample(at, Stats{Accepted: 100 * i, Delivered: 40 * i, Dead: 10 * i})
		at = at.Add(paceInterval)
	}
	last := Stats{Accepted: 100 * 200, Delivered: 40 * 200, Dead: 10 * 200}
	in, out, ok := p.rates(at, last)
	if !ok || in != 20 || out != 10 {
		t.Errorf("got %v in and %v out, want 20 and 10", in, out)
	}
	if oldest := at.Add(-time.Hour); p.samples[p.next].at.Before(oldest) {
		t.Error("the ring keeps more than it should")
	}
}

func TestSecondsToEmpty(t *testing.T) {
	tests := []struct {
		name    string
		pending int64
		in, out float64
		want    float64
	}{
		{"nothing waits", 0, 5, 0, 0},
		{"catches up", 100, 10, 20, 10},
		{"never at the same pace", 100, 10, 10, -1},
		{"never when more comes than goes", 100, 20, 10, -1},
		{"never within a year", 1 << 40, 0, 1, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := secondsToEmpty(tt.pending, tt.in, tt.out); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
