package crashtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/internal/hit"
	"sluice/queue"
)

// An importPlan is an import that a worker makes. Its sets have the numbers from
// Number<<importBits | 1 on, and each is made from one line of a log.
type importPlan struct {
	Number uint64
	At     int64 // Unix nanoseconds: the time of its first line
	Sets   uint64
	Fate   string
}

// What becomes of an import when all its lines are given.
const (
	fateOpen    = "open" // nothing
	fateDeliver = "deliver"
	fateForget  = "forget" // delivered, its lines forgotten
	fateCancel  = "cancel"
)

const (
	// importBits is how many bits of a set's number say its place in the import. In a
	// life's numbers the four bits above are 0 for live sets.
	importBits = 20
	// lineEvery is the time from one line's request to the next.
	lineEvery = 15 * time.Millisecond
)

// streamOf gives the number of the import that a set belongs to, 0 for a live one.
func streamOf(set uint64) uint64 {
	if n := set >> importBits; n%16 != 0 {
		return n
	}
	return 0
}

// importPlans gives one import of each fate, the open one last, at times of now.
func importPlans(base uint64, sets uint64) []importPlan {
	plans := make([]importPlan, 0, 4)
	for i, fate := range []string{fateDeliver, fateCancel, fateForget, fateOpen} {
		plans = append(plans, importPlan{
			Number: base>>importBits | uint64(i+1), Sets: sets, Fate: fate,
			// They overlap with each other and with the live hits.
			At: time.Now().Add(time.Duration(i) * 100 * time.Millisecond).UnixNano(),
		})
	}
	return plans
}

func (p *importPlan) note() string { return strconv.FormatUint(p.Number, 10) }

// sets gives the numbers of all sets of an import.
func (p *importPlan) sets() []uint64 {
	out := make([]uint64, p.Sets)
	for i := range out {
		out[i] = p.Number<<importBits | uint64(i+1)
	}
	return out
}

// lines gives the lines that sets are made from.
func (p *importPlan) lines(sets []uint64) []queue.Line {
	out := make([]queue.Line, len(sets))
	for i, set := range sets {
		// Some are of the same second, and others not.
		out[i].At = p.At/int64(time.Second) + int64(set%(1<<importBits))/4
		binary.LittleEndian.PutUint64(out[i].ID[:], set)
	}
	return out
}

func (p *importPlan) timeOf(set uint64) int64 {
	return p.At + int64(set%(1<<importBits))*int64(lineEvery)
}

// known gives the sets of an import whose lines the queue knows.
func (p *importPlan) known(q *queue.Queue) (map[uint64]bool, error) {
	sets := p.sets()
	known, err := q.KnownLines(p.lines(sets))
	out := map[uint64]bool{}
	for i, k := range known {
		if k {
			out[sets[i]] = true
		}
	}
	return out, err
}

// importAll makes the imports of the job, one after the other. It goes on with those
// that are there, the open one first. Its system calls are those of one thread.
func (w *worker) importAll() {
	plans := slices.Clone(w.Imports)
	slices.SortStableFunc(plans, func(a, b importPlan) int {
		switch queue.ImportOpen {
		case w.imported(&a).State:
			return -1
		case w.imported(&b).State:
			return 1
		}
		return 0
	})
	for i := range plans {
		if err := w.importOne(&plans[i]); err != nil {
			w.complain("import", err)
			return
		}
	}
	for w.PutAway && !w.allPutAway() {
		<-time.After(10 * time.Millisecond)
	}
	w.say("W")
}

// allPutAway reports whether every import that is complete is drained, and nothing else
// is pending.
func (w *worker) allPutAway() bool {
	pending := w.q.Stats().Pending
	for _, i := range w.q.Imports() {
		switch i.State {
		case queue.ImportOpen:
			pending -= i.Accepted
		case queue.ImportComplete:
			return false
		case queue.ImportDrained:
			if !w.drained[i.ID] {
				w.drained[i.ID] = true
				w.say("n %s", i.Note)
			}
		}
	}
	return pending == 0
}

