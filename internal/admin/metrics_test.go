package admin

import (
	"regexp"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"
)

func TestTableFollowsTheNamingRules(t *testing.T) {
	ours := regexp.MustCompile(`^sluice_(build|config|proxy|queue|sink|gate)_[a-z_]+$`)
	seen := make(map[string]bool)
	for _, m := range Table {
		if seen[m.Name] {
			t.Errorf("%s stands twice in the table", m.Name)
		}
		seen[m.Name] = true
		if strings.HasPrefix(m.Name, "sluice_") && !ours.MatchString(m.Name) {
			t.Errorf("%s is not sluice_ROOM_THING_UNIT", m.Name)
		}
		if (m.Type == CounterType) != strings.HasSuffix(m.Name, "_total") {
			t.Errorf("%s is a %s", m.Name, m.Type)
		}
		if m.Help == "" || strings.ContainsAny(m.Help, "\n\\") {
			t.Errorf("%s has the help %q", m.Name, m.Help)
		}
	}
}

func TestMetricsHaveTypeAndHelpAndStandTogether(t *testing.T) {
	set := metrics.NewSet()
	set.NewCounter(`sluice_queue_settled_hits_total{as="dead"}`).Add(3)
	set.NewPrometheusHistogramExt("sluice_queue_sync_seconds", []float64{0.1}).Update(0.05)
	set.NewCounter(`sluice_queue_settled_hits_total{as="invalid"}`)
	set.NewGauge("sluice_unheard_of", func() float64 { return 1 })
	w := newWorld()
	s := newServer(t, w, Config{})
	s.parts.Metrics = []*metrics.Set{set}
	got := ask(s, "GET", "/metrics", "").Body.String()
	for _, want := range []string{
		"# HELP sluice_build_info Always 1; the labels say which version runs and what built it.\n# TYPE sluice_build_info gauge\nsluice_build_info{version=\"1.2.3\",go=\"go1.",
		"# TYPE sluice_queue_settled_hits_total counter\nsluice_queue_settled_hits_total{as=\"dead\"} 3\nsluice_queue_settled_hits_total{as=\"invalid\"} 0\n",
		"# TYPE sluice_queue_sync_seconds histogram\nsluice_queue_sync_seconds_bucket{le=\"0.1\"} 1\nsluice_queue_sync_seconds_bucket{le=\"+Inf\"} 1\nsluice_queue_sync_seconds_sum 0.05\nsluice_queue_sync_seconds_count 1\n",
		"\nsluice_unheard_of 1\n", "# TYPE process_open_fds gauge\n", "# TYPE go_goroutines gauge\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %q in\n%s", want, got)
		}
	}
	if n := strings.Count(got, "# HELP sluice_queue_settled_hits_total"); n != 1 {
		t.Errorf("a family has %d help lines", n)
	}
	if strings.Contains(got, "go_memstats_lookups_total") {
		t.Error("a process metric without a row is shown")
	}
	for _, m := range Table {
		if !strings.HasPrefix(m.Name, "sluice_") && !strings.Contains(got, "\n"+m.Name) {
			t.Errorf("%s has a row and is not exported", m.Name)
		}
	}
}
