package crashtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"sluice/queue"
)

// A ledger holds what a worker was promised, exactly as its lines prove it.
//
// A settlement is lazy: after Settle has returned it may still be lost. It is
// durable once an Append or a Journal that began after that has returned, since
// the changes of state are committed in their order and ride with the next
// group. Each stream commits its own: one is the live hits, the others imports.
type ledger struct {
	sets map[uint64]*setRecord
	hits map[uint64]*hitRecord

	journals map[uint64]*batchRecord // by token, of this life
	batches  map[uint64]*batchRecord // by number
	settles  map[uint64]*settleRecord

	imports map[uint64]*importRecord

	returned uint64            // settlements that have returned
	durable  map[uint64]uint64 // of them, how many are proven durable in a stream
	acked    int               // sets acknowledged in all lives

	broken []string // contract violations and errors that the worker has seen
	// began is each Append's or Journal's view of returned when it began.
	began map[string]uint64
	// After the queue has failed no Append that begins may succeed.
	failed   bool
	ended    bool // the queue has failed, or its disk was taken away
	errors   []string
	tooLate  map[uint64]bool
	outcomes map[byte]int // of hits settled for good, in all lives
}

type setRecord struct {
	stream uint64 // 0 for live hits, else the import
	hits   int
	acked  bool
	// refused: the set is certainly not stored.
	refused bool
}

type hitRecord struct {
	set *setRecord
	// known: the hit certainly was stored: acknowledged, seen by a census, or
	// leased.
	known   bool
	gone    bool // a census has shown that it is settled for good
	settle  *settleRecord
	outcome byte // of settle, or for good: v, i or d
	batches []*batchRecord
}

type batchRecord struct {
	number  uint64   // 0 while the journal has not returned
	streams []uint64 // of its hits
	end     *settleRecord
}

type settleRecord struct {
	order uint64 // of its return, from 1; 0 = has not returned
}

func newLedger() *ledger {
	l := &ledger{
		sets: map[uint64]*setRecord{}, hits: map[uint64]*hitRecord{},
		batches: map[uint64]*batchRecord{}, outcomes: map[byte]int{}, imports: map[uint64]*importRecord{},
	}
	l.beginLife()
	return l
}

func (l *ledger) beginLife() {
	l.journals, l.settles, l.began = map[uint64]*batchRecord{}, map[uint64]*settleRecord{}, map[string]uint64{}
	l.returned, l.durable = 0, map[uint64]uint64{}
	l.failed, l.ended, l.errors, l.tooLate = false, false, nil, map[uint64]bool{}
}

// clone copies a ledger between two lives, when no settlement is open.
func (l *ledger) clone() *ledger {
	c := newLedger()
	c.acked, c.broken, c.outcomes = l.acked, slices.Clone(l.broken), maps.Clone(l.outcomes)
	sets := map[*setRecord]*setRecord{}
	for n, s := range l.sets {
		sc := *s
		c.sets[n], sets[s] = &sc, &sc
	}
	batches := map[*batchRecord]*batchRecord{}
	for n, b := range l.batches {
		bc := *b
		c.batches[n], batches[b] = &bc, &bc
	}
	for n, h := range l.hits {
		hc := *h
		hc.set, hc.settle, hc.batches = sets[h.set], nil, nil
		for _, b := range h.batches {
			hc.batches = append(hc.batches, batches[b])
		}
		c.hits[n] = &hc
	}
	for n, i := range l.imports {
		ic := *i
		c.imports[n] = &ic
	}
	return c
}

func (l *ledger) isDurable(stream uint64, s *settleRecord) bool {
	return s != nil && s.order != 0 && s.order <= l.durable[stream]
}

// begin takes down a set that is about to be appended.
func (l *ledger) begin(set, stream uint64, hits int) {
	s := &setRecord{stream: stream, hits: hits}
	l.sets[set] = s
	for i := range hits {
		l.hits[set<<hitBits|uint64(i)] = &hitRecord{set: s}
	}
}

