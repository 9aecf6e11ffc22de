package accesslog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/klauspost/compress/s2"
	"golang.org/x/sys/unix"
)

// A run is a temporary file of sorted items in blocks. A block is
//
//	packed length:4 | raw length:4 | CRC-32C:4 | the raw block in S2
//
// with numbers in little endian. The checksum covers run's and block's number, both
// lengths and the frame, so that no other block passes for this one. The raw block has
// for each item, as varints, what time, file, line and place have gained over the item
// before (over 0 in a block's first), the length of the payload, and the payload.
type run struct {
	file      tempFile
	id        uint32
	blocks    uint32
	size      int64 // bytes
	maxRaw    int   // the longest block, in bytes
	maxPacked int
	last      key // the greatest one
}

// tempFile is what a run needs of its file.
type tempFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

const blockHeader = 12

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is that of a block's header and what stands behind it.
func (r *run) checksum(block uint32, header, packed []byte) uint32 {
	var place [8]byte
	binary.LittleEndian.PutUint32(place[:], r.id)
	binary.LittleEndian.PutUint32(place[4:], block)
	sum := crc32.Update(0, castagnoli, place[:])
	sum = crc32.Update(sum, castagnoli, header[:8])
	return crc32.Update(sum, castagnoli, packed)
}

// createTemp makes a file without a name, or one that loses its name at once where the
// file system knows no other (open(2), O_TMPFILE).
func createTemp(dir string) (tempFile, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir+"/(temporary file of the sort)"), nil
	}
	f, err := os.CreateTemp(dir, "sluice-sort-*.tmp")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// newRun adds nothing to the sorter's runs yet.
func (s *Sorter) newRun() (*run, error) {
	file, err := s.create(s.dir)
	if err != nil {
		return nil, s.spaceError(err, 0)
	}
	s.lastID++
	return &run{file: file, id: s.lastID}, nil
}

// spill writes what is in memory to disk, at the end of a run if all of it comes after
// that run's last item, and else as a new run.
func (s *Sorter) spill(ctx context.Context) error {
	if len(s.index) == 0 {
		return nil
	}
	s.sortIndex()
	r := s.runBefore(s.index[0])
	if r == nil {
		var err error
		if r, err = s.newRun(); err != nil {
			return err
		}
		s.runs = append(s.runs, r)
		s.stats.Runs++
	}
	w := blockWriter{s: s, run: r}
	for _, k := range s.index {
		w.pending += int64(k.length)
	}
	for _, k := range s.index {
		if err := w.add(ctx, k, s.arena.at(k)); err != nil {
			return err
		}
	}
	if err := w.flush(ctx); err != nil {
		return err
	}
	s.stats.Chunks++
	s.index = s.index[:0]
	s.arena.reset()
	// As many again may come before the next reduction.
	if len(s.runs) > s.limits.runs {
		return s.reduce(ctx, (s.limits.runs+1)/2)
	}
	return nil
}

// runBefore gives the run that k may be added to and that leaves the least room before
// it, or nil.
func (s *Sorter) runBefore(k key) *run {
	var best *run
	for _, r := range s.runs {
		if r.last.compare(k) <= 0 && (best == nil || best.last.compare(r.last) < 0) {
			best = r
		}
	}
	return best
}

// maxVarints is what the numbers before a payload take at most.
const maxVarints = 5 * binary.MaxVarintLen64

// withRoom gives b room for n bytes more. A usual block fits at once; for a longer one
// there is room for the longest then, so that hardly anything is left to collect.
func withRoom(b []byte, n, block int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	room := 2 * block
	if len(b)+n > room {
		room = max(len(b)+n, s2.MaxEncodedLen(block+maxVarints+MaxPayload)+blockHeader)
	}
	return append(make([]byte, 0, room), b...)
}

// blockWriter writes sorted items at the end of a run.
type blockWriter struct {
	s        *Sorter
	run      *run
	previous key
	pending  int64 // bytes of payload to write in all, or
	copied   int64 // bytes to write in all, if they come from other runs
	written  int64 // bytes on disk
	taken    int64 // bytes they were before compression
}

func (w *blockWriter) add(ctx context.Context, k key, payload []byte) error {
	w.s.raw = withRoom(w.s.raw, maxVarints+len(payload), w.s.limits.block)
	b := w.s.raw
	b = binary.AppendVarint(b, k.time-w.previous.time)
	b = binary.AppendVarint(b, int64(k.file)-int64(w.previous.file))
	b = binary.AppendVarint(b, k.line-w.previous.line)
	b = binary.AppendVarint(b, int64(k.place-w.previous.place))
	b = binary.AppendUvarint(b, uint64(len(payload)))
	w.s.raw = append(b, payload...)
	w.previous = k
	if len(w.s.raw) >= w.s.limits.block {
		return w.flush(ctx)
	}
	return nil
}

