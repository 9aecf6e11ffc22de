package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/creack/pty"
)

// A terminal is the other side of a pseudo terminal, and keeps what is written to it.
type terminal struct {
	t       *testing.T
	columns int
	master  *os.File
	slave   *os.File
	done    chan struct{} // closed when all is read
	mu      sync.Mutex
	written []byte
}

func newTerminal(t *testing.T, columns uint16) *terminal {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := pty.Setsize(master, &pty.Winsize{Rows: 40, Cols: columns}); err != nil {
		t.Fatal(err)
	}
	tt := &terminal{t: t, columns: int(columns), master: master, slave: slave, done: make(chan struct{})}
	go func() { // until the slave is closed
		defer close(tt.done)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			tt.mu.Lock()
			tt.written = append(tt.written, b[:n]...)
			tt.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { slave.Close(); <-tt.done; master.Close() })
	return tt
}

func (tt *terminal) text() string {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	return string(tt.written)
}

func (tt *terminal) await(want string) {
	tt.t.Helper()
	for range 2000 {
		if regexp.MustCompile(want).MatchString(tt.text()) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	tt.t.Fatalf("%q is not written: %q", want, tt.text())
}

var cursorSequence = regexp.MustCompile(`^\x1b\[(\d*)([AJ])`)

// screen gives what a human sees once nothing more is written: it ends the terminal.
func (tt *terminal) screen() string {
	tt.t.Helper()
	tt.slave.Close()
	<-tt.done
	rows, row, column := []string{""}, 0, 0
	down := func() {
		if row++; row == len(rows) {
			rows = append(rows, "")
		}
	}
	for s := tt.text(); len(s) > 0; {
		if m := cursorSequence.FindStringSubmatch(s); m != nil {
			s = s[len(m[0]):]
			if n, _ := strconv.Atoi(m[1]); m[2] == "A" {
				row = max(row-n, 0)
			} else {
				rows = rows[:row+1]
				rows[row] = string([]rune(rows[row])[:min(column, utf8.RuneCountInString(rows[row]))])
			}
			continue
		}
		c, size := utf8.DecodeRuneInString(s)
		s = s[size:]
		switch c {
		case '\r':
			column = 0
		case '\n':
			down()
		case 0x1b:
			tt.t.Fatalf("an escape sequence that this terminal does not know: %q", s)
		default:
			if column == tt.columns {
				column = 0
				down()
			}
			line := []rune(rows[row] + strings.Repeat(" ", max(column+1-utf8.RuneCountInString(rows[row]), 0)))
			line[column] = c
			rows[row] = string(line)
			column++
		}
	}
	return strings.Join(rows, "\n")
}

func manyLines(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(logLine(i))
	}
	return b.String()
}

