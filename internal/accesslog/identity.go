package accesslog

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"iter"
	"time"
)

// An Identity tells a line of a log from all others, for ever: it is made with SHA-256
// of the server's name, the line, and its ordinal among equal lines. It is the
// same in a copy of the file, compressed or rotated or cut otherwise. Two of 10^10 lines
// have the same one by chance with a probability of 10^-18, and nobody can make up a
// line that has the one of another.
type Identity [16]byte

// String is in hexadecimal.
func (id Identity) String() string { return hex.EncodeToString(id[:]) }

// A line's digest is SHA-256 of the length of the server's name (8 bytes, little endian),
// the name, and the line. An identity is the first 16 bytes of SHA-256 of that digest and
// the ordinal (8 bytes, little endian). Both are frozen: a change would make lines that
// were imported new again. The length keeps ("a", "bc") apart from ("ab", "c").
type digest [sha256.Size]byte

func digestOf(server, line, scratch []byte) (digest, []byte) {
	scratch = binary.LittleEndian.AppendUint64(scratch[:0], uint64(len(server)))
	scratch = append(scratch, server...)
	scratch = append(scratch, line...)
	return sha256.Sum256(scratch), scratch
}

func (d digest) identity(ordinal uint64) Identity {
	var in [len(d) + 8]byte
	binary.LittleEndian.PutUint64(in[copy(in[:], d[:]):], ordinal)
	sum := sha256.Sum256(in[:])
	return Identity(sum[:len(Identity{})])
}

// Ranges knows from when to when each file has lines of each server. It takes about 100
// bytes for each pair of a file and a server. It is not safe for concurrent use.
type Ranges struct {
	spans map[fileServer]span
	// The last one asked for: lines of one server come together.
	last fileServer
	span span
}

type fileServer struct {
	file   int32
	server string
}

// span is in Unix seconds, both included.
type span struct{ first, last int64 }

// Add counts a line in. Its time is in Unix nanoseconds.
func (r *Ranges) Add(file int32, server []byte, nanoseconds int64) {
	second := secondOf(nanoseconds)
	known := r.find(file, server)
	if known && r.span.first <= second && second <= r.span.last {
		return
	}
	if r.spans == nil {
		r.spans = make(map[fileServer]span)
	}
	if !known {
		r.last, r.span = fileServer{file, string(server)}, span{second, second}
	}
	r.span = span{min(r.span.first, second), max(r.span.last, second)}
	r.spans[r.last] = r.span
}

// find makes last and span those of a file and a server, if they are known.
func (r *Ranges) find(file int32, server []byte) bool {
	if r.spans != nil && r.last.file == file && r.last.server == string(server) {
		return true
	}
	sp, ok := r.spans[fileServer{file, string(server)}]
	if ok {
		r.last, r.span = fileServer{file, string(server)}, sp
	}
	return ok
}

// secondOf rounds down before 1970 too.
func secondOf(nanoseconds int64) int64 {
	second := nanoseconds / int64(time.Second)
	if nanoseconds%int64(time.Second) < 0 {
		second--
	}
	return second
}

// part is how much of a second a file has, as far as its range shows.
type part uint8

const (
	whole  part = iota // lines of the server both before and after
	head               // it ends in this second
	tail               // it begins in this second
	middle             // all its lines are of this second
	parts
)

func (r *Ranges) part(file int32, server []byte, second int64) part {
	if !r.find(file, server) {
		return whole
	}
	begins, ends := r.span.first == second, r.span.last == second
	switch {
	case begins && ends:
		return middle
	case ends:
		return head
	case begins:
		return tail
	}
	return whole
}

// A Numberer gives lines their ordinals. The nth of equal lines of one file has the
// ordinal n. In different files,
//
//   - equal lines are the same line seen twice if the files overlap in time: copies, or
//     overlapping cuts, of one log. The file that has most of them counts;
//   - equal lines are different ones if one file goes on where the other ends: the last
//     second of one is the first of the other, as at a rotation. Their counts add up.
//
// Time ranges are those of the line's server. So of one second a file has the whole, the
// head, the tail, or, if it has no other second, a middle; the files with the same part
// are copies of each other, and
//
//	count = max(whole, head + middle + tail)
//
// which does not depend on the order of the files. What this gets wrong, all of it only
// for lines equal byte for byte in the same second:
//
//   - two imports, one with the file before a rotation, a later one with the file after
//     it: an equal line on each side is taken for the same, and one is lost;
//   - logs that overlap because several machines, or processes that go on writing the old
//     file after a rotation, wrote at once: one is lost, unless the caller makes machines
//     part of the server's name;
//   - two files that lie within the same second, or a clock put back at a rotation: taken
//     for copies, one is lost;
//   - cuts that overlap by that second only, or a cut of nothing but the last or first
//     second of another file: taken for a rotation, counted twice. A server with few lines
//     can be cut so by chance.
//
// Lines must come in order of time, as [Sorter.Sorted] gives them; equal lines have equal
// times. Memory is bounded by the lines with the same time: about 80 bytes for each.
// It is not safe for concurrent use.
type Numberer struct {
	ranges  *Ranges
	now     int64
	begun   bool
	seen    map[[16]byte]*tally // by the beginning of the line's digest
	tallies []tally             // that seen points into, used again
	scratch []byte
}

