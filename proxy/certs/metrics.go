package certs

import (
	"crypto/x509"
	"fmt"
	"io"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// instruments are the metrics of one [Keeper].
type instruments struct {
	set                       *metrics.Set
	obtained, renewed, failed *metrics.Counter // what came of orders
	reloaded, reloadFailed    *metrics.Counter // files
	fallbacks                 *metrics.Counter // handshakes that got the self-signed stand-in
}

func newInstruments(set *metrics.Set) *instruments {
	orders := func(result string) *metrics.Counter {
		return set.NewCounter(`sluice_proxy_cert_renewals_total{result="` + result + `"}`)
	}
	reloads := func(result string) *metrics.Counter {
		return set.NewCounter(`sluice_proxy_cert_reloads_total{result="` + result + `"}`)
	}
	return &instruments{
		set:      set,
		obtained: orders("obtained"), renewed: orders("renewed"), failed: orders("failed"),
		reloaded: reloads("loaded"), reloadFailed: reloads("failed"),
		fallbacks: set.NewCounter("sluice_proxy_cert_fallbacks_total"),
	}
}

// show prints how long each certificate in use is still good, in seconds: less than
// nothing when it has ended, and 0 for a name that has none.
func (m *instruments) show(s source) {
	m.set.RegisterMetricsWriter(func(w io.Writer) {
		now := time.Now()
		s.each(func(name string, leaf *x509.Certificate) {
			left := 0.0
			if leaf != nil {
				left = leaf.NotAfter.Sub(now).Seconds()
			}
			fmt.Fprintf(w, "sluice_proxy_cert_expiry_seconds{name=%q} %.0f\n", name, left)
		})
	})
}
