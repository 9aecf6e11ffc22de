package testkit_test

import (
	"strings"
	"testing"
	"time"

	"sluice/internal/testkit"
)

// TestLossOfTheDatabase: a request that meets the end of the server is answered as
// Matomo does and recorded nowhere, and fails the test unless the loss was announced.
func TestLossOfTheDatabase(t *testing.T) {
	const failed = `{"status":"error","tracked":0,"invalid":0}`
	server := testkit.StartMariaDB(t)
	server.CreateMatomo("matomo", "m_")
	c := &complaints{TB: t}
	m := testkit.NewMatomo(testkit.MatomoConfig{Rows: testkit.OpenRows(c, server, "matomo", "m_")})
	base := m.Serve(t)
	lose := func(announced bool) {
		if announced {
			m.SetDatabase(testkit.DatabaseDown)
		}
		server.Kill()
	}
	for _, tt := range []struct {
		name      string
		announced bool
		body      string
	}{
		{"a delivery", true, bulk("a")},
		{"a canary", true, canary},
		{"a delivery, unannounced", false, bulk("a")},
		{"a canary, unannounced", false, canary},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.n = 0
			m.Choose(func(*testkit.Exchange) *testkit.Answer {
				lose(tt.announced)
				return nil
			})
			defer m.Choose(nil)
			if got := post(t.Context(), base, tt.body); got.status != 500 || got.body != failed {
				t.Errorf("answered %d %q, want 500 %q", got.status, got.body, failed)
			}
			if (c.n == 0) != tt.announced {
				t.Errorf("%d complaints, announced %v", c.n, tt.announced)
			}
			server.Start()
			m.SetDatabase(testkit.DatabaseUp)
		})
	}
	t.Run("in the batch", func(t *testing.T) {
		c.n = 0
		server.Exec("USE matomo; CREATE TRIGGER slow BEFORE INSERT ON m_log_visit FOR EACH ROW DO SLEEP(60)")
		answered := make(chan answer, 1)
		go func() { answered <- post(t.Context(), base, bulk("a")) }() // ends with the server
		const asleep = "SELECT COUNT(*) FROM information_schema.processlist WHERE state='User sleep'"
		for server.Exec(asleep)[0][0] == "0" {
			select {
			case got := <-answered:
				t.Fatalf("answered %q before the loss", got.body)
			case <-time.After(20 * time.Millisecond):
			}
		}
		lose(true)
		if got := <-answered; got.status != 200 || !strings.HasPrefix(got.body, "Error:SQLSTATE") {
			t.Errorf("answered %d %q, want Matomo's text for a server that has gone away", got.status, got.body)
		}
		if c.n != 0 {
			t.Errorf("%d complaints of a loss that was announced", c.n)
		}
		server.Start()
		m.SetDatabase(testkit.DatabaseUp)
		server.Exec("USE matomo; DROP TRIGGER slow")
	})
	c.n = 0
	if got := post(t.Context(), base, bulk("a")); got.body != success(1) || c.n != 0 {
		t.Errorf("answered %q with %d complaints when the server is back", got.body, c.n)
	}
	rows := server.Exec("SELECT COUNT(*) FROM matomo.m_log_link_visit_action")
	if n := m.Commits("a"); n != 1 || rows[0][0] != "1" {
		t.Errorf("recorded %d times, %s rows; want once", n, rows[0][0])
	}
}