// TestImportOnATerminal: there is a bar, and nothing of it stays, whatever happens; what
// is said meanwhile stands above it.
func TestImportOnATerminal(t *testing.T) {
	t.Parallel()
	const lines = 30_000
	for _, tt := range []struct {
		name    string
		columns uint16
		do      func(s *server, tt *terminal, signals chan<- os.Signal) // before the log ends
		code    int
		bar     string
		want    string // of the end
	}{
		{"to the end", 120, nil, exitOK, `taking \[=*>?-*\] [\d,]+ lines`, "ok  30,000 hits would be taken, of 30,000 lines in 1 files    site 1: 10,000 "},
		{"narrow", 30, nil, exitOK, `taking `, "ok  30,000 hits would be taken, of 30,000 lines in 1 files    site 1: 10,000 "},
		{"interrupted", 20, func(_ *server, tt *terminal, signals chan<- os.Signal) {
			if _, err := tt.master.WriteString("\x03"); err != nil { // it comes back as ^C
				tt.t.Error(err)
			}
			tt.await(`\^C`)
			time.Sleep(400 * time.Millisecond) // the bar goes on
			signals <- syscall.SIGINT
			time.Sleep(100 * time.Millisecond) // it is heard
		}, exitFailed, `reading `, "sluice: import: interrupted  try: "},
		{"the edge ends", 120, func(s *server, _ *terminal, _ chan<- os.Signal) { s.stop() }, exitNotNow, `reading [-|/\\] [\d,]+ lines`, "sluice: import at "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := startServer(t, filepath.Join(dir, "data"), nobody)
			log, link := filepath.Join(dir, "a"), filepath.Join(dir, "b")
			if tt.do == nil {
				writeLog(t, log, manyLines(lines))
			} else if err := syscall.Mkfifo(log, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(log, link); err != nil {
				t.Fatal(err)
			}
			term := newTerminal(t, tt.columns)
			signals := make(chan os.Signal, 1)
			code := make(chan int, 1)
			go func() {
				code <- run(&process{
					args: []string{"import", "--color=never", "--dry-run", "--admin.listen=" + s.private, "--data-dir=" + s.dir, log, link}, stdin: strings.NewReader(""),
					stdout: term.slave, stderr: term.slave, signals: signals, now: time.Now, zone: time.UTC, pid: 1,
				})
			}()
			if tt.do != nil {
				w, err := os.OpenFile(log, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(w, manyLines(lines)); err != nil {
					t.Fatal(err)
				}
				term.await(tt.bar)
				tt.do(s, term, signals)
				w.Close()
			}
			if got := <-code; got != tt.code {
				t.Errorf("exit %d, want %d", got, tt.code)
			}
			got := term.screen()
			if !regexp.MustCompile(tt.bar).MatchString(term.text()) {
				t.Errorf("no bar is in %q", term.text())
			}
			folded := strings.ReplaceAll(got, "\n", "")
			for _, want := range []string{tt.want, "--  " + link + " is " + log + " and is read once--", "--  " + log + ": combined"} {
				if !strings.Contains(folded, want) {
					t.Errorf("one sees\n%s\nwant %q in it", got, want)
				}
			}
			if regexp.MustCompile(`reading|taking \[|left`).MatchString(folded) {
				t.Errorf("a bar is left: one sees\n%s", got)
			}
		})
	}
}

// TestImportAsJSONOnATerminal: there, too, it is nothing but the object.
func TestImportAsJSONOnATerminal(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, filepath.Join(dir, "data"), nobody)
	term := newTerminal(t, 1000)
	code := run(&process{
		args:  []string{"import", "--dry-run", "--json", "--admin.listen=" + s.private, "--data-dir=" + s.dir, writeLog(t, filepath.Join(dir, "a"), manyLines(30_000))},
		stdin: strings.NewReader(""), stdout: term.slave, stderr: term.slave, now: time.Now, zone: time.UTC, pid: 1,
	})
	term.slave.Close()
	<-term.done
	var sum logSum
	if err := json.Unmarshal([]byte(term.text()), &sum); err != nil || code != exitOK || sum.Hits != 30_000 {
		t.Errorf("exit %d, %v: %q", code, err, term.text())
	}
}

// TestLinesOfProgress: off a terminal there is a line every ten seconds, also while
// nothing goes on.
func TestLinesOfProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newLogProgress(&printer{process: &process{stdout: &out, stderr: io.Discard}}, false)
		phase := p.begin("reading", 0)
		phase.lines.Add(1500)
		time.Sleep(logTellEvery + time.Second)
		phase = p.begin("taking", 4000)
		p.say("a warning")
		phase.lines.Add(1000)
		phase.done.Add(1000)
		time.Sleep(2 * logTellEvery)
		phase.lines.Add(3000)
		phase.done.Add(3000)
		time.Sleep(logTellEvery)
		p.stop()
		want := `--  reading: 1,500 lines, 150/s
--  a warning
--  taking: 1,000 lines, 111/s, 25 %, 27 s left
--  taking: 1,000 lines, 53/s, 25 %, 57 s left
--  taking: 4,000 lines, 138/s, 100 %
`
		if out.String() != want {
			t.Errorf("got\n%s\nwant\n%s", &out, want)
		}
	})
}
