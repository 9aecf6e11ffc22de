package proxy

import (
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"
)

func TestConfigFaults(t *testing.T) {
	_, err := New(Config{Listen: ":0", Expose: "some", Upstream: &url.URL{Scheme: "ftp"}, Limits: Limits{HeaderBytes: 5, BodyBytes: -1}, Grace: -1, MaskAddress: 5},
		&fakeQueue{}, nil, slog.New(slog.DiscardHandler), metrics.NewSet())
	for _, want := range []string{"certificate", `"ftp"`, `"some"`, "header limit 5", "5 bytes of addresses", "limit is negative", "duration is negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want it to name %s", err, want)
		}
	}
}
