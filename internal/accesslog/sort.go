package accesslog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"unsafe"
)

const (
	// DefaultSortMemory and MinSortMemory are bytes of [SortConfig.Memory].
	DefaultSortMemory = 256 << 20
	MinSortMemory     = 16 << 20
	// MaxPayload is how long an item's payload may be: a line of [MaxLine] and what its
	// reader adds to it.
	MaxPayload = MaxLine + 256<<10
)

var (
	// ErrPayload is that of an item longer than MaxPayload. The sorter goes on without it.
	ErrPayload = errors.New("item is too long to sort")
	// ErrDamagedRun says that a temporary file does not give back what was written.
	ErrDamagedRun = errors.New("temporary file of the sort is damaged")
)

// A SpaceError says that the temporary directory is full.
type SpaceError struct {
	Dir    string
	Held   int64 // bytes of temporary files there when it failed
	Needed int64 // bytes that had to be added at once; later ones may need as much again
	Err    error // ENOSPC or EDQUOT
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("temporary directory %s is full: the sort holds %d bytes there and needs at least %d more: %v",
		e.Dir, e.Held, e.Needed, e.Err)
}

func (e *SpaceError) Unwrap() error { return e.Err }

// An Item is what a [Sorter] sorts: by Time, then File, then Line, then the order in
// which they were added.
type Item struct {
	Time    int64 // Unix nanoseconds
	File    int32
	Line    int64
	Payload []byte
}

// SortConfig says what a [Sorter] may use.
type SortConfig struct {
	Dir string // for temporary files; it must exist
	// Memory bounds, in bytes, all that the sorter allocates: payloads, index, merge
	// buffers, compressors. 0 is DefaultSortMemory; less than MinSortMemory is an error.
	Memory int64
}

// SortStats tells what a sort took.
type SortStats struct {
	Items  int64
	Chunks int   // written to disk: the times that the memory was full, and the end
	Runs   int   // sorted files that the chunks became
	Merges int   // of runs into a longer one, since not all could be merged at once
	Bytes  int64 // written to disk
	Held   int64 // bytes of temporary files, the most at any time
}

// A Sorter sorts more than fits into memory. Add all items, iterate over [Sorter.Sorted],
// then Close. What does not fit is written to temporary files, compressed and with
// checksums, which have no name: whatever ends the process, nothing is left of them.
// Items that come in order make one file, which is not merged but read.
//
// Disk space: the compressed size of the input, and up to twice that when runs have to
// be merged in more than one pass. No goroutine is started, and no two methods may be
// called at once, nor one while an iteration goes on.
type Sorter struct {
	dir    string
	limits limits
	create func(dir string) (tempFile, error)

	arena  arena
	index  []key
	runs   []*run
	lastID uint32
	held   int64

	raw      []byte // the block being filled
	packed   []byte // the same, compressed
	incoming []byte // a compressed block being read

	stats  SortStats
	ended  bool
	failed error
}

// limits are bytes, apart from runs.
type limits struct {
	budget int64 // of slabs and index
	slab   int
	block  int // at which a block is complete, before compression
	runs   int // that may be open at once
}

const (
	slabSize = 2 << 20
	// overhead is kept back from the budget for what is neither slab nor index: three
	// block buffers of up to 1.5 MiB, when lines of the greatest length fill them, and the
	// shorter ones that they replaced.
	overhead = 6 << 20
	// maxRuns keeps well below the usual limit of 1024 open files.
	maxRuns = 128
	// The greatest block must fit into a slab, where the merge keeps it.
	minBlock, maxBlock = 64 << 10, 256 << 10
)

// OpenSorter checks that a temporary file can be made, and gives the error if not.
func OpenSorter(cfg SortConfig) (*Sorter, error) {
	memory := cmp.Or(cfg.Memory, DefaultSortMemory)
	if memory < MinSortMemory {
		return nil, fmt.Errorf("sort in %d bytes of memory: at least %d are needed", memory, MinSortMemory)
	}
	probe, err := createTemp(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if err := probe.Close(); err != nil {
		return nil, err
	}
	const blocksInMemory = 1024
	return newSorter(cfg.Dir, limits{
		budget: memory - overhead,
		slab:   slabSize,
		block:  int(min(max(memory/blocksInMemory, minBlock), maxBlock)),
		runs:   maxRuns,
	}), nil
}

func newSorter(dir string, l limits) *Sorter {
	return &Sorter{dir: dir, limits: l, create: createTemp, arena: arena{size: l.slab}}
}

// Add takes an item, whose payload it copies. It blocks while memory is written to disk,
// and ctx ends that. It returns [ErrPayload], or an error after which the sorter is of no
// more use and gives it again: ctx's, a [*SpaceError], or another one of the disk.
func (s *Sorter) Add(ctx context.Context, item Item) error {
	if s.failed != nil {
		return s.failed
	}
	if s.ended {
		return errors.New("item added to a sort after its end")
	}
	if len(item.Payload) > MaxPayload {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrPayload, len(item.Payload), MaxPayload)
	}
	if !s.keep(item) {
		if err := s.spill(ctx); err != nil {
			s.failed = err
			return err
		}
		if !s.keep(item) {
			panic("sort: an item does not fit into empty memory")
		}
	}
	s.stats.Items++
	return nil
}

