package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/alecthomas/kong"

	"sluice/internal/admin"
	"sluice/internal/config"
	"sluice/internal/hit"
)

// How much of a file is in memory: an answer is waited for before more is read.
const (
	importChunkBytes = 1 << 20
	importChunkLines = 1000
)

type queueImportCommand struct {
	config.Client
	Files  []string `arg:"" name:"file" help:"Files that \"sluice queue export\" has written, with --dead or without; - is standard input."`
	Again  bool     `name:"again" help:"Take hits, too, that Matomo may then record twice: those that were done with here, and those that were uncertain where they come from."`
	DryRun bool     `name:"dry-run" help:"Take nothing; say what would be taken."`
	JSON   bool     `name:"json" help:"Answer as one JSON object."`
}

// Run takes hits of exports into the queue.
func (c *queueImportCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"queue import", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		// A file may be empty, and nobody there all the same.
		if _, err := client.Stats(ctx); err != nil {
			return err
		}
		i := &importer{
			client: client, sum: admin.NewImported(),
			call: admin.ImportCall{ImportOrder: hit.ImportOrder{Again: c.Again, DryRun: c.DryRun}, Who: who(o.process), First: true},
		}
		var stopped error
		for _, name := range c.Files {
			if stopped = i.file(ctx, o, name); stopped != nil {
				i.sum.Stopped = stopped.Error()
				break
			}
		}
		if c.JSON {
			if err := o.json(i.sum); err != nil {
				return err
			}
		} else if stopped == nil || i.sum.Lines > 0 {
			o.imported(i.sum, c.DryRun)
		}
		switch {
		case stopped != nil:
			return stopped
		case i.sum.Faulty > 0:
			return &failure{exitFailed, "queue import", errSilent, ""}
		}
		return nil
	})
}

// An importer sends files, chunk by chunk.
type importer struct {
	client *admin.Client
	call   admin.ImportCall
	sum    admin.Imported
}

// file sends one file. An error ends the import; a line that is wrong does not.
func (i *importer) file(ctx context.Context, o *printer, name string) error {
	var r io.Reader = o.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return &failure{exitFailed, "queue import", err, ""}
		}
		defer f.Close()
		r = f
	}
	lines := bufio.NewReaderSize(r, importChunkBytes)
	var chunk []byte
	first, next := int64(1), int64(1)
	flush := func() error {
		if err := i.send(ctx, name, first, next, chunk); err != nil {
			return err
		}
		chunk, first = chunk[:0], next
		return nil
	}
	for {
		begin := len(chunk)
		line, long, err := readLine(lines, chunk)
		if err != nil && !errors.Is(err, io.EOF) {
			return &failure{exitFailed, fmt.Sprintf("queue import: %s, line %d", name, next), err, "the same command again: what was taken is not taken twice"}
		}
		ended := err != nil
		switch {
		case long:
			i.sum.Fault(admin.ImportFault{File: name, Line: next, Why: fmt.Sprintf("it is longer than %s", size(admin.MaxImport))})
			// It keeps its place, so that the lines behind it keep their numbers.
			chunk = append(line[:begin], '\n')
		default:
			chunk = line
		}
		if len(chunk) > begin {
			next++
		}
		if len(chunk) > 0 && (ended || len(chunk) >= importChunkBytes || next-first >= importChunkLines) {
			if err := flush(); err != nil {
				return err
			}
		}
		if ended {
			return nil
		}
	}
}

// readLine appends the next line, its end included, to b. A line that is too long is
// passed over and may leave its beginning behind b.
func readLine(r *bufio.Reader, b []byte) (line []byte, long bool, err error) {
	const room = admin.MaxImport - importChunkBytes // for what stands before it
	begin := len(b)
	for {
		part, err := r.ReadSlice('\n')
		if long = long || len(b)-begin+len(part) > room; !long {
			b = append(b, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return b, long, err
		}
	}
}

// send sends lines first to next-1 of a file and adds up the answer.
func (i *importer) send(ctx context.Context, name string, first, next int64, lines []byte) error {
	done, err := i.client.Import(ctx, lines, i.call)
	begun := !i.call.First
	i.call.First = false
	i.sum.Add(done, name, first)
	at := first + int64(done.Lines)
	switch {
	case err != nil && begun:
		err = fmt.Errorf("stopped at line %d of %s: %w", at, name, err)
	case done.Stopped != "":
		err = &failure{exitFailed, fmt.Sprintf("queue import: stopped at line %d of %s", at, name), errors.New(done.Stopped),
			"the same command again when that is over: what was taken is not taken twice"}
	case err == nil && done.Lines < int(next-first):
		err = fmt.Errorf("stopped at line %d of %s: not all lines were answered", at, name)
	}
	return err
}

// imported prints what became of the lines.
func (o *printer) imported(s admin.Imported, dry bool) {
	verb := "wait"
	if dry {
		verb = "would be taken"
	}
	o.printf("%s  %s hits %s", o.mark(toneOK), number(s.Taken+s.Requeued), verb)
	if s.Requeued > 0 {
		o.printf(", of them %s that were buried here", number(s.Requeued))
	}
	o.printf("\n")
	for _, why := range slices.Sorted(maps.Keys(s.Skipped)) {
		o.printf("--  %s hits skipped: %s%s\n", number(s.Skipped[why]), why, skippedHint[why])
	}
	if s.Faulty > 0 {
		o.printf("%s  %s lines cannot be taken\n", o.mark(toneBad), number(s.Faulty))
	}
	for _, f := range s.Faults {
		o.printf("    %s, line %d: %s\n", printable(f.File), f.Line, printable(f.Why))
	}
	if more := s.Faulty - int64(len(s.Faults)); more > 0 {
		o.printf("    and %s more\n", number(more))
	}
}

// skippedHint says what --again would do.
var skippedHint = map[string]string{
	hit.ImportKnown.String():     " (--again takes them: Matomo may record them twice)",
	hit.ImportUncertain.String(): ", Matomo may have them (--again takes them)",
}
