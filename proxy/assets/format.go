package assets

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// The layout of a stored copy; docs/format.md, "Copies of Matomo's files".
const (
	magic         = "SLUASSET"
	formatVersion = 1
	headSize      = len(magic) + 1 + 4
	maxMeta       = 16 << 10
)

// meta is what is kept of a copy beside its bytes. Times are Unix nanoseconds.
type meta struct {
	Path         string `json:"path"`
	ETag         string `json:"etag,omitempty"`          // the origin's
	LastModified string `json:"last_modified,omitempty"` // the origin's
	CacheControl string `json:"cache_control,omitempty"`
	Fetched      int64  `json:"fetched"`
	Language     string `json:"language,omitempty"` // of a remembered answer
	Mime         string `json:"mime,omitempty"`     // of a remembered answer
}

var (
	errDamaged = errors.New("the copy is damaged")
	errVersion = errors.New("the copy has a format of another version")
)

// appendCopy appends a copy as it is stored.
func appendCopy(b []byte, m meta, body []byte) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode a copy: %w", err)
	}
	start := len(b)
	b = append(append(b, magic...), formatVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = append(append(b, text...), body...)
	sum := sha256.Sum256(b[start:])
	return append(b, sum[:]...), nil
}

// decodeCopy reads a copy, of which the sum must be right. The body aliases b.
func decodeCopy(b []byte) (m meta, body []byte, err error) {
	if len(b) < headSize+sha256.Size || string(b[:len(magic)]) != magic {
		return m, nil, errDamaged
	}
	if b[len(magic)] != formatVersion {
		return m, nil, errVersion
	}
	content, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(content); !bytes.Equal(want[:], sum) {
		return m, nil, errDamaged
	}
	size := int64(binary.BigEndian.Uint32(b[len(magic)+1:]))
	if size > maxMeta || int64(headSize)+size > int64(len(content)) {
		return m, nil, errDamaged
	}
	end := headSize + int(size)
	if err := json.Unmarshal(content[headSize:end], &m); err != nil {
		return m, nil, errDamaged
	}
	return m, content[end:], nil
}