// ack takes down that an append has returned nil.
func (l *ledger) ack(set uint64) {
	s := l.sets[set]
	s.acked = true
	for i := range s.hits {
		l.hits[set<<hitBits|uint64(i)].known = true
	}
}

// read takes one line of a worker. A late line was read after the moment that is
// judged: what it begins may have begun before, what it promises does not count.
func (l *ledger) read(line string, late bool) {
	f := strings.SplitN(line, " ", 4)
	arg := func(i int) uint64 {
		if i >= len(f) {
			return 0
		}
		n, _ := strconv.ParseUint(f[i], 10, 64)
		return n
	}
	switch f[0] {
	case "a":
		l.begin(arg(1), 0, int(arg(2)))
		l.began["a"+f[1]] = l.returned
		if l.failed {
			l.tooLate[arg(1)] = true
		}
	case "A":
		if late {
			return
		}
		if l.tooLate[arg(1)] {
			l.fault("set %d was acknowledged although it came after the queue had failed", arg(1))
		}
		l.ack(arg(1))
		l.acked++
		l.durable[0] = max(l.durable[0], l.began["a"+f[1]])
		delete(l.began, "a"+f[1])
	case "f":
		if !late {
			l.sets[arg(1)].refused = true
		}
	case "j":
		b := &batchRecord{}
		l.journals[arg(1)] = b
		for _, n := range numbers(strings.Join(f[2:], " ")) {
			h := l.hits[n.hit]
			if h == nil {
				l.fault("journalled hit %d was never sent", n.hit)
				continue
			}
			h.known = h.known || !late
			h.batches = append(h.batches, b)
			if !slices.Contains(b.streams, h.set.stream) {
				b.streams = append(b.streams, h.set.stream)
			}
		}
		l.began["j"+f[1]] = l.returned
	case "J":
		if late {
			return
		}
		b := l.journals[arg(1)]
		b.number = arg(2)
		if old := l.batches[b.number]; old != nil {
			l.fault("batch %d was given out twice", b.number)
		}
		l.batches[b.number] = b
		for _, stream := range b.streams {
			l.durable[stream] = max(l.durable[stream], l.began["j"+f[1]])
		}
	case "s":
		s := &settleRecord{}
		l.settles[arg(1)] = s
		if b := l.batches[arg(2)]; b != nil {
			b.end = s
		}
		for _, n := range numbers(f[3]) {
			h := l.hits[n.hit]
			if h == nil {
				l.fault("settled hit %d was never sent", n.hit)
				continue
			}
			if h.gone {
				l.fault("hit %d was leased although it was settled for good", n.hit)
			}
			if h.settle != nil {
				l.fault("hit %d was settled twice", n.hit)
			}
			h.known, h.settle, h.outcome = h.known || !late, s, n.outcome
		}
	case "S":
		if !late {
			l.returned++
			l.settles[arg(1)].order = l.returned
		}
	case "F":
		l.failed = true
	case "X":
		l.fault("worker: %s", line)
	case "E":
		// An error that comes with the end of the queue is what must happen.
		if !late {
			l.errors = append(l.errors, line)
		}
	default:
		l.readImport(f, arg(1), late)
	}
	l.ended = l.ended || late || l.failed
}

func (l *ledger) fault(format string, args ...any) {
	l.broken = append(l.broken, fmt.Sprintf(format, args...))
}

type numbered struct {
	hit     uint64
	outcome byte
}

func numbers(list string) []numbered {
	var out []numbered
	for part := range strings.SplitSeq(list, ",") {
		if part == "" {
			continue
		}
		n := numbered{}
		if c := part[len(part)-1]; c > '9' {
			n.outcome, part = c, part[:len(part)-1]
		}
		n.hit, _ = strconv.ParseUint(part, 10, 64)
		out = append(out, n)
	}
	return out
}

// A findings is what a census has read.
type findings struct {
	pending map[uint64]uint64 // hit to batch
	dead    map[uint64]bool
	imports map[uint64]foundImport
	asked   map[uint64]bool // imports whose lines were asked for
	known   map[uint64]bool // sets whose lines are known
	faults  []string
	stats   queue.Stats
	whole   bool
	log     string // of the child
}

