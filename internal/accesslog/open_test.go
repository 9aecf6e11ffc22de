package accesslog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

func logText(lines int) []byte {
	var b bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&b, "198.51.100.%d - - [10/Oct/2023:13:%02d:%02d +0000] \"GET /p/%x HTTP/1.1\" 200 %d \"-\" \"Mozilla/5.0\"\n",
			i%256, i/60%60, i%60, i*7919, i*31%9973)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(32<<10))
	if err != nil {
		t.Fatal(err)
	}
	for part := range slices.Chunk(data, 20_000) {
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil { // a block each
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func bzip2ed(t testing.TB, data []byte) []byte {
	t.Helper()
	path, err := exec.LookPath("bzip2")
	if err != nil {
		t.Skip("no bzip2 here")
	}
	cmd := exec.CommandContext(t.Context(), path, "-1", "-c")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var compressions = []struct {
	name     string
	compress func(testing.TB, []byte) []byte
}{
	{"gzip", gzipped},
	{"zstd", zstded},
	{"bzip2", bzip2ed},
}

func write(t testing.TB, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// readInput gives all that a file with this content gives, and the error at its end.
func readInput(t testing.TB, content []byte) ([]byte, error) {
	t.Helper()
	in, err := Open(write(t, filepath.Join(t.TempDir(), "access.log"), content))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	data, err := io.ReadAll(in)
	if _, again := in.Read(make([]byte, 1)); err != nil && again != err {
		t.Errorf("the next Read: %v, want %v again", again, err)
	}
	return data, err
}

func TestOpenReadsWhatTheFirstBytesSay(t *testing.T) {
	text := logText(3000)
	half := len(text)/2 - 7
	for _, c := range compressions {
		t.Run(c.name, func(t *testing.T) {
			one := c.compress(t, text)
			two := append(c.compress(t, text[:half]), c.compress(t, text[half:])...)
			three := append(append(slices.Clone(two), c.compress(t, nil)...), c.compress(t, text)...)
			for name, tt := range map[string]struct{ content, want []byte }{
				"one":   {one, text},
				"two":   {two, text},
				"empty": {c.compress(t, nil), nil},
				"three": {three, append(slices.Clone(text), text...)},
			} {
				if got, err := readInput(t, tt.content); err != nil || !bytes.Equal(got, tt.want) {
					t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(tt.want))
				}
			}
		})
	}
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, zstded(t, text)...)
	if got, err := readInput(t, skippable); err != nil || !bytes.Equal(got, text) {
		t.Errorf("zstd behind a skippable frame: %d bytes, %v", len(got), err)
	}
	padded := append(gzipped(t, text), make([]byte, 1000)...)
	if got, err := readInput(t, padded); err != nil || !bytes.Equal(got, text) {
		t.Errorf("gzip with zeros behind it: %d bytes, %v", len(got), err)
	}
	for _, plain := range []string{"", "a", "BZh9 is how this line begins\n", "\x1f", "BZ", "(\xb5/", "\x00\x00", string(text)} {
		if got, err := readInput(t, []byte(plain)); err != nil || string(got) != plain {
			t.Errorf("plain %.20q: %d bytes, %v", plain, len(got), err)
		}
	}
}

// TestOpenGivesWhatACutFileHas cuts at every place of small files of two members, and at
// random ones of longer files.
func TestOpenGivesWhatACutFileHas(t *testing.T) {
	r := newRand(t)
	text := logText(3000)
	for _, c := range compressions {
		t.Run(c.name, func(t *testing.T) {
			small := c.compress(t, text[:300])
			boundary := len(small)
			small = append(small, c.compress(t, text[300:500])...)
			for cut := 4; cut < len(small); cut++ { // with less it is no such file
				got, err := readInput(t, small[:cut])
				if cut == boundary {
					if err != nil || !bytes.Equal(got, text[:300]) {
						t.Errorf("cut between members: %d bytes, %v", len(got), err)
					}
					continue
				}
				checkDamage(t, c.name, small[:cut], got, err, ErrTruncated)
				if !bytes.HasPrefix(text, got) || cut > boundary && len(got) < 300 {
					t.Errorf("cut at %d of %d: %d bytes, which are no beginning or too few", cut, len(small), len(got))
				}
			}
			long := c.compress(t, text)
			for range 30 {
				cut := 100 + r.IntN(len(long)-100)
				got, err := readInput(t, long[:cut])
				checkDamage(t, c.name, long[:cut], got, err, ErrTruncated)
				// A block of bzip2 is 100 kB, one of zstd 20 kB, here.
				if least := int64(len(text))*int64(cut)/int64(len(long)) - 110_000; !bytes.HasPrefix(text, got) || int64(len(got)) < least {
					t.Errorf("cut at %d of %d: %d bytes, want %d at least", cut, len(long), len(got), least)
				}
			}
		})
	}
}

func checkDamage(t *testing.T, compression string, content, got []byte, err, want error) {
	t.Helper()
	damage, ok := errors.AsType[*DamageError](err)
	if !ok || want != nil && !errors.Is(err, want) {
		t.Errorf("%d bytes: %v, want %v", len(content), err, want)
		return
	}
	if damage.Compression != compression || damage.Decompressed != int64(len(got)) ||
		damage.Compressed < 0 || damage.Compressed > int64(len(content)) {
		t.Errorf("%d bytes which gave %d: %+v", len(content), len(got), damage)
	}
}

func TestOpenReportsDamage(t *testing.T) {
	r := newRand(t)
	text := logText(3000)
	for _, c := range compressions {
		t.Run(c.name, func(t *testing.T) {
			whole := append(c.compress(t, text), c.compress(t, text)...)
			for range 40 {
				at := 20 + r.IntN(len(whole)/2-40) // in the first half, which has a checksum
				content := slices.Clone(whole)
				content[at] ^= 1 << r.IntN(8)
				got, err := readInput(t, content)
				if err == nil && bytes.Equal(got, append(slices.Clone(text), text...)) {
					continue // a bit that means nothing, such as padding
				}
				checkDamage(t, c.name, content, got, err, nil)
			}
			behind := append(slices.Clone(whole), "not compressed"...)
			got, err := readInput(t, behind)
			checkDamage(t, c.name, behind, got, err, ErrCorrupt)
			if damage, ok := errors.AsType[*DamageError](err); ok && (damage.Compressed < int64(len(whole)) || damage.Compressed > int64(len(whole)+10)) {
				t.Errorf("text behind %d bytes is found at %d", len(whole), damage.Compressed)
			}
			if len(got) != 2*len(text) {
				t.Errorf("%d bytes before the text behind, want %d", len(got), 2*len(text))
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tests := []struct {
		name, path string
		want       error
	}{
		{"a directory", dir, ErrDirectory},
		{"a socket", socket, ErrDevice},
		{"a device", "/dev/null", ErrDevice},
		{"nothing", filepath.Join(dir, "none"), fs.ErrNotExist},
		{"a file as a directory", filepath.Join(write(t, filepath.Join(dir, "file"), nil), "x"), unix.ENOTDIR},
		{"xz", write(t, filepath.Join(dir, "xz"), []byte("\xfd7zXZ\x00\x00\x04....")), ErrCompression},
		{"lz4", write(t, filepath.Join(dir, "lz4"), []byte("\x04\x22\x4d\x18....")), ErrCompression},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in, err := Open(tt.path)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.path) {
				t.Errorf("Open = %v, %v, want %v with the path", in, err, tt.want)
			}
		})
	}
	if os.Getuid() != 0 {
		secret := write(t, filepath.Join(dir, "secret"), nil)
		if err := os.Chmod(secret, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(secret); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("unreadable file: %v", err)
		}
	}
}

// TestOpenBoundsZstdWindow hands over frames of one raw byte that ask for a window of
// 2^27 and 2^28 bytes (RFC 8878, 3.1.1.1.2).
func TestOpenBoundsZstdWindow(t *testing.T) {
	frame := func(log byte) []byte {
		return []byte{0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 1 | 1<<3, 0, 0, 'a'}
	}
	if got, err := readInput(t, frame(27)); err != nil || string(got) != "a" {
		t.Errorf("128 MiB: %q, %v", got, err)
	}
	if got, err := readInput(t, frame(28)); !errors.Is(err, ErrCompression) {
		t.Errorf("256 MiB: %q, %v", got, err)
	}
}

func TestOpenReadsFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	text := logText(2000)
	content := gzipped(t, text)
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(path, content, 0) }() // ended by the reader
	in, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	got, err := io.ReadAll(in)
	if err != nil || !bytes.Equal(got, text) || in.Size() != -1 || in.Consumed() != int64(len(content)) {
		t.Errorf("%d bytes, %v, size %d, consumed %d", len(got), err, in.Size(), in.Consumed())
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

func TestOpenReadsStandardInput(t *testing.T) {
	file, err := os.Open(write(t, filepath.Join(t.TempDir(), "in"), []byte("a\nb")))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	before := os.Stdin
	os.Stdin = file
	defer func() { os.Stdin = before }()
	in, err := Open(Stdin)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(in); err != nil || string(got) != "a\nb" {
		t.Errorf("%q, %v", got, err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if _, err := file.Stat(); err != nil {
		t.Errorf("standard input after Close: %v, want it open", err)
	}
}

func TestInputTellsItsProgress(t *testing.T) {
	text := logText(30_000)
	for _, content := range [][]byte{text, gzipped(t, text)} {
		path := write(t, filepath.Join(t.TempDir(), "log"), content)
		in, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		buf := make([]byte, 100_000)
		last := int64(0)
		for {
			_, err := in.Read(buf)
			if in.Consumed() < last || in.Consumed() > in.Size() {
				t.Fatalf("consumed %d after %d of %d", in.Consumed(), last, in.Size())
			}
			last = in.Consumed()
			if err != nil {
				break
			}
		}
		if in.Size() != int64(len(content)) || last != in.Size() {
			t.Errorf("consumed %d of %d, want %d", last, in.Size(), len(content))
		}
	}
}

func TestInputEndsWhereTheFileEnds(t *testing.T) {
	text := logText(30_000)
	tests := []struct {
		name   string
		change func(path string) error
		want   int
	}{
		{"shrunk", func(path string) error { return os.Truncate(path, 500_000) }, 500_000},
		{"emptied", func(path string) error { return os.Truncate(path, 0) }, readBuffer},
		{"grown", func(path string) error {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("more\n")
			return errors.Join(err, f.Close())
		}, len(text) + 5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, filepath.Join(t.TempDir(), "log"), text)
			in, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if err := tt.change(path); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(in); err != nil || len(got) != tt.want {
				t.Errorf("%d bytes, %v, want %d", len(got), err, tt.want)
			}
		})
	}
}

func TestExpandSortsRotatedFilesByAge(t *testing.T) {
	dir := t.TempDir()
	want := []string{
		"access.log-20231231.gz", "access.log-20240101", "access.log.10.gz", "access.log.9.zst", "access.log.2.bz2", "access.log.1", "access.log",
		"error.log.2.gz", "error.log.1", "error.log",
		"other_vhosts_access.log.2023-12-30", "other_vhosts_access.log.2023-12-31", "other_vhosts_access.log",
	}
	for _, name := range want {
		write(t, filepath.Join(dir, name), nil)
	}
	var full []string
	for _, name := range want {
		full = append(full, filepath.Join(dir, name))
	}
	shell := slices.Sorted(slices.Values(full)) // as the shell gives them
	for name, args := range map[string][]string{"literal": {dir + "/*"}, "by the shell": shell} {
		paths, repeats, problems := Expand(args)
		var got []string
		for _, p := range paths {
			got = append(got, p.Name)
		}
		if !slices.Equal(got, full) || repeats != nil || problems != nil {
			t.Errorf("%s:\ngot  %v\nwant %v\n%v %v", name, got, full, repeats, problems)
		}
	}
}

func TestExpandReadsAFileOnce(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("a"), nil)
	write(t, at("b[1]"), nil)
	write(t, at("b1"), nil)
	if err := errors.Join(os.Symlink("a", at("link")), os.Link(at("a"), at("hard")), os.Mkdir(at("dir"), 0o700), os.Symlink("none", at("broken"))); err != nil {
		t.Fatal(err)
	}
	paths, repeats, problems := Expand([]string{at("a"), "-", at("link"), dir + "/../" + filepath.Base(dir) + "/a", at("hard"), "-", at("b[1]"), at("b?"), at("di*"), at("none*"), at("gone"), at("broken"), at("[")})
	var got []string
	for _, p := range paths {
		got = append(got, p.Name)
	}
	if want := []string{at("a"), "-", at("b[1]"), at("b1")}; !slices.Equal(got, want) {
		t.Errorf("paths %v, want %v", got, want)
	}
	of := map[string]string{at("link"): at("a"), dir + "/../" + filepath.Base(dir) + "/a": at("a"), at("hard"): at("a"), "-": "-"}
	for _, r := range repeats {
		if of[r.Name] != r.Of {
			t.Errorf("%v", r)
		}
		delete(of, r.Name)
	}
	if len(of) > 0 {
		t.Errorf("not reported: %v", of)
	}
	counts := map[error]int{}
	for _, p := range problems {
		for _, kind := range []error{fs.ErrNotExist, ErrDirectory, filepath.ErrBadPattern} {
			if errors.Is(p.Err, kind) {
				counts[kind]++
			}
		}
	}
	if len(problems) != 5 || counts[fs.ErrNotExist] != 3 || counts[ErrDirectory] != 1 || counts[filepath.ErrBadPattern] != 1 {
		t.Errorf("problems %v", problems)
	}
}

func TestExpandedPathNoticesRotation(t *testing.T) {
	dir := t.TempDir()
	name := write(t, filepath.Join(dir, "access.log"), []byte("old\n"))
	paths, _, _ := Expand([]string{name})
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, name, []byte("new\n"))
	if in, err := paths[0].Open(); !errors.Is(err, ErrReplaced) {
		t.Errorf("Open = %v, %v, want ErrReplaced", in, err)
	}
}

func TestLogOf(t *testing.T) {
	for name, want := range map[string]string{
		"/logs/web1/access.log":                "/logs/web1/access.log",
		"/logs/web1/access.log.1":              "/logs/web1/access.log",
		"/logs/web1/access.log.2.gz":           "/logs/web1/access.log",
		"/logs/web1/access.log-20261127.gz":    "/logs/web1/access.log",
		"/logs/web1/access.log.2026-11-27.zst": "/logs/web1/access.log",
		"/logs/web2/access.log.2.gz":           "/logs/web2/access.log",
		"u_ex261127.log":                       "u_ex261127.log",
		Stdin:                                  Stdin,
	} {
		if got := LogOf(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}
