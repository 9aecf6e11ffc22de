package queue

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"sluice/internal/durable"
)

// A store is what store.json says.
type store struct {
	generation uint64
	// keys are those that something which is kept may be encrypted with.
	keys []storedKey
}

// A storedKey says for how long a key has encrypted.
type storedKey struct {
	ID keyID `json:"id"`
	// Until is the first block that the key has not encrypted; 0 while it encrypts.
	Until uint64 `json:"until,omitempty"`
}

// storeFile is the form of store.json.
type storeFile struct {
	Format     int         `json:"format"`
	Generation string      `json:"generation"`
	Keys       []storedKey `json:"keys,omitempty"`
}

// readStore reads store.json in dir; nil if there is none.
func readStore(dir string) (*store, error) {
	path := filepath.Join(dir, "store.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var f storeFile
	err = json.Unmarshal(data, &f)
	if f.Format > formatVersion {
		return nil, fmt.Errorf("%w: %s says format %d, this program knows %d", ErrNewerFormat, path, f.Format, formatVersion)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	if f.Format < formatVersion {
		return nil, fmt.Errorf("%w: %s says format %d", ErrDamaged, path, f.Format)
	}
	s := &store{keys: f.Keys}
	if n, err := fmt.Sscanf(f.Generation, "%016x", &s.generation); n != 1 || err != nil || s.generation == 0 {
		return nil, fmt.Errorf("%w: %s: generation %q", ErrDamaged, path, f.Generation)
	}
	return s, nil
}

// write replaces store.json durably.
func (s *store) write(dir string) error {
	data, err := json.Marshal(storeFile{Format: formatVersion, Generation: fmt.Sprintf("%016x", s.generation), Keys: s.keys})
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, "store.json"), append(data, '\n'))
}

// newStore draws a generation for an empty directory.
func newStore(dir string) (*store, error) {
	if _, err := os.Stat(filepath.Join(dir, "live")); err == nil {
		return nil, fmt.Errorf("%w: there is a queue but no store.json", ErrDamaged)
	}
	var b [8]byte
	rand.Read(b[:])
	s := &store{generation: binary.LittleEndian.Uint64(b[:]) | 1}
	return s, s.write(dir)
}

// CheckKeys reports, without opening the queue in dir, whether it can be read with
// keys: [ErrKey] names those that are missing. It returns nil where there is no
// queue, and [ErrNewerFormat] and [ErrDamaged] like [Open]. A queue that another
// process has open may be asked.
func CheckKeys(dir string, keys Keys) error {
	s, err := readStore(dir)
	if err != nil || s == nil {
		return err
	}
	return s.require(keys)
}

// require returns [ErrKey] unless everything that is kept can be read with keys.
func (s *store) require(keys Keys) error {
	var missing []keyID
	for _, k := range s.keys {
		if keys.find(k.ID) == nil {
			missing = append(missing, k.ID)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return missingKeys(missing...)
}

// encryptWith makes one key the one that encrypts what follows the last block. It
// reports whether that changes anything.
func (s *store) encryptWith(id keyID, last uint64) (changed bool) {
	listed := false
	for i := range s.keys {
		k := &s.keys[i]
		switch {
		case k.ID == id:
			k.Until, listed = 0, true // then another had none
		case k.Until == 0:
			k.Until, changed = last+1, true
		}
	}
	if !listed {
		s.keys = append(s.keys, storedKey{ID: id})
	}
	return changed || !listed
}

// letGo forgets the keys of which every block is below the floor. It reports
// whether that changes anything.
func (s *store) letGo(floor uint64) (changed bool) {
	n := len(s.keys)
	s.keys = slices.DeleteFunc(s.keys, func(k storedKey) bool { return k.Until != 0 && k.Until <= floor })
	return len(s.keys) != n
}

// beginKeys lists the key that encrypts before anything is written with it, has the
// dead letters encrypted with it, and forgets the keys that nothing needs any more.
func (q *Queue) beginKeys() error {
	if key := q.keys.first(); key != nil {
		_, last := q.live.bounds()
		if q.store.encryptWith(key.id, last) {
			if err := q.store.write(q.dir); err != nil {
				return err
			}
		}
		q.log.Info("the queue is encrypted", "key", key.id)
	}
	var err error
	if q.lettersCurrent, err = q.dead.renew(); err != nil {
		return err
	}
	return q.forgetKeys()
}

// forgetKeys forgets the keys that no pending block and no dead letter needs. The list
// counts blocks of the live stream: while there is an import all keys stay.
func (q *Queue) forgetKeys() error {
	floor, _ := q.live.bounds()
	if q.lettersCurrent && len(q.running()) == 1 && q.store.letGo(floor) {
		return q.store.write(q.dir)
	}
	return nil
}

// endKeys is forgetKeys at the end. If nothing is left that is encrypted, the key in
// use is forgotten, too: the next opening may be without it.
func (q *Queue) endKeys() error {
	floor, last := q.live.bounds()
	if len(q.store.keys) == 0 || !q.lettersCurrent || len(q.running()) > 1 || floor <= last || !q.dead.empty() {
		return q.forgetKeys()
	}
	q.store.keys = nil
	return q.store.write(q.dir)
}
