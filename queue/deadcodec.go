package queue

import (
	"encoding/binary"
	"fmt"
	"slices"

	"sluice/internal/hit"
)

const prefixDead = 'l'

func deadKey(id hit.ID) []byte {
	b := binary.BigEndian.AppendUint64([]byte{prefixDead}, id.Generation)
	b = binary.BigEndian.AppendUint64(b, id.Block)
	return binary.BigEndian.AppendUint32(b, id.Index)
}

// encodeDead gives the value of a letter. With a key all of it but the id is
// encrypted.
func encodeDead(l *hit.DeadLetter, key *dataKey) []byte {
	b := hit.AppendDeadLetter(make([]byte, frameLen), l)
	if key == nil {
		return seal(b, kindDead)
	}
	_, n, err := letterID(b[frameLen:])
	if err != nil {
		panic(err) // it was written just now
	}
	at := frameLen + n
	sealed := key.begin(slices.Clone(b[:at]))
	at, b = len(sealed), append(sealed, b[at:]...)
	return seal(key.finish(b, at, kindSealedDead), kindSealedDead)
}

// decodeDead reads a letter, which aliases the value unless that is encrypted. It
// returns [ErrKey] for one that none of the keys has encrypted.
func decodeDead(keys Keys, value []byte) (*hit.DeadLetter, error) {
	kind := byte(kindDead)
	if len(value) >= frameLen && value[1] == kindSealedDead {
		kind = kindSealedDead
	}
	p, err := unseal(value, kind)
	if err == nil && kind == kindSealedDead {
		p, err = openLetter(keys, p)
	}
	if err != nil {
		return nil, err
	}
	l, err := hit.DecodeDeadLetter(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return l, nil
}

// openLetter gives the payload that an encrypted one stands for.
func openLetter(keys Keys, p []byte) ([]byte, error) {
	_, n, err := letterID(p)
	if err != nil {
		return nil, err
	}
	return keys.decrypt(slices.Clone(p[:n]), p, n, kindSealedDead)
}

// letterID reads the id that a letter's payload begins with, and its length.
func letterID(p []byte) (id hit.ID, n int, err error) {
	const generationLen = 8
	if len(p) < generationLen {
		return id, 0, fmt.Errorf("%w: dead letter of %d bytes", errDamaged, len(p))
	}
	r := reader{b: p[generationLen:]}
	id = hit.ID{Generation: binary.LittleEndian.Uint64(p), Block: r.u(), Index: r.u32()}
	return id, len(p) - len(r.b), r.err
}

// hasEncrypted reports whether a letter's whole value was encrypted with the key.
func (k *dataKey) hasEncrypted(value []byte) bool {
	if value[1] != kindSealedDead {
		return false
	}
	p := value[frameLen:]
	_, n, err := letterID(p)
	return err == nil && keyID(p[n:]) == k.id
}
