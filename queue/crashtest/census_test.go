package crashtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"sluice/internal/hit"
	"sluice/queue"
)

// The lines of a census:
//
//	P HIT BATCH      a pending hit, and the batch in which it was left in flight
//	D HIT            a dead letter
//	I IMPORT STATE FORGOTTEN ACCEPTED DELIVERED INVALID DEAD
//	Q IMPORT         the lines of an import were asked for
//	K SET            the line of a set is known
//	V TEXT           a fault
//	T JSON           queue.Stats
//	Z                the census is complete

// census lists everything in a queue.
func (j *job) census() {
	j.lockThread()
	q := j.openOrExit()
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	ctx := context.Background()
	var last hit.ID
	for p, err := range q.Peek(ctx, queue.PeekFilter{}) {
		if err != nil {
			fmt.Fprintf(out, "V peek: %v\n", err)
			break
		}
		if p.ID.Generation == last.Generation && p.ID.Compare(last) <= 0 {
			fmt.Fprintf(out, "V hit %v comes after %v\n", p.ID, last)
		}
		last = p.ID
		n, err := numberOf(p.Params)
		if err != nil {
			fmt.Fprintf(out, "V %v\n", err)
		}
		fmt.Fprintf(out, "P %d %d\n", n, p.Uncertain)
	}
	for l, err := range q.Dead(ctx, queue.DeadFilter{}) {
		if err != nil {
			fmt.Fprintf(out, "V dead letter: %v\n", err)
			continue
		}
		n, err := numberOf(l.Hit.Params)
		if err != nil {
			fmt.Fprintf(out, "V dead letter: %v\n", err)
		}
		fmt.Fprintf(out, "D %d\n", n)
	}
	j.imports(q, out)
	r, err := q.Verify(ctx)
	if err != nil {
		fmt.Fprintf(out, "V verify: %v\n", err)
	} else {
		for _, p := range r.Problems {
			fmt.Fprintf(out, "V verify: %s\n", p)
		}
	}
	b, err := json.Marshal(q.Stats())
	if err != nil {
		fmt.Fprintf(out, "V stats: %v\n", err)
	}
	fmt.Fprintf(out, "T %s\n", b)
	if !j.Abandon {
		if err := q.Close(); err != nil {
			fmt.Fprintf(out, "V close: %v\n", err)
		}
	}
	fmt.Fprintln(out, "Z")
	if err := out.Flush(); err != nil {
		os.Exit(exitFault)
	}
	os.Exit(0)
}

// imports lists the imports, and which lines of those that the job names are known.
// No file is left of others, nor of lines that are forgotten.
func (j *job) imports(q *queue.Queue, out io.Writer) {
	all := q.Imports()
	files, err := filepath.Glob(filepath.Join(j.Dir, "import-*"))
	if err != nil {
		fmt.Fprintf(out, "V %v\n", err)
	}
	for _, name := range files {
		id, kind, _ := strings.Cut(strings.TrimPrefix(filepath.Base(name), "import-"), ".")
		n := slices.IndexFunc(all, func(i queue.Import) bool { return i.ID == id })
		if n < 0 || kind == "lines" && all[n].Forgotten {
			fmt.Fprintf(out, "V %s is left of an import\n", filepath.Base(name))
		}
	}
	for _, i := range all {
		fmt.Fprintf(out, "I %s %s %t %d %d %d %d\n", i.Note, i.State, i.Forgotten, i.Accepted, i.Delivered, i.Invalid, i.Dead)
	}
	for i := range j.Imports {
		known, err := j.Imports[i].known(q)
		if err != nil {
			fmt.Fprintf(out, "V known lines: %v\n", err)
			continue
		}
		fmt.Fprintf(out, "Q %d\n", j.Imports[i].Number)
		for set := range known {
			fmt.Fprintf(out, "K %d\n", set)
		}
	}
}

// bareOptions are those of the queue's databases, so that a control writes in
// the same shape, but for syncing.
func bareOptions(dir string, sync bool) badger.Options {
	return badger.DefaultOptions(dir).
		WithSyncWrites(sync).
		WithMemTableSize(16 << 20).
		WithNumMemtables(3).
		WithNumCompactors(0).
		WithNumLevelZeroTables(1 << 20).
		WithNumLevelZeroTablesStall(1 << 21).
		WithDetectConflicts(false).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithValueLogFileSize(1 << 20).
		WithMetricsEnabled(false).
		WithLogger(nil)
}

func bareKey(n uint64) []byte { return fmt.Appendf(nil, "b%016x", n) }

// bare appends to a bare store: one entry and one transaction for each set, as
// the queue would write a lone one, and no guard.
func (j *job) bare(sync bool) {
	db, err := badger.Open(bareOptions(j.Dir, sync))
	if err != nil {
		fmt.Fprintln(os.Stderr, "open:", err)
		os.Exit(exitOpen)
	}
	p := &printer{}
	p.say("R")
	for n := j.Base + 1; ; n++ {
		p.say("a %d 1", n)
		err := db.Update(func(txn *badger.Txn) error { return txn.Set(bareKey(n), params(n, j.Pad)) })
		if err != nil {
			p.say("F %v", err)
			os.Exit(exitFailed)
		}
		p.say("A %d", n)
	}
}

// bareCensus lists what a bare store holds.
func (j *job) bareCensus() {
	db, err := badger.Open(bareOptions(j.Dir, true))
	if err != nil {
		fmt.Fprintln(os.Stderr, "open:", err)
		os.Exit(exitOpen)
	}
	out := bufio.NewWriter(os.Stdout)
	err = db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.DefaultIteratorOptions)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			var n uint64
			if _, err := fmt.Sscanf(string(it.Item().Key()), "b%016x", &n); err != nil {
				return err
			}
			fmt.Fprintf(out, "P %d 0\n", n<<hitBits)
		}
		return nil
	})
	if err != nil {
		fmt.Fprintf(out, "V %v\n", err)
	}
	fmt.Fprintln(out, "Z")
	if err := out.Flush(); err != nil {
		os.Exit(exitFault)
	}
	os.Exit(0)
}
