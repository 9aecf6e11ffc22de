package hit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrCorrupt reports bytes that are not what this package wrote.
var ErrCorrupt = errors.New("hit: corrupt encoding")

// Bits of the encoded flag bytes; docs/format.md has the tables.
const (
	flagDoNotTrack = 1 << 0
	flagDataSaver  = 1 << 1

	flagObject = 1 << 0
	flagTheirs = 1 << 1
)

// minHit is the length of the shortest encoded hit: flags and four varints.
const minHit = 5

// AppendRequestSet appends the encoding of s to b. The layout is that of
// docs/format.md, "Request set", version 1; the version stands in the block that
// holds the sets, not in each of them.
func AppendRequestSet(b []byte, s *RequestSet) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(s.ReceivedAt))
	b = appendEnvironment(b, &s.Environment)
	b = binary.AppendUvarint(b, uint64(len(s.Hits)))
	for i := range s.Hits {
		b = appendHit(b, &s.Hits[i])
	}
	return b
}

func appendEnvironment(b []byte, e *Environment) []byte {
	var flags byte
	if e.DoNotTrack {
		flags |= flagDoNotTrack
	}
	if e.DataSaver {
		flags |= flagDataSaver
	}
	b = append(b, flags)
	b = appendString(b, e.ClientIP)
	b = appendString(b, e.UserAgent)
	b = appendString(b, e.AcceptLanguage)
	b = appendString(b, e.Referer)
	b = appendString(b, e.ClientHints)
	b = appendString(b, e.VisitorCookie)
	return appendString(b, e.Headers)
}

func appendHit(b []byte, h *Hit) []byte {
	var flags byte
	if h.Form == Object {
		flags |= flagObject
	}
	if h.Rights == Theirs {
		flags |= flagTheirs
	}
	b = append(b, flags)
	b = binary.AppendVarint(b, h.Site)
	b = binary.AppendVarint(b, h.At)
	b = appendString(b, h.Token)
	return appendString(b, h.Params)
}

func appendString[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// DecodeRequestSet reads one request set from the front of b and returns the
// rest. The set's Params alias b. It returns [ErrCorrupt] for anything that
// [AppendRequestSet] cannot have written.
func DecodeRequestSet(b []byte) (*RequestSet, []byte, error) {
	d := decoder{rest: b}
	s := &RequestSet{ReceivedAt: int64(d.uint64())}
	d.environment(&s.Environment)
	n := d.uvarint()
	// A larger count is damage, not a reason to allocate.
	if n > uint64(len(d.rest)/minHit) {
		d.fail("hit count %d", n)
	}
	if d.err != nil {
		return nil, nil, d.err
	}
	s.Hits = make([]Hit, n)
	for i := range s.Hits {
		d.hit(&s.Hits[i])
	}
	if d.err != nil {
		return nil, nil, d.err
	}
	return s, d.rest, nil
}

// AppendDeadLetter appends the encoding of l to b: docs/format.md, "Dead letter".
func AppendDeadLetter(b []byte, l *DeadLetter) []byte {
	b = binary.LittleEndian.AppendUint64(b, l.ID.Generation)
	b = binary.AppendUvarint(b, l.ID.Block)
	b = binary.AppendUvarint(b, uint64(l.ID.Index))
	b = binary.LittleEndian.AppendUint64(b, uint64(l.ReceivedAt))
	b = binary.LittleEndian.AppendUint64(b, uint64(l.BuriedAt))
	b = appendEnvironment(b, &l.Environment)
	b = appendHit(b, &l.Hit)
	b = appendString(b, l.Reason)
	b = binary.AppendUvarint(b, uint64(l.Status))
	return appendString(b, l.Answer)
}

// DecodeDeadLetter reads what [AppendDeadLetter] wrote. The letter's bytes alias
// b. It returns [ErrCorrupt] for anything else, bytes left over included.
func DecodeDeadLetter(b []byte) (*DeadLetter, error) {
	d := decoder{rest: b}
	l := &DeadLetter{}
	l.ID.Generation = d.uint64()
	l.ID.Block = d.uvarint()
	l.ID.Index = uint32(d.uvarintUpTo(math.MaxUint32))
	l.ReceivedAt = int64(d.uint64())
	l.BuriedAt = int64(d.uint64())
	d.environment(&l.Environment)
	d.hit(&l.Hit)
	l.Reason = string(d.bytes())
	l.Status = int(d.uvarintUpTo(math.MaxInt32))
	l.Answer = d.bytes()
	if d.err == nil && len(d.rest) != 0 {
		d.fail("%d bytes after a dead letter", len(d.rest))
	}
	if d.err != nil {
		return nil, d.err
	}
	return l, nil
}

// A decoder reads from the front of rest. After the first error every read
// returns a zero value, so callers check err once.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
	}
	d.rest = nil
}

func (d *decoder) environment(e *Environment) {
	flags := d.byte()
	if flags&^(flagDoNotTrack|flagDataSaver) != 0 {
		d.fail("environment flags %#x", flags)
	}
	e.DoNotTrack = flags&flagDoNotTrack != 0
	e.DataSaver = flags&flagDataSaver != 0
	e.ClientIP = string(d.bytes())
	e.UserAgent = string(d.bytes())
	e.AcceptLanguage = string(d.bytes())
	e.Referer = string(d.bytes())
	e.ClientHints = string(d.bytes())
	e.VisitorCookie = string(d.bytes())
	e.Headers = string(d.bytes())
}

func (d *decoder) hit(h *Hit) {
	flags := d.byte()
	if flags&^(flagObject|flagTheirs) != 0 {
		d.fail("hit flags %#x", flags)
	}
	if flags&flagObject != 0 {
		h.Form = Object
	}
	if flags&flagTheirs != 0 {
		h.Rights = Theirs
	}
	h.Site = d.varint()
	h.At = d.varint()
	h.Token = string(d.bytes())
	h.Params = d.bytes()
}

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.fail("short")
		return 0
	}
	v := d.rest[0]
	d.rest = d.rest[1:]
	return v
}

func (d *decoder) uint64() uint64 {
	if len(d.rest) < 8 {
		d.fail("short")
		return 0
	}
	v := binary.LittleEndian.Uint64(d.rest)
	d.rest = d.rest[8:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.fail("bad varint")
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) uvarintUpTo(limit uint64) uint64 {
	v := d.uvarint()
	if v > limit {
		d.fail("number %d is too large", v)
		return 0
	}
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.rest)
	if n <= 0 {
		d.fail("bad varint")
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.rest)) {
		d.fail("length %d of %d left", n, len(d.rest))
		return nil
	}
	v := d.rest[:n:n]
	d.rest = d.rest[n:]
	return v
}
