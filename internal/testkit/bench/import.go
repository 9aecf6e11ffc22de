package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// maxImportAnon is the most anonymous memory that sluice import may have with its
// default --memory of 256 MiB, in MiB.
const maxImportAnon = 352

// importPart takes access logs with sluice import, first a tenth of the lines and then
// all of them, each time into a new edge whose Matomo is away. Memory must not grow with
// the lines.
func importPart(ctx context.Context, b *bench) error {
	const part = 10
	few, err := importLogs(ctx, b, "import-tenth", b.importLines/part)
	if err != nil {
		return err
	}
	all, err := importLogs(ctx, b, "import", b.importLines)
	if err != nil {
		return err
	}
	lines := float64(all.lines)
	rate := func(d time.Duration) string { return thousands(int64(lines / d.Seconds())) }
	b.table.shown("import, lines/s", rate(all.reading+all.taking), fmt.Sprintf("%s lines, %.0f MiB, of %d servers, written at %s lines/s; reading and sorting %s/s, taking %s/s; CPU a line: the command %.1f µs, sluice %.1f µs; a tenth of the lines: %s/s",
		thousands(int64(all.lines)), float64(all.bytes)/mib, logServers, rate(all.writing), rate(all.reading), rate(all.taking), micros(all.used)/lines, micros(all.usedThere)/lines,
		thousands(int64(float64(few.lines)/(few.reading+few.taking).Seconds()))))
	b.table.below("import, anonymous memory of the command, MiB", float64(all.peak)/mib, maxImportAnon, "%.0f", fmt.Sprintf("a tenth of the lines: %.0f MiB", float64(few.peak)/mib))
	b.table.below("import, anonymous memory, MiB", float64(all.peakThere)/mib, maxAnon, "%.0f", fmt.Sprintf("a tenth of the lines: %.0f MiB", float64(few.peakThere)/mib))
	b.table.shown("import, disk a line, bytes", fmt.Sprintf("%.0f", float64(all.disk)/lines), fmt.Sprintf("%.0f MiB of the edge for lines of %.0f bytes", float64(all.disk)/mib, float64(all.bytes)/lines))
	return nil
}

// An imported is what some imports took.
type imported struct {
	lines           int
	bytes           int64         // of the logs, before compression
	writing         time.Duration // of the logs, by this program
	reading         time.Duration // and sorting, until the edge was asked for the first time
	taking          time.Duration
	used, usedThere time.Duration // CPU, of the command and of the edge
	peak, peakThere int64         // bytes of anonymous memory
	disk            int64         // bytes that the edge holds
}

// importLogs writes logs and imports them: each format needs a command of its own, as
// no line tells nginx's format by itself.
func importLogs(ctx context.Context, b *bench, name string, lines int) (imported, error) {
	out := imported{lines: lines}
	dir := filepath.Join(b.dir, name+"-logs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return out, err
	}
	defer os.RemoveAll(dir) // 10 million lines take gigabytes
	began := time.Now()
	logs, size, err := writeLogs(ctx, dir, b.hits, lines)
	if err != nil {
		return out, fmt.Errorf("write logs: %w", err)
	}
	out.bytes, out.writing = size, time.Since(began)
	e, err := startEdge(ctx, b, name, "")
	if err != nil {
		return out, err
	}
	defer e.stop()
	memory := sampleMemory(e.pid())
	used := cpuTime(e.pid())
	const profiledRate = 60_000 // lines a second that an import stays below, so that the profile ends before it
	profiled := b.profiling(ctx, e, name, time.Duration(lines/profiledRate)*time.Second)
	for i, l := range logs {
		if err == nil {
			err = out.run(ctx, b, e, fmt.Sprintf("%s-%d", name, i+1), l)
		}
	}
	out.usedThere = cpuTime(e.pid()) - used
	out.peakThere = memory.end()
	if err = errors.Join(err, profiled()); err != nil {
		return out, e.fault(err)
	}
	m, err := e.metrics(ctx)
	if err != nil {
		return out, err
	}
	if m.get(pendingHits) != float64(lines) || m.get(difference) != 0 {
		return out, fmt.Errorf("of %d lines %.0f are pending; the sum is off by %.0f", lines, m.get(pendingHits), m.get(difference))
	}
	if out.disk, err = diskUsage(e.data); err != nil {
		return out, err
	}
	e.stop()
	return out, os.RemoveAll(e.data)
}

// run imports the logs of one format and adds up what that took. Every line must be
// taken.
func (out *imported) run(ctx context.Context, b *bench, e *edge, name string, l serverLogs) error {
	args := append([]string{"import", "--json", "--admin.listen=" + e.admin, "--data-dir=" + e.data, "--temporary=" + b.dir}, l.flags...)
	var answer bytes.Buffer
	began := time.Now()
	p, err := start(b.dir, name, nil, &answer, b.sluice, append(args, l.files...)...)
	if err != nil {
		return err
	}
	defer p.stop()
	memory := sampleMemory(p.pid())
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.stop()
	}
	ended := time.Now()
	out.peak = max(out.peak, memory.end())
	if !p.cmd.ProcessState.Success() {
		return p.fault(fmt.Errorf("import: %v; it answers %s", p.cmd.ProcessState, answer.Bytes()))
	}
	out.used += p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	var sum struct {
		Import string
		Hits   int
	}
	if err := json.Unmarshal(answer.Bytes(), &sum); err != nil {
		return fmt.Errorf("read what import answers: %w", err)
	}
	if sum.Hits != l.lines {
		return fmt.Errorf("%d hits are taken of %d lines: %s", sum.Hits, l.lines, answer.Bytes())
	}
	begun, err := e.importBegun(ctx, sum.Import)
	out.reading += begun.Sub(began)
	out.taking += ended.Sub(begun)
	return err
}

// importBegun gives the time at which the edge was asked to begin an import.
func (e *edge) importBegun(ctx context.Context, id string) (time.Time, error) {
	body, _, err := get(ctx, "http://"+e.admin+"/api/v1/imports")
	if err != nil {
		return time.Time{}, err
	}
	var list struct {
		Imports []struct {
			ID    string
			Begun time.Time `json:"begun_at"`
		}
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return time.Time{}, fmt.Errorf("read the imports: %w", err)
	}
	for _, i := range list.Imports {
		if i.ID == id {
			return i.Begun, nil
		}
	}
	return time.Time{}, fmt.Errorf("import %s is not there", id)
}
