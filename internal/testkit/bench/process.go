package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A process is a server that this program started and ends. Its output goes to a
// file, of which [process.fault] shows the end.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed when it has ended
	wg    sync.WaitGroup
}

// start runs a program in a process group of its own. When stdout is not nil it
// has the program's standard output instead of the log.
func start(dir, name string, stdin io.Reader, stdout io.Writer, path string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the program has its own handle of it
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir, p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = dir, stdin, stdout, log
	if stdout == nil {
		p.cmd.Stdout = log
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.wg.Go(func() { // ends with the program
		_ = p.cmd.Wait() // how it ended is in its log
		close(p.ended)
	})
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stopGrace is how long a server may take to end by itself.
const stopGrace = 10 * time.Second

// stop asks the program to end, kills what is left of its group, and waits. It may
// be called again.
func (p *process) stop() {
	select {
	case <-p.ended:
		p.wg.Wait()
		return // its number may be somebody else's by now
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-p.ended:
	case <-time.After(stopGrace):
		fmt.Fprintf(os.Stderr, "bench: %s has not ended %v after being asked to, and is killed\n", p.name, stopGrace)
	}
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL) // as above
	p.wg.Wait()
}

// fault adds the end of the program's log to an error.
func (p *process) fault(err error) error {
	const tail = 2000
	text, readErr := os.ReadFile(p.log)
	if readErr != nil {
		return err
	}
	return fmt.Errorf("%w; end of the log of %s:\n%s", err, p.name, text[max(0, len(text)-tail):])
}

// until calls done every few milliseconds until it answers true. It fails when
// the program ends or ctx is done.
func (p *process) until(ctx context.Context, every time.Duration, done func() bool) error {
	for tick := time.NewTicker(every); ; {
		if done() {
			tick.Stop()
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			tick.Stop()
			return p.fault(fmt.Errorf("%s ended by itself", p.name))
		case <-ctx.Done():
			tick.Stop()
			return p.fault(fmt.Errorf("wait for %s: %w", p.name, ctx.Err()))
		}
	}
}

// tick is the unit of CPU times in /proc: Linux shows hundredths of a second on
// every architecture.
const tick = 10 * time.Millisecond

// cpuTime gives the CPU time, of user and system, that a process and its children
// have used so far. A process that is gone counts as nothing.
func cpuTime(pid int) time.Duration {
	total := time.Duration(0)
	for _, id := range append(children(pid), pid) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
		if err != nil {
			continue
		}
		total += statTime(string(text))
	}
	return total
}

// statTime reads the CPU time out of /proc/PID/stat, 0 when it cannot.
func statTime(text string) time.Duration {
	// The name in parentheses may hold spaces; user and system time are the 12th
	// and 13th field after it.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const user, system = 11, 12
	if len(fields) <= system {
		return 0
	}
	u, err1 := strconv.ParseInt(fields[user], 10, 64)
	s, err2 := strconv.ParseInt(fields[system], 10, 64)
	if errors.Join(err1, err2) != nil {
		return 0
	}
	return time.Duration(u+s) * tick
}

// children gives the ids of a process's children.
func children(pid int) []int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var ids []int
	for field := range strings.FieldsSeq(string(text)) {
		if id, err := strconv.Atoi(field); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// anonMemory gives the anonymous resident memory of a process in bytes, 0 when it
// is gone.
func anonMemory(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	return statusBytes(string(text), "RssAnon:")
}

// statusBytes reads a size out of /proc/PID/status, 0 when it is not there.
func statusBytes(text, key string) int64 {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, key)
		if !ok {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64); err == nil {
			return n << 10
		}
	}
	return 0
}

// A sampler remembers the most anonymous memory that a process was seen to have.
type sampler struct {
	stop chan struct{}
	wg   sync.WaitGroup
	peak int64 // bytes; owned by the goroutine until it has ended
}

// sampleEvery is short beside a cycle of Go's garbage collector under load.
const sampleEvery = 25 * time.Millisecond

func sampleMemory(pid int) *sampler {
	s := &sampler{stop: make(chan struct{})}
	s.wg.Go(func() { // ended by end
		for clock := time.NewTicker(sampleEvery); ; {
			s.peak = max(s.peak, anonMemory(pid))
			select {
			case <-clock.C:
			case <-s.stop:
				clock.Stop()
				return
			}
		}
	})
	return s
}

// end gives the peak in bytes. It is called once.
func (s *sampler) end() int64 {
	close(s.stop)
	s.wg.Wait()
	return s.peak
}