// tally counts lines that are equal.
type tally struct {
	most  [parts]uint32 // in one file
	file  int32         // being counted
	count uint32        // in it
}

// ErrUnsorted says that a line came that is older than the one before it.
var ErrUnsorted = errors.New("lines to be identified are not in order of time")

// NewNumberer needs the ranges of all files, complete.
func NewNumberer(ranges *Ranges) *Numberer {
	return &Numberer{ranges: ranges, seen: make(map[[16]byte]*tally)}
}

// Number gives the identity of a line, and whether an equal one of another file has
// already come that this one is a copy of. It returns [ErrUnsorted] for a line out of
// order of time or, among equal times, of files.
func (n *Numberer) Number(file int32, nanoseconds int64, server, line []byte) (id Identity, duplicate bool, err error) {
	if !n.begun || nanoseconds != n.now {
		if n.begun && nanoseconds < n.now {
			return Identity{}, false, ErrUnsorted
		}
		n.begun, n.now = true, nanoseconds
		n.forget()
	}
	var d digest
	d, n.scratch = digestOf(server, line, n.scratch)
	equal := [16]byte(d[:])
	t := n.seen[equal]
	if t == nil {
		t = n.newTally(file)
		n.seen[equal] = t
	}
	switch {
	case file < t.file:
		return Identity{}, false, ErrUnsorted
	case file > t.file:
		t.file, t.count = file, 0
	}
	t.count++
	ordinal, duplicate := t.add(n.ranges.part(file, server, secondOf(nanoseconds)))
	return d.identity(uint64(ordinal)), duplicate, nil
}

// add counts the line in that t.count already knows of. The total rises by one at most
// with each line, so a line that makes it rise is new and has the total as its ordinal.
func (t *tally) add(p part) (ordinal uint32, duplicate bool) {
	before := t.total()
	t.most[p] = max(t.most[p], t.count)
	if total := t.total(); total > before {
		return total, false
	}
	// No more than before, or the total had risen.
	ordinal = t.count
	if p == middle || p == tail {
		ordinal += t.most[head]
	}
	if p == tail {
		ordinal += t.most[middle]
	}
	return ordinal, true
}

func (t *tally) total() uint32 {
	return max(t.most[whole], t.most[head]+t.most[middle]+t.most[tail])
}

// tallyBlock is how many tallies are allocated at once.
const tallyBlock = 256

func (n *Numberer) newTally(file int32) *tally {
	if len(n.tallies) == cap(n.tallies) {
		n.tallies = make([]tally, 0, tallyBlock) // seen keeps the full one
	}
	n.tallies = append(n.tallies, tally{file: file})
	return &n.tallies[len(n.tallies)-1]
}

// forget drops the lines of the time before. A map keeps the room that it once needed
// and is cleared in proportion to it, so one that was big is given up.
func (n *Numberer) forget() {
	const big = 4096
	if len(n.seen) > big {
		n.seen, n.tallies = make(map[[16]byte]*tally), nil
		return
	}
	clear(n.seen)
	n.tallies = n.tallies[:0]
}

// Identified is an item with its identity.
type Identified struct {
	Item
	ID        Identity
	Duplicate bool // an equal line of another file has been given: see [Numberer]
}

// Identify gives each item of a sorted stream its identity. split takes the server's name
// and the line out of a payload. Errors of the stream, of split and of [Numberer.Number]
// come last, with a zero Identified.
func Identify(sorted iter.Seq2[Item, error], ranges *Ranges, split func(payload []byte) (server, line []byte, err error)) iter.Seq2[Identified, error] {
	return func(yield func(Identified, error) bool) {
		n := NewNumberer(ranges)
		for item, err := range sorted {
			var server, line []byte
			if err == nil {
				server, line, err = split(item.Payload)
			}
			out := Identified{Item: item}
			if err == nil {
				out.ID, out.Duplicate, err = n.Number(item.File, item.Time, server, line)
			}
			if err != nil {
				yield(Identified{}, err)
				return
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}