func parseCensus(out string) *findings {
	c := &findings{
		pending: map[uint64]uint64{}, dead: map[uint64]bool{},
		imports: map[uint64]foundImport{}, asked: map[uint64]bool{}, known: map[uint64]bool{},
	}
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		rest := ""
		if len(line) > 2 {
			rest = line[2:]
		}
		switch {
		case strings.HasPrefix(line, "P "):
			var n, batch uint64
			fmt.Sscan(rest, &n, &batch)
			if _, twice := c.pending[n]; twice {
				c.faults = append(c.faults, fmt.Sprintf("hit %d is pending twice", n))
			}
			c.pending[n] = batch
		case strings.HasPrefix(line, "D "):
			n, _ := strconv.ParseUint(rest, 10, 64)
			c.dead[n] = true
		case strings.HasPrefix(line, "I "):
			var n uint64
			var i foundImport
			fmt.Sscan(rest, &n, &i.state, &i.forgotten, &i.accepted, &i.delivered, &i.invalid, &i.dead)
			if _, twice := c.imports[n]; twice {
				c.faults = append(c.faults, fmt.Sprintf("import %d is there twice", n))
			}
			c.imports[n] = i
		case strings.HasPrefix(line, "Q "):
			n, _ := strconv.ParseUint(rest, 10, 64)
			c.asked[n] = true
		case strings.HasPrefix(line, "K "):
			n, _ := strconv.ParseUint(rest, 10, 64)
			c.known[n] = true
		case strings.HasPrefix(line, "V "):
			c.faults = append(c.faults, rest)
		case strings.HasPrefix(line, "T "):
			if err := json.Unmarshal([]byte(rest), &c.stats); err != nil {
				c.faults = append(c.faults, err.Error())
			}
		case line == "Z":
			c.whole = true
		}
	}
	return c
}

// judge compares a census with the ledger and gives every broken promise. What
// the census shows is the truth from then on: a new life may begin.
func (l *ledger) judge(c *findings) []string {
	faults := append(slices.Clone(l.broken), c.faults...)
	l.broken = nil
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for _, e := range l.errors {
		if !l.ended {
			add("worker: %s", e)
		}
	}
	if c.whole {
		faults = append(faults, l.judgeImports(c)...)
	} else {
		add("the census is not complete")
	}
	for n := range c.pending {
		if l.hits[n] == nil {
			add("hit %d is pending and was never sent", n)
		}
	}
	stored := int64(0)
	unclear := map[byte]int64{} // hits that are settled, or were never stored
	foundOf, absentOf := map[*setRecord]int{}, map[*setRecord]int{}
	for n, h := range l.hits {
		batch, found := c.pending[n]
		if !found && !h.known && !h.gone && h.settle != nil && l.neverStored(c, n>>hitBits) {
			h.settle, h.outcome = nil, 0
		}
		if found {
			foundOf[h.set]++
		} else if h.settle == nil && !h.gone {
			absentOf[h.set]++
		}
		for _, f := range l.judgeHit(h, found, batch, c.dead[n]) {
			add("hit %d of set %d: %s", n, n>>hitBits, f)
		}
		if !found && h.known && h.settle == nil && !h.gone {
			stored++ // lost, but accepted
		}
		if !found && !h.known && h.settle != nil && !h.gone {
			unclear[h.outcome]++
			if h.gone = true; !c.dead[n] && h.outcome == 'd' {
				h.outcome = 0
			}
		}
	}
	// When all are judged: a batch may be over in one stream and not in another.
	for n, h := range l.hits {
		batch, found := c.pending[n]
		l.learn(h, found, batch)
	}
	for n, s := range l.sets {
		if foundOf[s] > 0 && absentOf[s] > 0 && !s.acked {
			add("set %d was in flight and is stored in part: %d of %d hits", n, foundOf[s], s.hits)
		}
	}
	if c.whole {
		faults = append(faults, l.judgeLines(c)...)
	}
	st := c.stats
	for outcome, got := range map[byte]int64{'v': st.Delivered, 'i': st.Invalid, 'd': st.Dead} {
		if more := got - int64(l.outcomes[outcome]); 0 < more && more <= unclear[outcome] {
			l.outcomes[outcome] += int(more)
		}
		stored += int64(l.outcomes[outcome])
	}
	stored += int64(len(c.pending))
	want := queue.Stats{
		Accepted: stored, Pending: int64(len(c.pending)), Dead: int64(l.outcomes['d']),
		Invalid: int64(l.outcomes['i']), Delivered: int64(l.outcomes['v']),
	}
	if c.whole && (st.Accepted != want.Accepted || st.Pending != want.Pending || st.Dead != want.Dead ||
		st.Invalid != want.Invalid || st.Delivered != want.Delivered || st.Difference != 0) {
		add("the sums are wrong: got %+v, want accepted %d = delivered %d + invalid %d + dead %d + pending %d",
			st, want.Accepted, want.Delivered, want.Invalid, want.Dead, want.Pending)
	}
	uncertain := int64(0)
	for _, batch := range c.pending {
		if batch != 0 && batch != queue.DoubtLost {
			uncertain++
		}
	}
	if c.whole && st.Uncertain != uncertain {
		add("Stats says that %d hits are uncertain, %d are", st.Uncertain, uncertain)
	}
	if c.whole && len(c.dead) != l.outcomes['d'] {
		add("%d dead letters, want %d", len(c.dead), l.outcomes['d'])
	}
	l.beginLife()
	return faults
}

