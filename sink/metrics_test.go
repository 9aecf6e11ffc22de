package sink

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/testkit"
)

// TestMetrics checks names that dashboards and alerts rely on, and that exactly
// one state is shown.
func TestMetrics(t *testing.T) {
	set := metrics.NewSet()
	cfg := testConfig()
	cfg.Endpoint, cfg.Pending = "http://127.0.0.1:1/matomo.php", func() int64 { return 7 }
	s, err := New(cfg, newSource(t), slog.New(slog.DiscardHandler), set)
	if err != nil {
		t.Fatal(err)
	}
	s.ins.batch(delivered, 5, 0)
	states := func() (on []string) {
		var b bytes.Buffer
		set.WritePrometheus(&b)
		for line := range strings.Lines(b.String()) {
			if strings.HasPrefix(line, "sluice_sink_state{") && strings.HasSuffix(line, " 1\n") {
				on = append(on, strings.TrimSpace(line))
			}
		}
		for _, name := range []string{
			`sluice_sink_batches_total{verdict="delivered"} 1`, `sluice_sink_batches_total{verdict="unknown"} 0`,
			`sluice_sink_batch_seconds_bucket{le="0.01"} 1`, `sluice_sink_batch_hits_bucket{le="5"} 1`, "sluice_sink_lanes 0",
			"sluice_sink_uncertain_hits 0", "sluice_sink_unknown_total 0", "sluice_sink_clock_offset_seconds 0", "sluice_sink_eta_seconds NaN",
		} {
			if !strings.Contains(b.String(), name+"\n") {
				t.Errorf("no line %q", name)
			}
		}
		return on
	}
	is := func(want string) {
		t.Helper()
		if on := states(); len(on) != 1 || on[0] != want {
			t.Errorf("states %q, want only %q", on, want)
		}
	}
	is(`sluice_sink_state{state="holding",reason="starting"} 1`)
	s.brk.probed(round{ok: true})
	is(`sluice_sink_state{state="sending",reason=""} 1`)
	before := time.Now()
	s.brk.open(ReasonDown, "x", 0)
	s.brk.open(ReasonDown, "the same fall", 0)
	s.Pause("ann", "update", time.Now().Add(time.Hour))
	var b bytes.Buffer
	set.WritePrometheus(&b)
	for _, line := range []string{
		`sluice_sink_openings_total{reason="down"} 1`, `sluice_sink_openings_total{reason="manual"} 1`, `sluice_sink_openings_total{reason="upgrade"} 0`,
	} {
		if !strings.Contains(b.String(), line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
	since := regexp.MustCompile(`(?m)^sluice_sink_state_since_seconds (.*)$`).FindStringSubmatch(b.String())
	if at, err := strconv.ParseFloat(since[1], 64); err != nil || at < float64(before.Unix()) || at > float64(time.Now().Unix()+1) {
		t.Errorf("state since %v (%v), want just now", since, err)
	}
	s.Resume("ann")
	for _, reason := range Reasons()[2 : len(Reasons())-1] {
		b := newBreaker(slog.New(slog.DiscardHandler), realWaits())
		b.probed(round{ok: true})
		b.open(reason, "x", 0)
		s.brk = b
		is(`sluice_sink_state{state="holding",reason="` + string(reason) + `"} 1`)
	}
}

// TestStatusIsOneJSONObject checks what scripts read: snake case, a version, and
// null for what is not known.
func TestStatusIsOneJSONObject(t *testing.T) {
	cfg := testConfig()
	cfg.Endpoint = "http://127.0.0.1:1/matomo.php"
	s, err := New(cfg, newSource(t), slog.New(slog.DiscardHandler), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(s.Status())
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"v": 1.0, "state": "holding", "reason": "starting", "pause": nil, "next_try": nil, "last_hold": nil, "eta_seconds": nil,
		"clock_offset_seconds": nil, "mysql": nil, "token": "unknown", "max_lanes": 4.0, "uncertain": 0.0,
	} {
		if value, there := got[name]; !there || value != want {
			t.Errorf("%s is %v (there: %v), want %v", name, value, there, want)
		}
	}
	if strings.Contains(string(text), testkit.SuperToken) {
		t.Errorf("the status tells the token")
	}
}

func TestNewRefusesBadSettings(t *testing.T) {
	good := testConfig()
	good.Endpoint = "http://127.0.0.1:1/matomo.php"
	for name, change := range map[string]func(*Config){
		"no endpoint":      func(c *Config) { c.Endpoint = "" },
		"negative lanes":   func(c *Config) { c.Lanes = -1 },
		"too many hits":    func(c *Config) { c.BatchHits = 1 << 20 },
		"tiny bodies":      func(c *Config) { c.BatchBytes = 10 },
		"unknown policy":   func(c *Config) { c.OnUnknown = "guess" },
		"negative timeout": func(c *Config) { c.RequestTimeout = -1 },
		"a bad DSN":        func(c *Config) { c.DSN = "x" },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg, newSource(t), slog.New(slog.DiscardHandler), metrics.NewSet()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(good, newSource(t), slog.New(slog.DiscardHandler), metrics.NewSet()); err != nil {
		t.Errorf("good settings: %v", err)
	}
}
