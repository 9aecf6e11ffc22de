package accesslog

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Why an input cannot be read, or cannot be read to its end. Every error of this
// file other than a fault of the disk is one of these, or [fs.ErrNotExist], or
// [fs.ErrPermission].
var (
	ErrDirectory   = errors.New("is a directory")
	ErrDevice      = errors.New("is a device or a socket")
	ErrReplaced    = errors.New("is another file than a moment ago: it was rotated")
	ErrCompression = errors.New("is compressed in a way that is not supported")
	ErrTruncated   = errors.New("compressed data ends early")
	ErrCorrupt     = errors.New("compressed data is damaged")
)

// A DamageError says where a compressed input could be read no further. Reading has
// given every byte before Decompressed. With gzip and zstd the checksum stands at the
// end of a member or frame, so after [ErrCorrupt] what was given of the last one may
// be wrong as well.
type DamageError struct {
	Name         string // the input's
	Compression  string // "gzip", "zstd" or "bzip2"
	Compressed   int64  // bytes of the file used up to there
	Decompressed int64  // bytes given before the error
	Kind         error  // ErrTruncated, ErrCorrupt or ErrCompression
	Err          error  // the decompressor's
}

// Error names the place in the file and in what it unpacks to.
func (e *DamageError) Error() string {
	return fmt.Sprintf("%s: %s %v near its byte %d, after %d decompressed bytes: %v",
		e.Name, e.Compression, e.Kind, e.Compressed, e.Decompressed, e.Err)
}

// Unwrap gives the kind and the decompressor's error.
func (e *DamageError) Unwrap() []error { return []error{e.Kind, e.Err} }

// Stdin is the name of standard input.
const Stdin = "-"

const (
	// readBuffer is what is read from a file at once.
	readBuffer = 128 << 10
	// maxZstdWindow is what the zstd program accepts without --memory or --long
	// (zstd 1.5 manual, "Advanced compression options", --long): windowLog 27.
	maxZstdWindow = 128 << 20
)

// An Input is one file or standard input, decompressed as it is read. It holds one
// read buffer and the decompressor: 0.3 MiB for gzip, up to 4 MiB for bzip2, and for
// zstd the window that the file asks for, 128 MiB at most.
//
// Read and Close are not safe for concurrent use; Consumed and Size are.
type Input struct {
	name        string
	compression string
	file        *os.File
	size        int64
	source      *countingReader
	compressed  *bufio.Reader
	plain       io.Reader // what Read reads
	close       func()
	given       int64
	err         error // sticky
}

// Open opens a path, or standard input for [Stdin], and finds gzip, zstd or bzip2 by
// the first bytes, whatever the name. Opening a FIFO blocks until it has a writer.
// See the sentinels for its errors.
func Open(name string) (*Input, error) { return Path{Name: name}.Open() }

// Open is as [Open], and gives [ErrReplaced] if the path no longer leads to the file
// that [Expand] found: a set that is rotated between the two would else lose a file.
func (p Path) Open() (*Input, error) {
	file := os.Stdin
	if p.Name != Stdin {
		if err := checkKind(p.Name); err != nil {
			return nil, err
		}
		var err error
		if file, err = os.Open(p.Name); err != nil {
			return nil, err
		}
	}
	in, err := newInput(p, file)
	if err != nil && file != os.Stdin {
		file.Close()
	}
	return in, err
}

// checkKind refuses what opening would block on or could change.
func checkKind(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		return fmt.Errorf("%s %w", name, ErrDirectory)
	case mode.IsRegular(), mode&fs.ModeNamedPipe != 0:
		return nil
	default:
		return fmt.Errorf("%s %w", name, ErrDevice)
	}
}

func newInput(p Path, file *os.File) (*Input, error) {
	in := &Input{name: p.Name, file: file, size: -1, close: func() {}}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s %w", p.Name, ErrDirectory)
	}
	if p.id != (fileID{}) && p.id != idOf(info) {
		return nil, fmt.Errorf("%s %w", p.Name, ErrReplaced)
	}
	if info.Mode().IsRegular() {
		in.size = info.Size()
	}
	in.source = &countingReader{r: file}
	in.compressed = bufio.NewReaderSize(in.source, readBuffer)
	return in, in.decompress()
}

// unsupported are the first bytes of compressions that nobody rotates logs with, or
// nearly nobody (the file(1) database, "compress" and "archive").
var unsupported = []struct{ name, magic string }{
	{"xz", "\xfd7zXZ\x00"},
	{"lz4", "\x04\x22\x4d\x18"},
	{"compress", "\x1f\x9d"},
	{"lzip", "LZIP\x01"},
	{"zip", "PK\x03\x04"},
	{"7z", "7z\xbc\xaf\x27\x1c"},
}