// judgeHit gives the promises about one hit that are broken.
func (l *ledger) judgeHit(h *hitRecord, found bool, batch uint64, dead bool) (faults []string) {
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	switch {
	case found && h.set.refused:
		add("was refused and is stored all the same")
	case found && h.gone:
		add("was settled for good and has come back")
	case found && l.isDurable(h.set.stream, h.settle):
		add("was settled durably and has come back")
	case !found && h.known && !h.gone && h.settle == nil && h.set.acked:
		add("LOST: it was acknowledged, and not settled")
	case !found && h.known && !h.gone && h.settle == nil:
		add("LOST: it was seen on disk before, and not settled")
	}
	// A hit of which all is late may be buried, or may never have been stored.
	unclear := !found && !h.known && !h.gone && h.settle != nil
	if want := !found && h.outcome == 'd' && (h.gone || h.settle != nil); dead != want && !unclear {
		add("is a dead letter: %v, want %v", dead, want)
	}
	if !found {
		return faults
	}
	definite, possible, unknown := false, false, false
	for _, b := range h.batches {
		switch {
		case b.number == 0:
			unknown = true // in flight: it may have been written or not
		case b.end == nil:
			definite = true
			possible = possible || b.number == batch
		case !l.isDurable(h.set.stream, b.end):
			possible = possible || b.number == batch
		}
	}
	switch {
	case batch == queue.DoubtLost:
		add("the journal was lost: nobody knows whether it was in flight")
	case batch == 0 && definite:
		add("was in flight and is not marked as uncertain")
	case batch != 0 && !possible && !unknown:
		add("is marked as in flight in batch %d, and was not", batch)
	}
	return faults
}

// learn takes what a census shows as the truth.
func (l *ledger) learn(h *hitRecord, found bool, batch uint64) {
	switch {
	case found:
		h.known, h.settle, h.outcome = true, nil, 0
	case h.gone:
	case h.settle != nil:
		h.gone = true
		l.outcomes[h.outcome]++
	default:
		// It was in flight and is not stored, or it is lost, which was said.
		h.set.refused, h.known = true, false
	}
	kept := h.batches[:0]
	for _, b := range h.batches {
		if found && batch != 0 && b.number != 0 && !l.isDurable(h.set.stream, b.end) {
			kept = append(kept, b)
		}
	}
	h.batches = kept
	if !found || batch == 0 {
		h.batches = nil
		return
	}
	b := l.batches[batch]
	if b == nil {
		b = &batchRecord{number: batch}
		l.batches[batch] = b
	}
	b.end = nil
	if !slices.Contains(h.batches, b) {
		h.batches = append(h.batches, b)
	}
}
