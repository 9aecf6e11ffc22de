package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sluice/archivegate"
)

const (
	crontabPath    = "deploy/cron/sluice-archive.crontab"
	unitPath       = "deploy/cron/sluice-archive.service"
	timerPath      = "deploy/cron/sluice-archive.timer"
	kubernetesPath = "deploy/cron/sluice-archive.kubernetes.yaml"
)

// standIn begins every stand-in: it writes down how it was called. Each word ends with a
// NUL byte, a call with a line feed.
const standIn = `#!/bin/sh
printf '%s\0' "${0##*/}" "$@" >>"$RECORD"
echo >>"$RECORD"
`

// sluiceStandIn answers as it is told.
const sluiceStandIn = standIn + `case "$1 $2" in
"gate check") exit "$GATE_CHECK" ;;
"gate sites") printf '%s' "$GATE_SITES_TEXT"; exit "$GATE_SITES" ;;
"gate lock")
	[ "$GATE_LOCK" = 0 ] || exit "$GATE_LOCK"
	while [ "$1" != -- ]; do shift; done
	shift
	"$@" ;;
*) exit 99 ;;
esac
`

// A scene is where recipes run: sluice and php are stand-ins, Matomo is a folder.
type scene struct {
	t      *testing.T
	bin    string
	matomo string
	record string
	env    map[string]string
}