func (w *blockWriter) flush(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s, r := w.s, w.run
	if len(s.raw) == 0 {
		return nil
	}
	s.packed = withRoom(s.packed[:0], blockHeader+s2.MaxEncodedLen(len(s.raw)), s.limits.block)
	packed := s2.Encode(s.packed[blockHeader:cap(s.packed)], s.raw)
	s.packed = s.packed[:blockHeader+len(packed)]
	header := s.packed[:blockHeader]
	binary.LittleEndian.PutUint32(header, uint32(len(packed)))
	binary.LittleEndian.PutUint32(header[4:], uint32(len(s.raw)))
	binary.LittleEndian.PutUint32(header[8:], r.checksum(r.blocks, header, packed))
	w.taken += int64(len(s.raw))
	if _, err := r.file.WriteAt(s.packed, r.size); err != nil {
		return s.spaceError(err, max(int64(len(s.packed)), w.left()))
	}
	w.written += int64(len(s.packed))
	s.stats.Bytes += int64(len(s.packed))
	s.held += int64(len(s.packed))
	s.stats.Held = max(s.stats.Held, s.held)
	r.size += int64(len(s.packed))
	r.blocks++
	r.maxRaw = max(r.maxRaw, len(s.raw))
	r.maxPacked = max(r.maxPacked, len(packed))
	r.last = w.previous
	w.previous = key{}
	s.raw = s.raw[:0]
	return nil
}

// left estimates how many bytes are still to be written.
func (w *blockWriter) left() int64 {
	left := max(0, w.pending+int64(len(w.s.raw))-w.taken)
	if w.written > 0 {
		left = int64(float64(left) * float64(w.written) / float64(w.taken))
	}
	return max(left, w.copied-w.written)
}

// spaceError makes a SpaceError of a full disk's error.
func (s *Sorter) spaceError(err error, needed int64) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &SpaceError{Dir: s.dir, Held: s.held, Needed: needed, Err: err}
	}
	return fmt.Errorf("sort in %s: %w", s.dir, err)
}

// cursor reads a run.
type cursor struct {
	key
	payload []byte // valid until the next item

	s      *Sorter
	run    *run
	block  uint32 // the next one
	offset int64  // of it
	buffer []byte // of the arena
	rest   []byte // of the block being read
}

func (c *cursor) item() Item {
	return Item{Time: c.time, File: c.file, Line: c.line, Payload: c.payload}
}

// next moves to the next item; false means that there is none.
func (c *cursor) next() (bool, error) {
	before := c.key
	if len(c.rest) == 0 {
		if c.block == c.run.blocks {
			return false, nil
		}
		if err := c.load(); err != nil {
			return false, err
		}
		before = key{}
	}
	ok := true
	gained := func() int64 {
		v, n := binary.Varint(c.rest)
		if n <= 0 {
			ok = false
			return 0
		}
		c.rest = c.rest[n:]
		return v
	}
	c.time = before.time + gained()
	c.file = before.file + int32(gained())
	c.line = before.line + gained()
	c.place = before.place + uint64(gained())
	length, n := binary.Uvarint(c.rest)
	if !ok || n <= 0 || length > uint64(len(c.rest)-n) {
		return false, c.damaged(errors.New("items cannot be told apart"))
	}
	c.payload, c.rest = c.rest[n:][:length:length], c.rest[n:][length:]
	return true, nil
}

// load reads, checks and unpacks the next block.
func (c *cursor) load() error {
	var header [blockHeader]byte
	if err := c.read(header[:], c.offset); err != nil {
		return err
	}
	packed, raw := int(binary.LittleEndian.Uint32(header[:])), int(binary.LittleEndian.Uint32(header[4:]))
	if packed > c.run.maxPacked || raw > c.run.maxRaw {
		return c.damaged(errors.New("length is none that was written"))
	}
	c.s.incoming = withRoom(c.s.incoming[:0], packed, c.s.limits.block)
	block := c.s.incoming[:packed]
	if err := c.read(block, c.offset+blockHeader); err != nil {
		return err
	}
	if got := binary.LittleEndian.Uint32(header[8:]); got != c.run.checksum(c.block, header[:], block) {
		return c.damaged(errors.New("checksum differs"))
	}
	if n, err := s2.DecodedLen(block); err != nil || n != raw {
		return c.damaged(errors.New("length differs"))
	}
	rest, err := s2.Decode(c.buffer, block)
	if err != nil {
		return c.damaged(err)
	}
	c.rest = rest
	c.offset += int64(blockHeader + packed)
	c.block++
	return nil
}

func (c *cursor) read(p []byte, at int64) error {
	_, err := c.run.file.ReadAt(p, at)
	switch {
	case err == io.EOF:
		return c.damaged(io.ErrUnexpectedEOF)
	case err != nil:
		return fmt.Errorf("sort in %s: %w", c.s.dir, err)
	}
	return nil
}

func (c *cursor) damaged(err error) error {
	return fmt.Errorf("%w: block %d at byte %d: %w", ErrDamagedRun, c.block, c.offset, err)
}