// imported gives what the queue knows of an import, nothing if it is not there.
func (w *worker) imported(p *importPlan) queue.Import {
	for _, i := range w.q.Imports() {
		if i.Note == p.note() {
			return i
		}
	}
	return queue.Import{}
}

func (w *worker) importOne(p *importPlan) error {
	i := w.imported(p)
	if i.ID == "" {
		w.say("i %d", p.Number)
		var err error
		if i, err = w.q.BeginImport(p.note(), time.Unix(0, p.At), time.Unix(0, p.timeOf(p.Sets))); err != nil {
			return err
		}
		w.say("I %d", p.Number)
	}
	if i.State == queue.ImportOpen {
		if err := w.fill(i.ID, p); err != nil || p.Fate == fateOpen {
			return err
		}
		if p.Fate == fateCancel {
			w.say("c %d", p.Number)
			if err := w.q.CancelImport(i.ID); err != nil {
				return err
			}
			w.say("C %d", p.Number)
			return nil
		}
		w.say("k %d", p.Number)
		w.joins.Add(1)
		_, err := w.q.CompleteImport(context.Background(), i.ID, true, nil)
		w.joins.Add(1)
		if err != nil {
			return err
		}
		w.say("K %d", p.Number)
	}
	if p.Fate == fateForget && !i.Forgotten {
		w.say("o %d", p.Number)
		if err := w.q.ForgetImport(i.ID); err != nil {
			return err
		}
		w.say("O %d", p.Number)
	}
	return nil
}

// fill appends what the queue does not know yet, in several transactions.
func (w *worker) fill(id string, p *importPlan) error {
	rng := rand.New(rand.NewPCG(w.Seed, p.Number))
	known, err := p.known(w.q)
	if err != nil {
		return err
	}
	var rest []uint64
	for _, set := range p.sets() {
		if !known[set] {
			rest = append(rest, set)
		}
	}
	for len(rest) > 0 {
		part := rest[:min(1+rng.IntN(6), len(rest))]
		rest = rest[len(part):]
		var list strings.Builder
		var sets []*hit.RequestSet
		for _, set := range part {
			fmt.Fprintf(&list, "%d,", set)
			sets = append(sets, w.setAt(set, p.timeOf(set)))
		}
		w.say("m %d %s", p.Number, list.String())
		if err := w.q.AppendImport(context.Background(), id, sets, p.lines(part)); err != nil {
			return err
		}
		w.say("M %d", p.Number)
	}
	return nil
}

// lockThread keeps a child that is killed at its system calls in one thread, as far as
// it makes them itself.
func (j *job) lockThread() {
	if len(j.Imports) > 0 {
		runtime.LockOSThread()
	}
}

// An order checks what is leased, across all consumers.
type order struct {
	live  uint64            // generation of the live hits
	last  map[uint64]hit.ID // by generation
	at    int64             // received, of the hit that was leased last
	joins uint64            // when it was leased
}

// checkOrder says what is wrong with the order of a lease, and which imports it is of.
// The caller holds leaseMu.
func (w *worker) checkOrder(hits []hit.Pending) {
	o := &w.order
	joins := w.joins.Load()
	if joins != o.joins || joins%2 != 0 {
		o.at = 0 // hits of an import may stand before those that were leased
	}
	given := map[uint64]bool{}
	for i := range hits {
		id := hits[i].ID
		if last := o.last[id.Generation]; id.Compare(last) <= 0 {
			w.say("X leased %v after %v", id, last)
		}
		o.last[id.Generation] = id
		// A live hit that is still being stored may be older than what was leased.
		if at := hits[i].ReceivedAt; len(w.Imports) > 0 && w.Appenders == 0 && at < o.at {
			w.say("X leased %v, received at %d, after one of %d", id, at, o.at)
		}
		o.at = hits[i].ReceivedAt
		if id.Generation == o.live {
			continue
		}
		n, err := numberOf(hits[i].Params)
		if number := streamOf(n >> hitBits); err == nil && !given[number] {
			given[number] = true
			w.say("g %d", number)
		}
	}
	if o.joins = joins; joins%2 != 0 {
		o.at = 0
	}
}
