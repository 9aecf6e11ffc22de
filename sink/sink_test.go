package sink

import (
	"testing"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

func TestSinkDrainsToZero(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	r := start(t, m, testConfig())
	want := marks("m", 1000)
	for i, mark := range want {
		r.src.add(hitOf(int64(1+i%4), mark))
	}
	r.src.waitSettled(soon(t), len(want))
	m.CheckOnce(t, want)
	if n := r.src.count(hit.Delivered); n != len(want) {
		t.Errorf("%d hits delivered, want %d", n, len(want))
	}
	if n := r.src.openJournals(); n != 0 {
		t.Errorf("%d journals stay open, want 0", n)
	}
	if st := r.Status(); st.State != StateSending || st.Token != string(tokenSuper) {
		t.Errorf("state %s with token %s, want sending with superuser", st.State, st.Token)
	}
}
