package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"sluice/internal/admin"
	"sluice/internal/config"
	"sluice/sink"
)

// root is the project's folder as seen from here.
const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// generated compares what stands between a marker and its end, or writes it.
func generated(t *testing.T, path, marker, want string) {
	t.Helper()
	text := read(t, path)
	before, rest, ok1 := strings.Cut(text, "<!-- "+marker+":")
	head, rest, ok2 := strings.Cut(rest, "-->\n")
	got, after, ok3 := strings.Cut(rest, "<!-- end -->")
	if !ok1 || !ok2 || !ok3 {
		t.Fatalf("%s has no block %q", path, marker)
	}
	if *update {
		text = before + "<!-- " + marker + ":" + head + "-->\n" + want + "<!-- end -->" + after
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Errorf("%s says of %s\n%s\nwant\n%s", path, marker, got, want)
	}
}

// settingFlags is every setting with its help and default.
func settingFlags(t *testing.T) []*kong.Flag {
	t.Helper()
	l, err := config.NewLoader(nil)
	if err != nil {
		t.Fatal(err)
	}
	var all struct{ config.Settings }
	parser, err := kong.New(&all, append(l.Options(), kong.NoDefaultHelp(), kong.Writers(io.Discard, io.Discard))...)
	if err != nil {
		t.Fatal(err)
	}
	return parser.Model.Flags
}

func TestDocumentsKnowAllSettings(t *testing.T) {
	var table strings.Builder
	table.WriteString("| setting | default | reload | meaning |\n|---|---|---|---|\n")
	sample := read(t, "deploy/sluice.yaml")
	for _, f := range settingFlags(t) {
		text := f.Default
		if text != "" {
			text = "`" + text + "`"
		}
		reloads := ""
		if f.Tag.Has("reload") {
			reloads = "yes"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", f.Name, text, reloads, strings.ReplaceAll(f.Help, "|", "\\|"))
		if f.Name == "config" {
			continue // not for the file
		}
		if !regexp.MustCompile(`(?m)^#?` + regexp.QuoteMeta(f.Name) + `:`).MatchString(sample) {
			t.Errorf("deploy/sluice.yaml does not have %s", f.Name)
		}
		if f.Default != "" && !regexp.MustCompile(`(?m)^#?`+regexp.QuoteMeta(f.Name)+`: *"?`+regexp.QuoteMeta(f.Default)+`"?$`).MatchString(sample) {
			t.Errorf("deploy/sluice.yaml does not show the default %s of %s", f.Default, f.Name)
		}
	}
	generated(t, "README.md", "settings", table.String())
}

func TestTheSampleSettingsAreGood(t *testing.T) {
	sample := read(t, "deploy/sluice.yaml")
	uncommented := regexp.MustCompile(`(?m)^#([a-z-]+(\.[a-z-]+)?:)`).ReplaceAllString(sample, "$1")
	for name, text := range map[string]string{"as it is": sample, "with everything in force": uncommented} {
		t.Run(name, func(t *testing.T) {
			// Secret files are named there and are not here.
			text := regexp.MustCompile(`(?m)^[a-z.-]*-file:.*$`).ReplaceAllString(text, "")
			path := file(t, "sluice.yaml", text, 0o640)
			code, stdout, stderr := command(nil, "check", "--config="+path, "--data-dir="+t.TempDir(), "--queue.reserve=64MiB", "--list")
			if code != exitOK {
				t.Errorf("exit %d\n%s%s", code, stdout, stderr)
			}
			code, stdout, stderr = command(nil, "check", "--config="+path, "--data-dir="+t.TempDir(), "--queue.reserve=64MiB")
			if code != exitOK {
				t.Errorf("exit %d\n%s%s", code, stdout, stderr)
			}
		})
	}
}

func TestDocumentsKnowAllMetrics(t *testing.T) {
	var table strings.Builder
	table.WriteString("| metric | type | meaning |\n|---|---|---|\n")
	for _, m := range admin.Table {
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", m.Name, m.Type, strings.ReplaceAll(m.Help, "|", "\\|"))
	}
	generated(t, "docs/operations.md", "metrics", table.String())
	operations := read(t, "docs/operations.md")
	for _, name := range regexp.MustCompile(`sluice_[a-z_]+`).FindAllString(operations, -1) {
		if !slices.ContainsFunc(admin.Table, func(m admin.Metric) bool { return m.Name == name }) {
			t.Errorf("docs/operations.md speaks of %s, which is in no table", name)
		}
	}
}

// TestCodeKnowsAllMetrics reads the rooms' sources: each name there has a row, and
// each row is a name there.
func TestCodeKnowsAllMetrics(t *testing.T) {
	used := map[string]bool{"sluice_build_info": true} // written by the private listener itself
	name := regexp.MustCompile("[\"`](sluice_[a-z_]+)")
	for _, room := range []string{"proxy", "proxy/assets", "proxy/certs", "queue", "sink", "archivegate", "cmd/sluice"} {
		files, err := filepath.Glob(filepath.Join(root, room, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no sources in %s: %v", room, err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range name.FindAllStringSubmatch(string(text), -1) {
				used[match[1]] = true
				if !slices.ContainsFunc(admin.Table, func(m admin.Metric) bool { return m.Name == match[1] }) {
					t.Errorf("%s uses %s, which has no row in the table", f, match[1])
				}
			}
		}
	}
	for _, m := range admin.Table {
		if strings.HasPrefix(m.Name, "sluice_") && !used[m.Name] {
			t.Errorf("%s has a row and nobody exports it", m.Name)
		}
	}
}

// lazyMetrics appear with the first event that they count.
var lazyMetrics = []string{"sluice_proxy_bad_input_total", "sluice_proxy_upstream_errors_total", "sluice_queue_dead_hits_total", "sluice_queue_dead_expired_hits_total", "sluice_queue_import_requests_total"}

func TestARunningEdgeExportsAllMetrics(t *testing.T) {
	s := startServer(t, t.TempDir(), nobody)
	s.hit("idsite=1&rec=1")
	resp, err := s.client.Get("http://" + s.private + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	text := string(body)
	for _, m := range admin.Table {
		if !slices.Contains(lazyMetrics, m.Name) && !strings.Contains(text, "# TYPE "+m.Name+" ") {
			t.Errorf("%s is not exported", m.Name)
		}
	}
	types := make(map[string]bool)
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			types[strings.Fields(name)[0]] = true
			continue
		}
		if line[0] == '#' {
			continue
		}
		name := line[:strings.IndexAny(line, "{ ")]
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		if !types[name] && !types[base] {
			t.Errorf("%s has no row in the table", name)
		}
	}
}

