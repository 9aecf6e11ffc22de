package queue

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	// KeyLen is the length of a key, in bytes.
	KeyLen = chacha20poly1305.KeySize

	nonceLen = chacha20poly1305.NonceSizeX
	// wrapLen is what stands before an encrypted text: the key's id and a nonce.
	wrapLen = len(keyID{}) + nonceLen
)

// Keys encrypt what a queue keeps of visitors: blocks and dead letters. The first
// encrypts, all of them decrypt, so that a key can be changed. The zero value is no
// key: nothing is encrypted, and what was encrypted cannot be read. Keys may be
// used from any goroutine; they print as their ids.
type Keys struct{ list []*dataKey }

// A dataKey is one key and its id.
type dataKey struct {
	id   keyID
	aead cipher.AEAD
}

// A keyID names a key without telling anything about it.
type keyID [4]byte

// NewKeys makes keys of [KeyLen] random bytes each. It returns an error for a key
// of another length and for two keys with the same id.
func NewKeys(raw ...[]byte) (Keys, error) {
	var keys Keys
	for _, r := range raw {
		aead, err := chacha20poly1305.NewX(r)
		if err != nil {
			return Keys{}, fmt.Errorf("key of %d bytes: %w", len(r), err)
		}
		sum := sha256.Sum256(append([]byte("sluice key"), r...))
		id := keyID(sum[:])
		if keys.find(id) != nil {
			return Keys{}, fmt.Errorf("key %v is there twice", id)
		}
		keys.list = append(keys.list, &dataKey{id: id, aead: aead})
	}
	return keys, nil
}

// String gives the ids of the keys, the encrypting one first; nothing of the keys.
func (k Keys) String() string {
	ids := make([]keyID, len(k.list))
	for i, key := range k.list {
		ids[i] = key.id
	}
	return joinIDs(ids)
}

// GoString is [Keys.String].
func (k Keys) GoString() string { return k.String() }

// first gives the key that encrypts, nil if none does.
func (k Keys) first() *dataKey {
	if len(k.list) == 0 {
		return nil
	}
	return k.list[0]
}

// find gives the key with an id, or nil.
func (k Keys) find(id keyID) *dataKey {
	i := slices.IndexFunc(k.list, func(key *dataKey) bool { return key.id == id })
	if i < 0 {
		return nil
	}
	return k.list[i]
}

// String gives the id in hex.
func (id keyID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText is part of [encoding.TextMarshaler].
func (id keyID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText is part of [encoding.TextUnmarshaler]. One id has one text.
func (id *keyID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(id) || !bytes.Equal(hex.AppendEncode(nil, b), text) {
		return fmt.Errorf("key id %q", text)
	}
	*id = keyID(b)
	return nil
}

func joinIDs(ids []keyID) string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	return strings.Join(texts, ", ")
}

// missingKeys is the error of reading without keys that are needed.
func missingKeys(ids ...keyID) error {
	return fmt.Errorf("%w: want %s among the keys in the file of queue.encryption-key-file", ErrKey, joinIDs(ids))
}

// bound gives what an encrypted text is bound to: kind and clear part of its value.
// Under any other it does not decrypt.
func bound(kind byte, clear []byte) []byte {
	return append([]byte{formatVersion, kind}, clear...)
}

// begin appends what stands before an encrypted text. The nonce is random: 24 bytes
// never repeat by chance, and nothing has to be remembered over a power loss.
func (k *dataKey) begin(b []byte) []byte {
	b = append(b, k.id[:]...)
	b = append(b, make([]byte, nonceLen)...)
	rand.Read(b[len(b)-nonceLen:])
	return b
}

// finish encrypts b[at:], which stands behind what begin has appended to a framed
// value, in place, and appends the authentication tag.
func (k *dataKey) finish(b []byte, at int, kind byte) []byte {
	return k.aead.Seal(b[:at], b[at-nonceLen:at], b[at:], bound(kind, b[frameLen:at-wrapLen]))
}

// decrypt appends to dst what is encrypted in a payload behind its clear part. It
// returns [ErrKey] when the key is not there and [errDamaged] for what the key has
// not encrypted for this place. The payload is left as it is.
func (k Keys) decrypt(dst, payload []byte, clear int, kind byte) ([]byte, error) {
	if len(payload) < clear+wrapLen {
		return nil, fmt.Errorf("%w: encrypted value of %d bytes", errDamaged, len(payload))
	}
	id := keyID(payload[clear:])
	key := k.find(id)
	if key == nil {
		return nil, missingKeys(id)
	}
	text := payload[clear+wrapLen:]
	out, err := key.aead.Open(dst, payload[clear+wrapLen-nonceLen:clear+wrapLen], text, bound(kind, payload[:clear]))
	if err != nil {
		return nil, fmt.Errorf("%w: it is not what key %v has encrypted here", errDamaged, id)
	}
	return out, nil
}