// keep stores an item in memory, unless that is full.
func (s *Sorter) keep(item Item) bool {
	if len(s.index) == cap(s.index) && !s.growIndex() {
		return false
	}
	// A byte at least, so that places differ and rise.
	payload, place, ok := s.arena.take(max(1, len(item.Payload)), s.slabsAllowed())
	if !ok {
		return false
	}
	copy(payload, item.Payload)
	s.index = append(s.index, key{
		time: item.Time, line: item.Line, place: place, file: item.File, length: uint32(len(item.Payload)),
	})
	return true
}

// entrySize counts twice, since the collector may not have taken the shorter index yet
// that a longer one replaced.
const entrySize = 2 * int64(unsafe.Sizeof(key{}))

// growIndex doubles the index, up to half of the budget: the rest is for slabs, which
// the merge needs.
func (s *Sorter) growIndex() bool {
	const least = 256
	n := max(least, 2*cap(s.index))
	taken := int64(n) * entrySize
	if taken > s.limits.budget/2 || taken+int64(len(s.arena.slabs)*s.limits.slab) > s.limits.budget {
		return false
	}
	s.index = append(make([]key, 0, n), s.index...)
	return true
}

func (s *Sorter) slabsAllowed() int {
	return int((s.limits.budget - int64(cap(s.index))*entrySize) / int64(s.limits.slab))
}

// Sorted gives all items in order. A payload is valid until the next item. An error comes
// last, with a zero Item: ctx's, [ErrDamagedRun], a [*SpaceError] or another one of the
// disk; items given before it are right, and in order. It may be called again, but not
// while another iteration goes on; an error before the first item comes again then.
func (s *Sorter) Sorted(ctx context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if s.failed == nil {
			s.ended = true
			s.failed = s.prepare(ctx)
		}
		if s.failed != nil {
			yield(Item{}, s.failed)
			return
		}
		if len(s.runs) == 0 {
			s.yieldMemory(ctx, yield)
			return
		}
		for c, err := range s.merge(ctx, s.runs) {
			if err != nil {
				yield(Item{}, err)
				return
			}
			if !yield(c.item(), nil) {
				return
			}
		}
	}
}

// prepare sorts what is in memory, or writes it to disk if something is there already,
// and brings the runs down to as many as can be merged at once.
func (s *Sorter) prepare(ctx context.Context) error {
	if len(s.runs) == 0 {
		s.sortIndex()
		return nil
	}
	if err := s.spill(ctx); err != nil {
		return err
	}
	return s.reduce(ctx, s.limits.runs)
}

func (s *Sorter) sortIndex() {
	slices.SortFunc(s.index, key.compare)
}

func (s *Sorter) yieldMemory(ctx context.Context, yield func(Item, error) bool) {
	const between = 1024
	for i, k := range s.index {
		if i%between == 0 && ctx.Err() != nil {
			yield(Item{}, context.Cause(ctx))
			return
		}
		if !yield(Item{Time: k.time, File: k.file, Line: k.line, Payload: s.arena.at(k)}, nil) {
			return
		}
	}
}

// Stats tells what the sort has taken so far.
func (s *Sorter) Stats() SortStats { return s.stats }

// Close frees memory and disk space. It may be called again.
func (s *Sorter) Close() error {
	var err error
	for _, r := range s.runs {
		err = errors.Join(err, r.file.Close())
	}
	*s = Sorter{stats: s.stats, failed: fs.ErrClosed}
	return err
}

// key orders items. place is where the payload was in memory, as the arena counts, and
// so rises from one item added to the next. There is no pointer in it, so that the
// collector passes the index by.
type key struct {
	time   int64
	line   int64
	place  uint64
	file   int32
	length uint32 // of the payload in memory; orders nothing
}

func (k key) compare(o key) int {
	if k.time != o.time {
		return cmp.Compare(k.time, o.time)
	}
	return cmp.Or(cmp.Compare(k.file, o.file), cmp.Compare(k.line, o.line), cmp.Compare(k.place, o.place))
}

// arena is memory that is used again and again: of payloads while items are added, of
// blocks while runs are merged.
type arena struct {
	size  int
	slabs [][]byte
	slab  int    // in use
	used  int    // bytes of that slab
	base  uint64 // how many slabs were filled before the last reset
}

const placeBits = 32

// take gives n bytes, no more than a slab has, and their place. It fails if that takes
// more slabs than allowed.
func (a *arena) take(n, allowed int) (buf []byte, place uint64, ok bool) {
	if len(a.slabs) > 0 && a.used+n > a.size {
		if a.slab+1 >= allowed {
			return nil, 0, false
		}
		a.slab, a.used = a.slab+1, 0
	}
	if a.slab >= len(a.slabs) {
		if len(a.slabs) >= allowed {
			return nil, 0, false
		}
		a.slabs = append(a.slabs, make([]byte, a.size))
	}
	place = (a.base+uint64(a.slab))<<placeBits | uint64(a.used)
	buf = a.slabs[a.slab][a.used : a.used+n : a.used+n]
	a.used += n
	return buf, place, true
}

func (a *arena) at(k key) []byte {
	slab, offset := k.place>>placeBits-a.base, k.place&(1<<placeBits-1)
	return a.slabs[slab][offset:][:k.length:k.length]
}

// reset frees all that was taken. Places go on rising.
func (a *arena) reset() {
	a.base += uint64(a.slab) + 1
	a.slab, a.used = 0, 0
}
