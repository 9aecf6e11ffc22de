package crashtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/queue"
)

// waitLimit bounds every wait for a child.
const waitLimit = 30 * time.Second

// A process is a running worker and the ledger that follows its lines.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	err *tail

	mu      sync.Mutex
	led     *ledger
	changed chan struct{} // closed and renewed at every line
	acks    int           // in this life
	refused int           // appends refused in this life
	settles int           // settlements in this life
	ready   bool
	closed  bool // the worker has closed the queue
	saysNow string
	failure string    // of the queue, as the worker told
	failAt  time.Time // when it told
	firstU  time.Time // when the first Append failed
	stats   *queue.Stats
	quiet   bool
	made    bool // all imports
	// late: what is read from now on promises nothing; see ledger.read.
	late bool
	// onLine, if not nil, is told of every line, under mu.
	onLine func(line string)

	exited  chan struct{} // closed when the pipe has ended and the child is reaped
	exitErr error
}

// command gives the command of a child; wrap, if any, is a program that runs it.
func command(j job, wrap ...string) *exec.Cmd {
	text, err := json.Marshal(j)
	if err != nil {
		panic(err) // a job is plain data
	}
	args := append(wrap, os.Args[0])
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), jobEnv+"="+string(text), "GOTRACEBACK=single")
	return cmd
}

// start runs a worker. It is killed when the test ends.
func start(t *testing.T, l *ledger, j job, onLine func(string), wrap ...string) *process {
	t.Helper()
	p := &process{t: t, led: l, changed: make(chan struct{}), exited: make(chan struct{}), err: &tail{}, onLine: onLine}
	p.cmd = command(j, wrap...)
	p.cmd.Stderr = p.err
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go p.follow(out) // ends with the child
	t.Cleanup(p.kill)
	return p
}

func (p *process) follow(out io.Reader) {
	lines := bufio.NewReaderSize(out, 256<<10)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // a line without its end was cut by the kill: nobody was told
		}
		p.take(strings.TrimSuffix(line, "\n"))
	}
	p.exitErr = p.cmd.Wait()
	close(p.exited)
}

func (p *process) take(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.onLine != nil {
		p.onLine(line)
	}
	p.led.read(line, p.late)
	switch {
	case line == "R":
		p.ready = true
	case line == "Z":
		p.closed = true
	case line == "W":
		p.made = true
	case line == "quiet":
		p.quiet = true
	case strings.HasPrefix(line, "A "):
		p.acks++
	case strings.HasPrefix(line, "f "):
		p.refused++
	case strings.HasPrefix(line, "S "):
		p.settles++
	case strings.HasPrefix(line, "Y "):
		p.saysNow = line[2:]
	case strings.HasPrefix(line, "F "):
		p.failure, p.failAt = line[2:], time.Now()
	case strings.HasPrefix(line, "u ") && p.firstU.IsZero():
		p.firstU = time.Now()
	case strings.HasPrefix(line, "T "):
		p.stats = &queue.Stats{}
		if err := json.Unmarshal([]byte(line[2:]), p.stats); err != nil {
			p.led.fault("%v", err)
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// errEnded: the child ended before what was waited for.
var errEnded = errors.New("the child has ended")

// cut makes everything that is not read yet late.
func (p *process) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = true
}

// await waits until cond, which is called under the lock, holds.
func (p *process) await(limit time.Duration, cond func() bool) error {
	timeout := time.After(limit)
	for {
		p.mu.Lock()
		ok, changed := cond(), p.changed
		p.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-p.exited:
			p.mu.Lock()
			ok := cond()
			p.mu.Unlock()
			if ok {
				return nil
			}
			return errEnded
		case <-timeout:
			return context.DeadlineExceeded
		}
	}
}

func (p *process) mustAwait(what string, cond func() bool) {
	p.t.Helper()
	if err := p.await(waitLimit, cond); err != nil {
		p.t.Fatalf("waiting for %s: %v; the child says: %s", what, err, p.err)
	}
}

// tell writes a command to the worker. A worker that is gone is noticed elsewhere.
func (p *process) tell(command string) { _, _ = io.WriteString(p.in, command+"\n") }

// said gives what Ready said last.
func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.saysNow
}

// acked gives how many sets were acknowledged in this life.
func (p *process) acked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.acks
}

// statsNow asks the worker for its figures.
func (p *process) statsNow() queue.Stats {
	p.t.Helper()
	p.mu.Lock()
	p.stats = nil
	p.mu.Unlock()
	p.tell("stats")
	p.mustAwait("figures", func() bool { return p.stats != nil })
	p.mu.Lock()
	defer p.mu.Unlock()
	return *p.stats
}

// kill ends the child at once and waits until all its lines are read.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	select {
	case <-p.exited:
	case <-time.After(waitLimit):
		p.t.Errorf("the child cannot be killed")
	}
}

// exitCode is what the child ended with, -1 for a signal.
func (p *process) exitCode() int { return p.cmd.ProcessState.ExitCode() }

// A tail keeps the last lines of a child's standard error.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const (
	tailBytes  = 16 << 10
	shownBytes = 1500
)

func (w *tail) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, b...)
	if over := len(w.buf) - tailBytes; over > 0 {
		// The head says why a program crashed, the end how it went on.
		w.buf = append(w.buf[:tailBytes/2], w.buf[tailBytes/2+over:]...)
	}
	return len(b), nil
}

func (w *tail) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.buf) > 2*shownBytes {
		return string(w.buf[:shownBytes]) + " ... " + string(w.buf[len(w.buf)-shownBytes/2:])
	}
	return string(w.buf)
}

// takeCensus opens the queue in a child and reads what is in it. It returns an
// error with the child's own words if that fails.
func takeCensus(ctx context.Context, j job) (*findings, error) {
	if j.Role == "" {
		j.Role = roleCensus
	}
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	c := command(j)
	cmd := exec.CommandContext(ctx, c.Path, c.Args[1:]...)
	cmd.Env = c.Env
	errs := &tail{}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, errs
	err := cmd.Run()
	f := parseCensus(out.String())
	f.log = errs.String()
	if err != nil {
		return f, fmt.Errorf("census: %w: %s", err, errs)
	}
	return f, nil
}

// check takes a census and reports every broken promise.
func check(t *testing.T, l *ledger, j job, where string) {
	t.Helper()
	c, err := takeCensus(t.Context(), j)
	if err != nil {
		t.Errorf("%s: %v", where, err)
	}
	faults := l.judge(c)
	report(t, faults, where)
	if len(faults) > 0 {
		t.Logf("%s: the census said: %s", where, c.log)
	}
}

// report lists broken promises, at most a few of them.
func report(t *testing.T, faults []string, where string) {
	t.Helper()
	const most = 8
	for i, f := range faults {
		if i == most {
			t.Errorf("%s: and %d more", where, len(faults)-most)
			return
		}
		t.Errorf("%s: %s", where, f)
	}
}

// lost counts the faults that say that something is lost.
func lost(faults []string) (n int) {
	for _, f := range faults {
		if strings.Contains(f, "LOST") {
			n++
		}
	}
	return n
}
