package sink

import (
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// shortening is by how much the waits of tests on real sockets and a real MariaDB are
// shorter than those of production.
const shortening = 5

// shortWaits are the real waits with their ratios, for tests that only wait for them.
func shortWaits() waits {
	w := realWaits()
	for _, d := range []*time.Duration{
		&w.minBackoff, &w.maxBackoff, &w.closeGap, &w.shortGap, &w.firstLook, &w.firstAgain, &w.lastAgain,
		&w.baselineRest, &w.airPatience, &w.suspectDelay, &w.maxSuspectDelay, &w.proofAge,
	} {
		*d /= shortening
	}
	return w
}

// TestWaits: a sink waits as production does unless a test says otherwise, and what
// tests say keeps every ratio.
func TestWaits(t *testing.T) {
	s, err := New(Config{Endpoint: "http://matomo.example/matomo.php"}, newSource(t), slog.New(slog.DiscardHandler), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	if s.cfg.waits != realWaits() || s.brk.waits != realWaits() {
		t.Errorf("waits %+v, and of the breaker %+v, want %+v", s.cfg.waits, s.brk.waits, realWaits())
	}
	long, short := reflect.ValueOf(realWaits()), reflect.ValueOf(shortWaits())
	for i := range long.NumField() {
		if got, want := short.Field(i).Int(), long.Field(i).Int()/shortening; got != want {
			t.Errorf("%s of tests is %v, want %v", long.Type().Field(i).Name, time.Duration(got), time.Duration(want))
		}
	}
}
