package sink

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// TestHitsTravelWithTheirHeaders: a hit reaches Matomo with the headers that it came
// with, whatever stands beside it in the queue, and with no other.
func TestHitsTravelWithTheirHeaders(t *testing.T) {
	const hits = 60
	headers := []string{"", "x-foo: a\n", "x-bar: 1\nx-foo: b\n"}
	want := []http.Header{{}, {"X-Foo": {"a"}}, {"X-Bar": {"1"}, "X-Foo": {"b"}}}

	m := testkit.NewMatomo(testkit.MatomoConfig{})
	t.Cleanup(m.Close)
	var mu sync.Mutex
	seen := map[int]int{} // by the kind of headers
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		for i := range hits {
			if !bytes.Contains(body, fmt.Appendf(nil, "=m%03d&", i)) {
				continue
			}
			kind := i % len(headers)
			for _, name := range []string{"X-Foo", "X-Bar"} {
				if got := r.Header.Get(name); got != want[kind].Get(name) {
					t.Errorf("hit %d travels with %s: %q, want %q", i, name, got, want[kind].Get(name))
				}
			}
			mu.Lock()
			seen[kind]++
			mu.Unlock()
		}
		m.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	src := newSource(t)
	for i := range hits {
		p := hitOf(int64(1+i%7), fmt.Sprintf("m%03d", i))
		p.Environment = &hit.Environment{ClientIP: "203.0.113.9", UserAgent: browser, Headers: headers[i%len(headers)]}
		src.add(p)
	}
	r := startAt(t, m, srv.URL+"/matomo.php", testConfig(), src)
	src.waitSettled(soon(t), hits)
	r.stop(t)
	for kind := range headers {
		if seen[kind] != hits/len(headers) {
			t.Errorf("%d hits of kind %d were sent, want %d", seen[kind], kind, hits/len(headers))
		}
	}
}
