package sink

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"sync"
	"time"
)

// A baseline says what Matomo's tables held before a batch was sent, so that its
// rows can be told from those of other hits that look the same. It is kept with
// the batch in the journal, as a memo.
type baseline struct {
	// marked: the database was asked. mark is the highest idlink_va then; every
	// action row of the batch has a higher one, since MySQL counts upwards.
	marked bool
	mark   uint64
	hits   int // of the batch
	// before counts by key what may be mistaken for the batch's: with a mark, rows of
	// conversions, and 1 for a visitor whose visit had been touched as late as the
	// hit; without, the hits of these groups that this process has delivered.
	before map[uint32]int
}

// groupHash names a group of rows in a memo.
func (e *expectation) groupHash() uint32 { return hash32(e.groupKey()) }

// touchHash names "the visitor's visit is touched at the hit's time" in a memo.
func (e *expectation) touchHash() uint32 {
	b := append(binary.AppendVarint(binary.AppendVarint([]byte("touch"), e.site), e.at), e.ids[0]...)
	return hash32(b)
}

func hash32(b []byte) uint32 {
	h := fnv.New32a()
	h.Write(b) // never fails
	return h.Sum32()
}

const (
	memoVersion = 1
	memoMarked  = 1
)

// memo encodes a baseline: the version, flags, the mark, the number of hits, and the
// counts with their keys.
func (b *baseline) memo() []byte {
	flags := byte(0)
	if b.marked {
		flags = memoMarked
	}
	out := binary.AppendUvarint([]byte{memoVersion, flags}, b.mark)
	out = binary.AppendUvarint(out, uint64(b.hits))
	for key, n := range b.before {
		out = binary.AppendUvarint(binary.LittleEndian.AppendUint32(out, key), uint64(n))
	}
	return out
}

// readMemo decodes a memo. One that is missing or not readable is that of a batch
// of which nothing was known.
func readMemo(memo []byte) baseline {
	b := baseline{before: map[uint32]int{}}
	if len(memo) < 3 || memo[0] != memoVersion {
		return b
	}
	rest := memo[2:]
	number := func() uint64 {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			rest = nil
			return 0
		}
		rest = rest[n:]
		return v
	}
	mark, hits := number(), number()
	for len(rest) > 4 {
		key := binary.LittleEndian.Uint32(rest)
		rest = rest[4:]
		b.before[key] = int(min(number(), 1<<30))
	}
	b.marked, b.mark, b.hits = memo[1]&memoMarked != 0, mark, int(min(hits, 1<<30))
	return b
}

// maxRecent bounds each of the two generations of a lately.
const maxRecent = 32768

// A lately counts the hits delivered lately by their groups, for batches that are
// sent while MySQL cannot be asked. Methods may be called from any goroutine.
type lately struct {
	mu       sync.Mutex
	now, old map[uint32]int
}

func (r *lately) add(e *expectation) {
	if e.trace != traceAction && e.trace != traceConversion {
		return
	}
	key := e.groupHash()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil || len(r.now) >= maxRecent {
		r.old, r.now = r.now, make(map[uint32]int)
	}
	r.now[key]++
}

func (r *lately) count(key uint32) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now[key] + r.old[key]
}

// An air keeps hits apart that could be mistaken for each other in Matomo's
// tables: while one is in flight or in doubt, no other batch may carry one of the
// same key. Rows of the key that come after a batch's mark are then its own.
// Methods may be called from any goroutine.
type air struct {
	mu   sync.Mutex
	held map[uint64]*claim // by key
	keys map[*item]uint64
}

// A claim is the hits of one flight or doubt that share a key.
type claim struct {
	owner any
	hits  int
}

func newAir() *air { return &air{held: map[uint64]*claim{}, keys: map[*item]uint64{}} }

// enter claims the keys of items for an owner and gives those that may be sent. One
// that must wait keeps back all later ones of its site, so that none overtakes.
func (a *air) enter(owner any, items []*item) []*item {
	hits := expectAll(items)
	a.mu.Lock()
	defer a.mu.Unlock()
	barred := map[*lane]bool{}
	out := items[:0:0]
	for i, it := range items {
		key := hits[i].airKey()
		c := a.held[key]
		if c != nil && c.owner != owner || barred[it.lot] {
			barred[it.lot] = true
			continue
		}
		out = append(out, it)
		if _, in := a.keys[it]; key == 0 || in {
			continue
		}
		if c == nil {
			c = &claim{owner: owner}
			a.held[key] = c
		}
		c.hits++
		a.keys[it] = key
	}
	return out
}

// leave gives up what was claimed for items.
func (a *air) leave(items []*item) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, it := range items {
		key, in := a.keys[it]
		if !in {
			continue
		}
		delete(a.keys, it)
		if c := a.held[key]; c.hits > 1 {
			c.hits--
		} else {
			delete(a.held, key)
		}
	}
}

// baseline asks what stands in the tables before items are sent. Matomo may work
// while its database cannot be asked, so trouble never holds a batch back.
func (r *reconciler) baseline(ctx context.Context, items []*item) []byte {
	hits := expectAll(items)
	r.mu.Lock()
	rest := time.Now().Before(r.restUntil)
	r.mu.Unlock()
	if !rest {
		if b, err := r.readBaseline(ctx, hits); err == nil {
			return b.memo()
		}
		r.mu.Lock()
		r.restUntil = time.Now().Add(r.rest)
		r.mu.Unlock()
	}
	b := baseline{hits: len(hits), before: map[uint32]int{}}
	for i := range hits {
		if e := &hits[i]; e.trace == traceAction || e.trace == traceConversion {
			if n := r.recent.count(e.groupHash()); n > 0 {
				b.before[e.groupHash()] = n
			}
		}
	}
	return b.memo()
}

func (r *reconciler) readBaseline(ctx context.Context, hits []expectation) (baseline, error) {
	r.asking.Lock()
	defer r.asking.Unlock()
	b := baseline{marked: true, hits: len(hits), before: map[uint32]int{}}
	var err error
	if b.mark, err = r.mark(ctx); err != nil {
		return b, err
	}
	counts, err := r.conversions(ctx, hits)
	if err != nil {
		return b, err
	}
	touched, err := r.touches(ctx, hits)
	if err != nil {
		return b, err
	}
	for i := range hits {
		e := &hits[i]
		if n := counts[string(e.groupKey())]; e.trace == traceConversion && n > 0 {
			b.before[e.groupHash()] = n
		}
		if touched[i] {
			b.before[e.touchHash()] = 1
		}
	}
	return b, nil
}

func expectAll(items []*item) []expectation {
	out := make([]expectation, len(items))
	for i, it := range items {
		out[i] = expect(it)
	}
	return out
}
