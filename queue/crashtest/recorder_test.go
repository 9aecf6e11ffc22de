package crashtest

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// sector is what a disk writes whole or not at all.
const sector = 512

// ext4 does not mount behind a superblock that is half written: a checksum in its last
// sector covers all of it. An administrator has fsck for that.
const (
	superblock    = 1024
	superblockLen = 1024
)

// An event is one thing that a recorded disk has seen, or one line of a worker.
type event struct {
	kind byte // eventWrite, eventFlush or eventLine
	off  int64
	data []byte
	line string
}

const (
	eventWrite = 'w'
	eventFlush = 'f'
	eventLine  = 'l'
)

// A recorder is a disk with a volatile write cache: a file served by FUSE, under
// a loop device. It logs every write and flush, and the worker's lines among
// them, so that what the disk could hold after a power loss at any moment can be
// made afterwards. It can also be told to fail.
type recorder struct {
	mu      sync.Mutex
	data    []byte
	log     []event
	on      bool
	forgets bool // it says that it flushed and did not: a control
	// Faults, guarded by mu: requests answered with EIO.
	failWrites, failFlushes bool
	failed                  int
}

// newRecorder serves the image as a block device and returns its name.
func newRecorder(t *testing.T, dir, image string) (*recorder, string) {
	t.Helper()
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	// Memory of its own, so that the garbage collector does not count it.
	r.data, err = unix.Mmap(-1, 0, len(content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	copySparse(r.data, content)
	mnt := mkdir(t, filepath.Join(dir, "fuse"))
	server, err := fs.Mount(mnt, &diskRoot{r: r}, &fs.Options{MountOptions: fuse.MountOptions{
		MaxWrite: 1 << 20, DirectMount: true, AllowOther: true,
	}})
	if err != nil {
		t.Skipf("SKIPPED: needs root and loop devices and FUSE: %v; nothing is proven by this run", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			_, lazy := tool("umount", "-l", mnt)
			t.Logf("cleaning up: %v, lazily: %v", err, lazy)
		}
		_ = unix.Munmap(r.data) // the server is gone, and so is its last user
	})
	dev, err := tool("losetup", "--direct-io=on", "--show", "-f", filepath.Join(mnt, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.fail(false, false)
		if _, err := tool("losetup", "-d", dev); err != nil {
			t.Logf("cleaning up: %v", err)
		}
	})
	return r, dev
}

// copySparse copies what is not zero, so that untouched memory stays untouched.
func copySparse(to, from []byte) {
	const page = 64 << 10
	zero := make([]byte, page)
	for off := 0; off < len(from); off += page {
		end := min(off+page, len(from))
		if string(from[off:end]) != string(zero[:end-off]) {
			copy(to[off:end], from[off:end])
		}
	}
}

func (r *recorder) record(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.on = on
}

func (r *recorder) fail(writes, flushes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failWrites, r.failFlushes = writes, flushes
}

// line logs a line of a worker; what stands before it in the log was on the disk
// or in its cache when the line was read.
func (r *recorder) line(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.on {
		r.log = append(r.log, event{kind: eventLine, line: s})
	}
}

func (r *recorder) position() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.log)
}

// A loss says which of the writes behind the last flush a crash state keeps.
type loss int

const (
	keepNone loss = iota
	keepAll
	keepSome // each write with even odds
	keepTorn // each sector with even odds, but a superblock as a whole
)

func (l loss) String() string { return [...]string{"none", "all", "some", "torn"}[l] }

// crashState changes img, which holds what the log holds up to from, into what
// the disk may hold after a power loss at log position k. It returns the position
// behind the last flush before k, up to which durable, a copy of img without the
// rest, was brought.
func (r *recorder) crashState(durable []byte, from, k int, l loss, rng *rand.Rand, img []byte) int {
	flushed := from
	for i := from; i < k; i++ {
		if r.log[i].kind == eventFlush {
			flushed = i + 1
		}
	}
	for _, e := range r.log[from:flushed] {
		if e.kind == eventWrite {
			copy(durable[e.off:], e.data)
		}
	}
	clear(img)
	copySparse(img, durable)
	for _, e := range r.log[flushed:k] {
		if e.kind != eventWrite {
			continue
		}
		switch l {
		case keepNone:
		case keepAll:
			copy(img[e.off:], e.data)
		case keepSome:
			if rng.IntN(2) == 0 {
				copy(img[e.off:], e.data)
			}
		case keepTorn:
			for o := 0; o < len(e.data); {
				n := min(sector, len(e.data)-o)
				if e.off+int64(o) == superblock {
					n = min(superblockLen, len(e.data)-o)
				}
				if rng.IntN(2) == 0 {
					copy(img[e.off+int64(o):], e.data[o:o+n])
				}
				o += n
			}
		}
	}
	return flushed
}

// busiest gives up to n positions before flushes, those with the most writes
// that are not flushed first.
func (r *recorder) busiest(n int) []int {
	type moment struct{ at, writes int }
	var all []moment
	writes := 0
	for i, e := range r.log {
		switch e.kind {
		case eventWrite:
			writes++
		case eventFlush:
			if writes > 1 {
				all = append(all, moment{i, writes})
			}
			writes = 0
		}
	}
	slices.SortFunc(all, func(a, b moment) int { return b.writes - a.writes })
	var out []int
	for _, m := range all[:min(n, len(all))] {
		out = append(out, m.at)
	}
	return out
}

// writeImage writes a sparse file.
func writeImage(path string, img []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(int64(len(img))); err != nil {
		return err
	}
	const page = 64 << 10
	zero := make([]byte, page)
	for off := 0; off < len(img); off += page {
		end := min(off+page, len(img))
		if string(img[off:end]) == string(zero[:end-off]) {
			continue
		}
		if _, err := f.WriteAt(img[off:end], int64(off)); err != nil {
			return err
		}
	}
	return nil
}

// diskRoot is the FUSE directory with the one file "disk" in it.
type diskRoot struct {
	fs.Inode
	r *recorder
}

func (d *diskRoot) OnAdd(ctx context.Context) {
	d.AddChild("disk", d.NewPersistentInode(ctx, &diskFile{r: d.r}, fs.StableAttr{Mode: fuse.S_IFREG, Ino: 2}), true)
}

type diskFile struct {
	fs.Inode
	r *recorder
}

func (d *diskFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (d *diskFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, uint64(len(d.r.data))
	out.Blksize, out.Blocks = 4096, out.Size/sector
	return 0
}

func (d *diskFile) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return d.Getattr(ctx, f, out)
}

func (d *diskFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	n := copy(dest, d.r.data[min(off, int64(len(d.r.data))):])
	return fuse.ReadResultData(dest[:n]), 0
}

func (d *diskFile) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	if d.r.failWrites {
		d.r.failed++
		return 0, syscall.EIO
	}
	copy(d.r.data[off:], data)
	if d.r.on {
		d.r.log = append(d.r.log, event{kind: eventWrite, off: off, data: slices.Clone(data)})
	}
	return uint32(len(data)), 0
}

func (d *diskFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	if d.r.failFlushes {
		d.r.failed++
		return syscall.EIO
	}
	if d.r.on && !d.r.forgets {
		d.r.log = append(d.r.log, event{kind: eventFlush})
	}
	return 0
}

func (d *diskFile) Flush(context.Context, fs.FileHandle) syscall.Errno { return 0 }
