package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/cupwriter"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// logTellEvery is how often a long import says how far it is where there is no terminal.
const logTellEvery = 10 * time.Second

// logBarWidth is how wide a bar is in columns, if there is room.
const logBarWidth = 30

// A logProgress tells how far an import is: with a bar on a terminal, elsewhere with a
// line now and then. All that is printed until stop has to go through say, which any
// goroutine may call.
type logProgress struct {
	mu   sync.Mutex // of out
	out  io.Writer
	mark string

	bars  *mpb.Progress // nil without a terminal
	bar   *mpb.Bar
	above bool // what is said is seen where the bar is
	phase atomic.Pointer[logPhase]
	ended chan struct{}
	lines sync.WaitGroup // of the goroutine that prints them
}

// A barWriter begins at the left: what the terminal echoes, as ^C, has moved the cursor.
type barWriter struct {
	*cupwriter.Writer
	terminal io.Writer
}

func (w barWriter) Flush(lines int) error {
	if _, err := io.WriteString(w.terminal, "\r"); err != nil {
		return err
	}
	return w.Writer.Flush(lines)
}

// A logPhase is a part of an import, and how far it is.
type logPhase struct {
	name  string
	total int64 // that done goes up to; 0 if it is not known
	begun time.Time
	lines atomic.Int64
	done  atomic.Int64
}

// newLogProgress makes one; quiet ones say nothing.
func newLogProgress(o *printer, quiet bool) *logProgress {
	p := &logProgress{out: o.stdout, mark: o.mark(toneUnset), ended: make(chan struct{})}
	var terminal io.Writer
	for _, w := range []io.Writer{o.stdout, o.stderr} {
		if isTerminal(w) && lookup(o.env, "TERM") != "dumb" {
			terminal = w
		}
	}
	switch {
	case quiet:
		p.out = io.Discard
	case terminal != nil:
		p.bars, p.above = mpb.New(mpb.WithConsoleWriter(barWriter{cupwriter.New(terminal, false), terminal})), isTerminal(o.stdout)
	default:
		p.lines.Go(p.tick)
	}
	return p
}

// begin begins a phase, and ends the one before.
func (p *logProgress) begin(name string, total int64) *logPhase {
	phase := &logPhase{name: name, total: total, begun: time.Now()}
	p.phase.Store(phase)
	if p.bars == nil {
		return phase
	}
	p.end()
	filler, width := mpb.SpinnerStyle("|", "/", "-", "\\").Build(), 1
	if total > 0 {
		filler, width = mpb.BarStyle().Build(), logBarWidth
	}
	fill := func(w io.Writer, s decor.Statistics) error {
		s.Total, s.Current = total, min(phase.done.Load(), total)
		return filler.Fill(w, s)
	}
	// A terminal that is gone gives an error here, and the import goes on.
	p.bar, _ = p.bars.Add(0, mpb.BarFillerFunc(fill), mpb.BarWidth(width), mpb.BarFillerTrim(),
		mpb.PrependDecorators(decor.Name(name+" ")),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return " " + phase.text(time.Now()) })))
	return phase
}

// end takes the bar away.
func (p *logProgress) end() {
	if p.bar != nil {
		p.bar.Abort(true)
		p.bar.Wait()
	}
	p.bar = nil
}

// say prints a line.
func (p *logProgress) say(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	line = fmt.Sprintf("%s  %s\n", p.mark, line)
	if p.above {
		if _, err := io.WriteString(p.bars, line); err == nil {
			return
		}
	}
	fmt.Fprint(p.out, line)
}

// stop ends the telling. What is printed from then on stands where the bar was.
func (p *logProgress) stop() {
	close(p.ended)
	p.lines.Wait()
	if p.bars != nil {
		p.end()
		p.bars.Wait()
	}
}

func (p *logProgress) tick() {
	t := time.NewTicker(logTellEvery)
	defer t.Stop()
	for {
		select {
		case <-p.ended:
			return
		case now := <-t.C:
			if phase := p.phase.Load(); phase != nil {
				p.say(phase.name + ": " + phase.text(now))
			}
		}
	}
}

// text says how far a phase is.
func (p *logPhase) text(now time.Time) string {
	took, lines, done := now.Sub(p.begun), p.lines.Load(), min(p.done.Load(), p.total)
	if lines == 0 {
		return span(took)
	}
	parts := []string{number(lines) + " lines"}
	if took >= time.Second {
		parts = append(parts, rate(float64(lines)/took.Seconds()))
	}
	if p.total > 0 {
		parts = append(parts, fmt.Sprintf("%d %%", done*100/p.total))
	}
	if done > 0 && took >= time.Second {
		if left := time.Duration(float64(took) / float64(done) * float64(p.total-done)); left >= time.Second {
			parts = append(parts, span(left)+" left")
		}
	}
	return strings.Join(parts, ", ")
}
