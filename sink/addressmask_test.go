package sink

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/internal/testkit"
)

func TestMaskOf(t *testing.T) {
	const use, on, length = "privacymanager.useanonymizedipforvisitenrichment", "privacymanager.ipanonymizerenabled", "privacymanager.ipaddressmasklength"
	tests := []struct {
		name    string
		options map[string]string
		want    uint8
	}{
		{"Matomo's defaults", nil, 0},
		{"used, with the default length", map[string]string{use: "1"}, 2},
		{"used", map[string]string{use: "1", on: "1", length: "3"}, 3},
		{"a length of none", map[string]string{use: "1", length: "0"}, 0},
		{"the whole address", map[string]string{use: "1", length: "4"}, 4},
		{"more than there is", map[string]string{use: "1", length: "9"}, 4},
		{"stored whole, recognised by the whole", map[string]string{use: "1", on: "0", length: "3"}, 0},
		{"masked in storage only", map[string]string{use: "0", on: "1", length: "3"}, 0},
		{"one site has options of its own", map[string]string{use: "0", use + ".7": "1", length: "1", length + ".7": "3"}, 3},
		{"one site alone masks", map[string]string{use: "1", on: "0", on + ".7": "1", length: "1"}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := maskOf(tt.options); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// TestMaskIsReadFromMatomo, with the account of deploy/grants.sql, with one whose
// view was made before it had these options, and with one that may read the table.
func TestMaskIsReadFromMatomo(t *testing.T) {
	t.Parallel()
	server := testkit.StartMariaDB(t)
	server.CreateMatomo("matomo", "matomo_")
	server.Exec(`INSERT INTO matomo.matomo_option (option_name, option_value) VALUES
		('PrivacyManager.useAnonymizedIpForVisitEnrichment', '1'), ('PrivacyManager.ipAddressMaskLength', '1')`)
	script, err := os.ReadFile(filepath.Join("..", "deploy", "grants.sql"))
	if err != nil {
		t.Fatal(err)
	}
	server.Exec(strings.NewReplacer("'sluice'@'10.%'", "'edge'@'%'", " REQUIRE SSL", "").Replace(string(script)))
	for _, tt := range []struct {
		name, user, password string
		prepare              string
		want                 uint8
		ok                   bool
	}{
		{"the view", "edge", "PASSWORD", "", 1, true},
		{"an earlier view", "edge", "PASSWORD", "CREATE OR REPLACE SQL SECURITY DEFINER VIEW matomo_edge.v_option AS SELECT option_name, option_value FROM matomo.matomo_option WHERE option_name = 'version_core'", 0, false},
		{"the table", "root", "", "DROP DATABASE matomo_edge", 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.prepare != "" {
				server.Exec(tt.prepare)
			}
			db, err := newDatabase(server.DSN(tt.user, tt.password, "matomo"), "matomo_")
			if err != nil {
				t.Fatal(err)
			}
			defer db.close()
			got, ok := readMask(t.Context(), db)
			if got != tt.want || ok != tt.ok {
				t.Errorf("got %d, %v, want %d, %v", got, ok, tt.want, tt.ok)
			}
			s := &Sink{db: db, log: testLog(t)}
			s.cfg.AddressMask = AutoMask
			s.mask.set(guessedMask)
			s.learnMask(context.WithoutCancel(t.Context()))
			if want := map[bool]uint8{true: tt.want, false: guessedMask}[tt.ok]; s.mask.get() != want {
				t.Errorf("the mask is %d, want %d", s.mask.get(), want)
			}
		})
	}
}
