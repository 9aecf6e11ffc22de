package assets

import (
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// instruments are the room's metrics, one set for each cache.
type instruments struct {
	set *metrics.Set

	hit, stale, miss, pass        *metrics.Counter // requests
	replaced, evicted             *metrics.Counter
	damaged, diskErrors           *metrics.Counter
	remembered, recalled, asIsOut *metrics.Counter // opt-out answers
	bytes                         atomic.Int64
}

func newInstruments(set *metrics.Set, c *Cache) *instruments {
	requests := func(result string) *metrics.Counter {
		return set.NewCounter(`sluice_proxy_asset_requests_total{result="` + result + `"}`)
	}
	optOut := func(result string) *metrics.Counter {
		return set.NewCounter(`sluice_proxy_optout_requests_total{result="` + result + `"}`)
	}
	m := &instruments{
		set: set,
		hit: requests("hit"), stale: requests("stale"), miss: requests("miss"), pass: requests("pass"),
		replaced:   set.NewCounter("sluice_proxy_asset_replaced_total"),
		evicted:    set.NewCounter("sluice_proxy_asset_evicted_total"),
		damaged:    set.NewCounter("sluice_proxy_asset_damaged_total"),
		diskErrors: set.NewCounter("sluice_proxy_asset_disk_errors_total"),
		remembered: optOut("remembered"), recalled: optOut("stale"), asIsOut: optOut("pass"),
	}
	set.NewGauge("sluice_proxy_asset_files", func() float64 { return float64(len(c.files())) })
	set.NewGauge("sluice_proxy_asset_bytes", func() float64 { return float64(m.bytes.Load()) })
	set.NewGauge("sluice_proxy_asset_pinned_files", func() float64 {
		n := 0
		for _, f := range c.files() {
			if f.pinned() {
				n++
			}
		}
		return float64(n)
	})
	for _, o := range []outcome{unchanged, replaced, deleted, unsure, refused, failed, absent, unstable} {
		m.fetches(string(o))
	}
	for _, reason := range []string{"empty", "html", "php_error", "binary", "torn", "no_container", "magic", "active_svg", "size", "encoding", "unstable"} {
		m.rejects(reason)
	}
	for k := tracker; k < preview; k++ {
		set.NewGauge(`sluice_proxy_asset_age_seconds{asset="`+kindNames[k]+`"}`, func() float64 { return c.oldest(k).Seconds() })
	}
	return m
}

// oldest is how long ago the origin confirmed that file of a kind which it has not
// confirmed for the longest, among those in use.
func (c *Cache) oldest(k kind) (age time.Duration) {
	now := c.now()
	for _, f := range c.files() {
		v := f.serving.Load()
		if f.kind != k || v == nil || v.pinned || now.Sub(time.Unix(0, f.asked.Load())) > inUse {
			continue
		}
		age = max(age, now.Sub(time.Unix(0, f.checked.Load())))
	}
	return age
}

// fetch counts an answer of the origin by what it led to.
func (m *instruments) fetch(outcome string) {
	m.fetches(outcome).Inc()
}

// reject counts bytes that cannot be the file. Reasons are a closed list.
func (m *instruments) reject(reason string) {
	m.rejects(reason).Inc()
}

func (m *instruments) fetches(outcome string) *metrics.Counter {
	return m.set.GetOrCreateCounter(`sluice_proxy_asset_fetches_total{result="` + outcome + `"}`)
}

func (m *instruments) rejects(reason string) *metrics.Counter {
	return m.set.GetOrCreateCounter(`sluice_proxy_asset_rejected_total{reason="` + reason + `"}`)
}