// decompress sets in.plain by the first bytes. What is too short for a magic number
// is plain text.
func (in *Input) decompress() error {
	const enough = 10
	head, _ := in.compressed.Peek(enough) // a fault comes again with the first Read
	for _, u := range unsupported {
		if bytes.HasPrefix(head, []byte(u.magic)) {
			return fmt.Errorf("%s %w: %s", in.name, ErrCompression, u.name)
		}
	}
	switch {
	case isGzip(head):
		in.compression = "gzip"
		in.plain = &gzipMembers{src: in.compressed}
	case isZstd(head):
		// One goroutine: the decoder then reads no further than it decodes.
		d, err := zstd.NewReader(in.compressed, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return fmt.Errorf("%s: %w", in.name, err)
		}
		in.compression, in.plain, in.close = "zstd", d, d.Close
	case isBzip2(head):
		in.compression = "bzip2"
		in.plain = bzip2.NewReader(in.compressed)
	default:
		in.plain = in.compressed
	}
	return nil
}

// isGzip knows the magic and the one method there is (RFC 1952, 2.3.1). A file cut
// after two bytes is one too.
func isGzip(head []byte) bool {
	return bytes.HasPrefix(head, []byte("\x1f\x8b\x08")) || string(head) == "\x1f\x8b"
}

// isZstd knows frames and the skippable frames that pzstd begins with (RFC 8878, 3.1.1
// and 3.1.2).
func isZstd(head []byte) bool {
	return bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")) ||
		len(head) >= 4 && head[0]&0xf0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18"
}

// isBzip2 asks for the block's magic too, as far as there is any: "BZh9" is text.
func isBzip2(head []byte) bool {
	if len(head) < 4 || string(head[:3]) != "BZh" || head[3] < '1' || head[3] > '9' {
		return false
	}
	rest := string(head[4:])
	return strings.HasPrefix("\x31\x41\x59\x26\x53\x59", rest) || strings.HasPrefix("\x17\x72\x45\x38\x50\x90", rest)
}

// Read gives decompressed bytes. After all that could be read it gives [io.EOF], or a
// [*DamageError], or the error of the disk, and the same again from then on. A file
// that grows or shrinks meanwhile ends where a read finds no more of it.
func (in *Input) Read(p []byte) (int, error) {
	if in.err != nil {
		return 0, in.err
	}
	n, err := in.plain.Read(p)
	in.given += int64(n)
	if err != nil {
		in.err = in.explain(err)
	}
	return n, in.err
}

func (in *Input) explain(err error) error {
	fault := in.source.err
	if fault != nil && fault != io.EOF {
		return fmt.Errorf("read %s: %w", in.name, fault)
	}
	if err == io.EOF || in.compression == "" {
		return err
	}
	kind := ErrCorrupt
	switch {
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		kind = ErrCompression
	case errors.Is(err, io.ErrUnexpectedEOF) && fault == io.EOF:
		kind = ErrTruncated
	}
	at := in.source.n.Load() - int64(in.compressed.Buffered())
	return &DamageError{in.name, in.compression, at, in.given, kind, err}
}

// Close frees the decompressor and the file, standard input excepted. It may be called
// again.
func (in *Input) Close() error {
	in.close()
	in.close = func() {}
	if in.err == nil {
		in.err = fs.ErrClosed
	}
	if in.file == nil || in.file == os.Stdin {
		return nil
	}
	err := in.file.Close()
	in.file = nil
	return err
}

// Name is the path as it was given.
func (in *Input) Name() string { return in.name }

// Compression is "gzip", "zstd", "bzip2" or "".
func (in *Input) Compression() string { return in.compression }

// Consumed is how many bytes of the file have been read, compressed as they are, for a
// progress bar. It runs ahead of Read by one buffer, 128 KiB at most.
func (in *Input) Consumed() int64 { return in.source.n.Load() }

// Size is how long the file was when it was opened, in bytes as Consumed counts them;
// -1 for a FIFO or a pipe. Consumed passes it if the file grows.
func (in *Input) Size() int64 { return in.size }

// countingReader counts what is read and keeps the error that ended it.
type countingReader struct {
	r   io.Reader
	n   atomic.Int64
	err error
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	c.err = err
	return n, err
}

// gzipMembers reads one gzip member after the other. Unlike the library's own way it
// lets the zeros pass that tapes and some file systems leave at the end, as gzip(1)
// does.
type gzipMembers struct {
	src    *bufio.Reader
	member *gzip.Reader
	inside bool
}

func (g *gzipMembers) Read(p []byte) (int, error) {
	for {
		if !g.inside {
			if err := g.next(); err != nil {
				return 0, err
			}
		}
		n, err := g.member.Read(p)
		if err == io.EOF {
			g.inside, err = false, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// next begins a member; io.EOF means that there is none.
func (g *gzipMembers) next() error {
	if g.member == nil {
		g.member = new(gzip.Reader)
	} else if err := g.skipZeros(); err != nil {
		return err
	}
	if err := g.member.Reset(g.src); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	g.member.Multistream(false)
	g.inside = true
	return nil
}

func (g *gzipMembers) skipZeros() error {
	for {
		c, err := g.src.ReadByte()
		if err != nil {
			return err
		}
		if c != 0 {
			return g.src.UnreadByte()
		}
	}
}

// fileID tells files apart whatever their names.
type fileID struct{ device, inode uint64 }

func idOf(info fs.FileInfo) fileID {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{}
	}
	return fileID{st.Dev, st.Ino}
}
