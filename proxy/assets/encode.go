package assets

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"slices"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

// Where encoding is worth its time.
const (
	minEncoded = 512
	// maxBest is the size up to which brotli works hardest; beyond it that would take
	// seconds.
	maxBest      = 1 << 20
	brotliBest   = brotli.BestCompression
	brotliMiddle = 9
	// zstdWindow is the largest that a browser must accept.
	zstdWindow = 8 << 20
)

// wantEncodings has a version encoded, once, when it is worth it.
func (c *Cache) wantEncodings(v *version) {
	if v.queued.Load() || !v.queued.CompareAndSwap(false, true) {
		return
	}
	if len(v.identity.body) < minEncoded || !compressible(v.kind, v.meta.Path) {
		return
	}
	select {
	case c.encode <- v:
	default:
		v.queued.Store(false) // the next request tries again
	}
}

// makeEncodings encodes a version and publishes what became smaller. Until then
// clients get the bytes as they are.
func (c *Cache) makeEncodings(ctx context.Context, v *version) {
	var reps []*rep
	for _, e := range []struct {
		name   string
		encode func([]byte) ([]byte, error)
	}{{"gzip", gzipped}, {"br", brotlied}, {"zstd", zstded}} {
		if ctx.Err() != nil {
			return
		}
		b, err := e.encode(v.identity.body)
		if err != nil {
			// Writing to memory cannot fail; a fault costs the encoding only.
			c.log.Error("a file was not encoded; it is served without", "path", v.meta.Path, "encoding", e.name, "err", err)
			continue
		}
		if len(b) < len(v.identity.body) {
			reps = append(reps, v.rep(e.name, bytes.Clone(b)))
		}
	}
	slices.SortStableFunc(reps, func(a, b *rep) int { return cmp.Compare(len(a.body), len(b.body)) })
	v.encoded.Store(&reps)
}

func gzipped(body []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(body); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}

func brotlied(body []byte) ([]byte, error) {
	var b bytes.Buffer
	level := brotliBest
	if len(body) > maxBest {
		level = brotliMiddle
	}
	w := brotli.NewWriterLevel(&b, level)
	if _, err := w.Write(body); err != nil {
		return nil, err
	}
	err := w.Close()
	return b.Bytes(), err
}

func zstded(body []byte) ([]byte, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow))
	if err != nil {
		return nil, err
	}
	b := w.EncodeAll(body, nil)
	err = w.Close()
	return b, err
}