func newScene(t *testing.T) *scene {
	t.Helper()
	dir := t.TempDir()
	s := &scene{t: t, bin: filepath.Join(dir, "bin"), matomo: filepath.Join(dir, "matomo of ours"), record: filepath.Join(dir, "record")}
	s.env = map[string]string{
		"PATH": s.bin + ":" + os.Getenv("PATH"), "RECORD": s.record, "MATOMO": s.matomo, "EDGE": nobody,
		"GATE_CHECK": "0", "GATE_SITES": "0", "GATE_SITES_TEXT": "1,2,5\n", "GATE_LOCK": "0",
	}
	for _, d := range []string{s.bin, filepath.Join(s.matomo, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"sluice": sluiceStandIn, "php": standIn} {
		if err := os.WriteFile(filepath.Join(s.bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// environ is what a recipe finds: what the test says, not what this process has.
func (s *scene) environ(more map[string]string) []string {
	all := maps.Clone(s.env)
	maps.Copy(all, more)
	var out []string
	for name, value := range all {
		out = append(out, name+"="+value)
	}
	return out
}

// run runs a command with something to read, and returns its exit code and all that it
// printed.
func (s *scene) run(argv []string, stdin string, more map[string]string) (int, string) {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), argv[0], argv[1:]...)
	cmd.Env, cmd.Stdin, cmd.Dir = s.environ(more), strings.NewReader(stdin), s.t.TempDir()
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		s.t.Fatalf("run %q: %v", argv, err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// calls gives how the stand-ins were called, each with its name first, and forgets it.
func (s *scene) calls() [][]string {
	s.t.Helper()
	text, err := os.ReadFile(s.record)
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	os.Remove(s.record)
	var out [][]string
	for call := range strings.SplitSeq(string(text), "\x00\n") {
		if call != "" {
			out = append(out, strings.Split(call, "\x00"))
		}
	}
	return out
}

// want compares the calls, each written with spaces, with what they should be.
func (s *scene) want(what string, want ...string) {
	s.t.Helper()
	var got []string
	for _, call := range s.calls() {
		for i := range call { // a path that was torn apart at its space is not found
			call[i] = strings.ReplaceAll(call[i], s.matomo, "MATOMO")
		}
		got = append(got, strings.Join(call, " "))
	}
	if !slices.Equal(got, want) {
		s.t.Errorf("%s: called\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// A cronLine is a line of the crontab as cron takes it.
type cronLine struct {
	off      bool // it is commented out
	schedule []string
	user     string
	command  string
	stdin    string
}

var (
	cronEntry    = regexp.MustCompile(`^(#?)([0-9*]\S*) (\S+) (\S+) (\S+) (\S+) (\S+) (.+)$`)
	cronVariable = regexp.MustCompile(`^#?([A-Z_]+)=(\S+)$`)
	cronField    = regexp.MustCompile(`^(\*(/[0-9]+)?|[0-9]+(-[0-9]+)?)$`)
)

// readCrontab gives the lines of each recipe, by the letter of its comment, and the
// variables.
func readCrontab(t *testing.T) (recipes map[string][]cronLine, variables map[string]string) {
	t.Helper()
	recipes, variables = map[string][]cronLine{}, map[string]string{}
	letter := ""
	text := read(t, crontabPath)
	if !strings.HasSuffix(text, "\n") {
		t.Errorf("%s does not end with a line feed: cron passes over its last line", crontabPath)
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line := lines.Text()
		if m := cronVariable.FindStringSubmatch(line); m != nil {
			variables[m[1]] = m[2]
		} else if m := cronEntry.FindStringSubmatch(line); m != nil {
			l := cronLine{off: m[1] != "", schedule: m[2:7], user: m[7]}
			l.command, l.stdin = cronCommand(m[8])
			recipes[letter] = append(recipes[letter], l)
		} else if strings.HasPrefix(line, "# (") {
			letter = line[3:4]
		} else if line != "" && line != "#" && !strings.HasPrefix(line, "# ") {
			t.Errorf("%s has a line that is neither comment, variable nor recipe: %s", crontabPath, line)
		}
	}
	return recipes, variables
}

// cronCommand is what cron makes of the rest of a line: the first % that has no
// backslash ends the command, what follows is its input, with further ones as line
// feeds. A backslash before a % goes.
func cronCommand(rest string) (command, stdin string) {
	var parts []string
	var b strings.Builder
	for i := 0; i < len(rest); i++ {
		switch {
		case rest[i] == '\\' && i+1 < len(rest) && rest[i+1] == '%':
			i++
			b.WriteByte('%')
		case rest[i] == '%':
			parts = append(parts, b.String())
			b.Reset()
		default:
			b.WriteByte(rest[i])
		}
	}
	parts = append(parts, b.String())
	return parts[0], strings.Join(parts[1:], "\n")
}

func (s *scene) cron(l cronLine, more map[string]string) (int, string) {
	s.t.Helper()
	return s.run([]string{"/bin/sh", "-c", l.command}, l.stdin, more)
}

// recipe gives a recipe's lines on a new scene.
func recipe(t *testing.T, letter string, lines int) (*scene, []cronLine) {
	t.Helper()
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("SKIPPED: there is no flock on this machine")
	}
	recipes, _ := readCrontab(t)
	if got := len(recipes[letter]); got != lines {
		t.Fatalf("(%s) has %d lines, want %d", letter, got, lines)
	}
	return newScene(t), recipes[letter]
}

func TestCronTakesTheRecipes(t *testing.T) {
	recipes, variables := readCrontab(t)
	if got := slices.Sorted(maps.Keys(recipes)); !slices.Equal(got, []string{"a", "b", "c", "d"}) {
		t.Errorf("recipes %v, want a, b, c and d", got)
	}
	for letter, lines := range recipes {
		for _, l := range lines {
			if want := letter != "a"; l.off != want {
				t.Errorf("(%s) is switched off: %v, want %v", letter, l.off, want)
			}
			for _, field := range l.schedule {
				if !cronField.MatchString(field) {
					t.Errorf("(%s): %q is no field of a schedule", letter, field)
				}
			}
			// Debian's cron cuts a command at 998 bytes.
			if l.user != "www-data" || len(l.command) > 900 || l.stdin != "" {
				t.Errorf("(%s): user %s, %d bytes, input %q; want www-data, fewer than 900, none", letter, l.user, len(l.command), l.stdin)
			}
		}
	}
	if got := slices.Sorted(maps.Keys(variables)); !slices.Equal(got, []string{"EDGE", "MAILTO", "MATOMO", "SLUICE_ADMIN_TOKEN_FILE"}) {
		t.Errorf("variables %v", got)
	}
	if command, stdin := cronCommand(`date +\%F 100%a%b\c`); command != "date +%F 100" || stdin != "a\nb\\c" {
		t.Errorf("got %q with input %q, want cron's own reading", command, stdin)
	}
}

const (
	askedAll  = "sluice gate check --all --date finished --wait 40m -q"
	askedIDs  = "sluice gate sites --complete --date finished"
	archived  = "php MATOMO/console core:archive --no-ansi"
	oneByOne  = archived + " --force-idsites=1,2,5 --disable-scheduled-tasks"
	tasksDone = "php MATOMO/console core:run-scheduled-tasks --no-ansi"
)

func TestAllOrNothing(t *testing.T) {
	s, lines := recipe(t, "a", 1)
	code, out := s.cron(lines[0], nil)
	if code != 0 || out != "" {
		t.Errorf("exit %d with %q, want 0 and nothing printed", code, out)
	}
	s.want("the gate is open", askedAll, archived)
	for _, code := range []string{"75", "1", "64", "77"} {
		s.cron(lines[0], map[string]string{"GATE_CHECK": code})
		s.want("the gate exits with "+code, askedAll)
	}
	s.lock("sluice-archive.lock")
	s.cron(lines[0], nil)
	s.want("another run waits or archives")
}

// lock takes a recipe's lock until the test is over.
func (s *scene) lock(name string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.matomo, "tmp", name), os.O_RDWR, 0)
	if err != nil {
		s.t.Fatalf("the recipe has left no lock: %v", err)
	}
	s.t.Cleanup(func() { f.Close() })
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		s.t.Fatal(err)
	}
}

func TestPerSite(t *testing.T) {
	s, lines := recipe(t, "b", 2)
	if code, out := s.cron(lines[0], nil); code != 0 || out != "" {
		t.Errorf("exit %d with %q, want 0 and nothing printed", code, out)
	}
	s.want("three sites are complete", askedIDs, oneByOne)
	tests := []struct{ name, code, text string }{
		{"no site is complete", "75", ""},
		{"there is no answer", "75", ""},
		{"the list breaks off", "75", "1,2"},
		// Neither may ever happen; Matomo would archive everything.
		{"an empty list with exit code 0", "0", ""},
		{"an empty line with exit code 0", "0", "\n"},
	}
	for _, tt := range tests {
		s.cron(lines[0], map[string]string{"GATE_SITES": tt.code, "GATE_SITES_TEXT": tt.text})
		s.want(tt.name, askedIDs)
	}
	s.cron(lines[1], nil)
	s.want("the tasks", "sluice gate check --all --date finished -q", tasksDone)
	s.cron(lines[1], map[string]string{"GATE_CHECK": "75"})
	s.want("the tasks of a day that is not complete", "sluice gate check --all --date finished -q")
	s.lock("sluice-archive.lock")
	s.cron(lines[0], nil)
	s.want("another run archives")
}

func TestTheFastLaneIsAboutTodayOnly(t *testing.T) {
	s, lines := recipe(t, "c", 1)
	today := func() string { return time.Now().UTC().Format(time.DateOnly) }
	for before := ""; before != today(); s.calls() { // not over midnight
		before = today()
		if code, out := s.cron(lines[0], nil); code != 0 || out != "" {
			t.Errorf("exit %d with %q, want 0 and nothing printed", code, out)
		}
		if before == today() {
			s.want("today", archived+" --force-all-websites --force-periods=day --force-date-range="+before+","+before+" --disable-scheduled-tasks")
		}
	}
	if hours := lines[0].schedule[1]; hours != "0-22" {
		t.Errorf("at the hours %s, want none in the last one of the day", hours)
	}
	s.lock("sluice-today.lock")
	s.cron(lines[0], nil)
	s.want("the run before goes on")
}

func TestOneServerArchives(t *testing.T) {
	s, lines := recipe(t, "d", 1)
	lock := "sluice gate lock -q --url " + nobody + ` -- sh -c sluice gate check --url "$EDGE" --all --date finished --wait 40m -q && exec php "$MATOMO/console" core:archive --no-ansi`
	check := "sluice gate check --url " + nobody + " --all --date finished --wait 40m -q"
	if code, out := s.cron(lines[0], nil); code != 0 || out != "" {
		t.Errorf("exit %d with %q, want 0 and nothing printed", code, out)
	}
	s.want("the lock is free", lock, check, archived)
	s.cron(lines[0], map[string]string{"GATE_CHECK": "75"})
	s.want("the day is not complete", lock, check)
	s.cron(lines[0], map[string]string{"GATE_LOCK": "75"})
	s.want("another server has the lock", lock)
}

// TestTheLockRunsItsCommand has the real gate lock run the recipe's command.
func TestTheLockRunsItsCommand(t *testing.T) {
	s, lines := recipe(t, "d", 1)
	var taken atomic.Bool
	edge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path.Base(r.URL.Path) == "lock" && taken.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		json.NewEncoder(w).Encode(archivegate.Lease{Name: "archive", Who: "www-data@db2", Key: "k", Until: time.Now().Add(time.Minute)})
	}))
	defer edge.Close()
	s.env["EDGE"] = edge.URL
	s.cron(lines[0], map[string]string{"GATE_LOCK": "1"})
	args := s.calls()[0][1:]
	check := "sluice gate check --url " + edge.URL + " --all --date finished --wait 40m -q"
	// The command is looked up in this process, which has no stand-ins in its PATH: it is
	// sh, and what sh calls are the stand-ins.
	if code, stdout, stderr := command(s.environ(nil), args...); code != 0 {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	s.want("the lock is free", check, archived)
	if code, _, _ := command(s.environ(map[string]string{"GATE_CHECK": "75"}), args...); code != exitNotNow {
		t.Errorf("exit %d of a day that is not complete, want %d", code, exitNotNow)
	}
	s.want("the day is not complete", check)
	taken.Store(true)
	if code, _, stderr := command(s.environ(nil), args...); code != exitNotNow || stderr != "" {
		t.Errorf("exit %d and %q, want %d and nothing said", code, stderr, exitNotNow)
	}
	s.want("another server has the lock")
}

// TestRecipesParse gives every command line of sluice in the recipes, as it arrives
// there, to the real grammar. Nothing listens, so that "not now" means that it was
// understood.
func TestRecipesParse(t *testing.T) {
	s := newScene(t)
	recipes, _ := readCrontab(t)
	var lines [][]string
	for _, letter := range slices.Sorted(maps.Keys(recipes)) {
		for _, l := range recipes[letter] {
			s.cron(l, nil)
		}
	}
	s.start(nil)
	job := readCronJob(t)
	s.pod(&job, nil)
	for _, call := range s.calls() {
		if call[0] == "sluice" {
			lines = append(lines, call[1:])
		}
	}
	if len(lines) != 7 {
		t.Fatalf("%d command lines, want 7: %v", len(lines), lines)
	}
	token := file(t, "token", "0123456789abcdef0123456789abcdef", 0o440)
	for _, args := range lines {
		// An address where nobody is, in place of the recipe's or the default one.
		here := append(slices.Clone(args[:2]), "--admin.listen=127.0.0.1:1")
		for _, arg := range args[2:] {
			if strings.HasPrefix(arg, "--url=") {
				arg = "--url=" + nobody
			}
			here = append(here, arg)
		}
		for _, env := range [][]string{nil, {"SLUICE_ADMIN_TOKEN_FILE=" + token}} {
			code, stdout, stderr := inAHurry(env, here...)
			if code != exitNotNow || stdout != "" {
				t.Errorf("sluice %s\nexits with %d, want %d: %s%s", strings.Join(args, " "), code, exitNotNow, stdout, stderr)
			}
		}
		if args[1] == "lock" {
			continue // all that it does not know begins the command that it runs
		}
		// What is no flag would be seen.
		wrong := slices.Insert(slices.Clone(here), 2, "--waits=40m")
		if code, _, _ := inAHurry(nil, wrong...); code != exitUsage {
			t.Errorf("sluice %s exits with %d, want %d", strings.Join(wrong, " "), code, exitUsage)
		}
	}
}

// inAHurry is command with a clock on which an hour goes by with each look, so that
// nothing waits.
func inAHurry(env []string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	now := testNow()
	code = run(&process{
		args: args, env: env, stdin: strings.NewReader(""), stdout: &out, stderr: &errs, signals: make(chan os.Signal),
		now: func() time.Time { now = now.Add(time.Hour); return now }, zone: time.UTC, pid: 1,
	})
	return code, out.String(), errs.String()
}

// TestGuideKnowsTheRecipes: what docs/gate.md points at is there, and it has all that the
// code and the recipes send people there for.
func TestGuideKnowsTheRecipes(t *testing.T) {
	guide := read(t, "docs/gate.md")
	for _, p := range []string{crontabPath, unitPath, timerPath, kubernetesPath} {
		if !strings.Contains(guide, path.Base(p)) {
			t.Errorf("docs/gate.md does not have %s", path.Base(p))
		}
	}
	for _, link := range regexp.MustCompile(`\]\((\.\./)?([a-zA-Z./_-]+)(#[a-z-]+)?\)`).FindAllStringSubmatch(guide, -1) {
		if _, err := os.Stat(filepath.Join(root, map[string]string{"../": "", "": "docs"}[link[1]], link[2])); err != nil {
			t.Errorf("docs/gate.md links to %s%s: %v", link[1], link[2], err)
		}
	}
	slug := strings.NewReplacer(" ", "-", ".", "")
	var headings []string
	for _, m := range regexp.MustCompile(`(?m)^##+ (.+)$`).FindAllStringSubmatch(guide, -1) {
		headings = append(headings, slug.Replace(strings.ToLower(m[1])))
	}
	for _, link := range regexp.MustCompile(`\]\(#([a-z-]+)\)`).FindAllStringSubmatch(guide, -1) {
		if !slices.Contains(headings, link[1]) {
			t.Errorf("docs/gate.md: link to #%s leads nowhere", link[1])
		}
	}
	for _, f := range settingFlags(t) {
		if strings.HasPrefix(f.Name, "gate.") && !strings.Contains(guide, "`"+f.Name+"`") {
			t.Errorf("docs/gate.md does not have the setting %s", f.Name)
		}
	}
	for _, state := range []archivegate.State{
		archivegate.StateOpen, archivegate.StateSealing, archivegate.StateDraining, archivegate.StateReopened,
		archivegate.StateComplete, archivegate.StateUnknown, archivegate.StateForced,
	} {
		if !strings.Contains(guide, fmt.Sprintf("\n| `%s` |", state)) {
			t.Errorf("docs/gate.md has no row for the state %s", state)
		}
	}
	// The code sends people there.
	if !strings.Contains(guide, "\n## Lost hits\n") {
		t.Error(`docs/gate.md has no heading "Lost hits"`)
	}
}
