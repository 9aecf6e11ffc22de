package assets

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sluice/internal/durable"
)

// The ends of names on the disk. A path has one file of each role at most.
const (
	liveRole     = ".live"
	previousRole = ".prev"
	pinRole      = ".pin"
	rememberRole = ".answer"
	damagedDir   = "damaged"
)

// A disk keeps copies as files, each replaced as a whole. Its methods are called for
// one path by one goroutine at a time.
type disk struct {
	dir string
	// write is [durable.WriteFile] but in tests of a full disk.
	write func(name string, b []byte) error
}

// nameOf gives the name of a path's copies, without the role.
func nameOf(path string) string {
	sum := sha256.Sum256([]byte(path))
	const bytesOfName = 16 // no two paths meet by chance
	return hex.EncodeToString(sum[:bytesOfName])
}

func (d *disk) path(path, role string) string { return filepath.Join(d.dir, nameOf(path)+role) }

// put stores a copy in a role, durably: after a crash the role holds the old copy or
// the new one.
func (d *disk) put(m meta, role string, body []byte) error {
	b, err := appendCopy(make([]byte, 0, headSize+len(body)+1<<10), m, body)
	if err != nil {
		return err
	}
	if err := d.write(d.path(m.Path, role), b); err != nil {
		return fmt.Errorf("store a copy: %w", err)
	}
	return nil
}

// replace makes a new copy the live one and the live one the previous. A crash
// between both leaves the previous one, which is then served.
func (d *disk) replace(m meta, body []byte) error {
	err := os.Rename(d.path(m.Path, liveRole), d.path(m.Path, previousRole))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep the previous copy: %w", err)
	}
	return d.put(m, liveRole, body)
}

// get reads a copy.
func (d *disk) get(path, role string) (meta, []byte, error) {
	b, err := os.ReadFile(d.path(path, role))
	if err != nil {
		return meta{}, nil, fmt.Errorf("read a copy: %w", err)
	}
	return decodeCopy(b)
}

// remove forgets copies. One that is not there is no error.
func (d *disk) remove(path string, roles ...string) error {
	for _, role := range roles {
		if err := os.Remove(d.path(path, role)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget a copy: %w", err)
		}
	}
	return durable.SyncDir(d.dir)
}

// touch notes when the origin last confirmed the live copy. It is not synced: after a
// crash the copy counts as older than it is.
func (d *disk) touch(path string, at time.Time) {
	_ = os.Chtimes(d.path(path, liveRole), at, at) // as above
}

// A storedCopy is what [disk.load] finds.
type storedCopy struct {
	meta    meta
	body    []byte
	role    string
	checked time.Time
}

// load reads everything that is kept, and gives what cannot be used to damaged. It
// removes what a crash left half done.
func (d *disk) load(each func(storedCopy), damaged func(name string, err error)) error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("directory of copies: %w", err)
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return fmt.Errorf("directory of copies: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		role := filepath.Ext(name)
		if role == durable.TemporarySuffix {
			_ = os.Remove(filepath.Join(d.dir, name)) // it is no copy and never will be
			continue
		}
		if !entry.Type().IsRegular() || role != liveRole && role != previousRole && role != pinRole && role != rememberRole {
			continue
		}
		found, err := d.loadFile(name, role)
		if err != nil {
			damaged(name, err)
			d.setAside(name)
			continue
		}
		each(found)
	}
	return nil
}

func (d *disk) loadFile(name, role string) (storedCopy, error) {
	path := filepath.Join(d.dir, name)
	info, err := os.Stat(path)
	if err != nil {
		return storedCopy{}, err
	}
	if info.Size() > maxImage+maxMeta+int64(headSize)+sha256.Size {
		return storedCopy{}, errDamaged
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return storedCopy{}, err
	}
	m, body, err := decodeCopy(b)
	if err != nil {
		return storedCopy{}, err
	}
	if key := m.Path; nameOf(key) != strings.TrimSuffix(name, role) {
		return storedCopy{}, errDamaged
	}
	return storedCopy{m, body, role, info.ModTime()}, nil
}

// setAside keeps a damaged file for a human, out of the way.
func (d *disk) setAside(name string) {
	aside := filepath.Join(d.dir, damagedDir)
	// Without it the file stays, is reported at each start and is never served.
	_ = os.MkdirAll(aside, 0o700)
	_ = os.Rename(filepath.Join(d.dir, name), filepath.Join(aside, name))
}