func TestTheRunbookKnowsAllReasonsAndAllThatTheCodeRefersTo(t *testing.T) {
	operations := read(t, "docs/operations.md")
	heading := func(text string) bool {
		return regexp.MustCompile(`(?m)^##+ ` + regexp.QuoteMeta(text) + `$`).MatchString(operations)
	}
	for _, r := range sink.Reasons() {
		if r != sink.ReasonNone && !heading("Reason "+string(r)) {
			t.Errorf("no heading for the reason %s", r)
		}
	}
	for _, link := range regexp.MustCompile(`\]\(#([a-z-]+)\)`).FindAllStringSubmatch(operations, -1) {
		if !regexp.MustCompile(`(?mi)^##+ ` + link[1] + `$`).MatchString(operations) {
			t.Errorf("link to #%s leads nowhere", link[1])
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range regexp.MustCompile(`docs/operations\.md, \\"([^"\\]+)\\"`).FindAllStringSubmatch(string(text), -1) {
			if !heading(ref[1]) {
				t.Errorf("%s refers to %q, which is no heading", f, ref[1])
			}
		}
	}
}

func TestReadmeKnowsCommandsAndExitCodes(t *testing.T) {
	readme := read(t, "README.md")
	for _, word := range []string{
		"sluice serve", "sluice check", "queue stats", "queue ls", "queue show", "queue dead", "queue requeue", "queue verify", "queue export", "queue import",
		"drain status", "`pause`", "`resume`", "sluice healthcheck", "sluice version", "| 0 |", "| 1 |", "| 64 |", "| 75 |", "| 77 |", "| 78 |",
		"accepted = delivered + invalid + dead + pending",
	} {
		if !strings.Contains(readme, word) {
			t.Errorf("README.md does not have %q", word)
		}
	}
	for _, link := range regexp.MustCompile(`\]\(([a-zA-Z./]+)\)`).FindAllStringSubmatch(readme, -1) {
		if _, err := os.Stat(filepath.Join(root, link[1])); err != nil && link[1] != "docs/format.md" {
			t.Errorf("README.md links to %s: %v", link[1], err)
		}
	}
}

func TestTheImageIsSmallAndUnprivileged(t *testing.T) {
	text := read(t, "Dockerfile")
	for _, line := range []string{
		"FROM scratch", "USER 65532:65532", "VOLUME /data", "SLUICE_DATA_DIR=/data", `CMD ["/sluice", "healthcheck"]`,
		`ENTRYPOINT ["/sluice"]`, "CGO_ENABLED=0", "-trimpath", "ca-certificates.crt", "-X main.release=",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("Dockerfile does not have %q", line)
		}
	}
}

func TestTheSocketsHaveTheNamesThatServeKnows(t *testing.T) {
	for path, name := range map[string]string{"deploy/sluice-https.socket": socketHTTPS, "deploy/sluice-http.socket": socketHTTP} {
		if got := unitLines(t, path, "FileDescriptorName"); !slices.Equal(got, []string{name}) {
			t.Errorf("%s: %v, want %s", path, got, name)
		}
	}
}

func TestTheUnitHoldsWhatTheCodeRelies(t *testing.T) {
	text := read(t, "deploy/sluice.service")
	for _, line := range []string{
		"Type=notify", "WatchdogSec=30s", "ExecStartPre=/usr/bin/sluice check", "ExecReload=/usr/bin/sluice reload", "StateDirectory=sluice", "RestartPreventExitStatus=64 78",
		"TimeoutStartSec=infinity", "TimeoutStopSec=45s", "LimitNOFILE=1048576", "UMask=0077", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
		"NoNewPrivileges=yes", "ProtectSystem=strict", "MemoryDenyWriteExecute=yes",
	} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("deploy/sluice.service does not have %q", line)
		}
	}
}
