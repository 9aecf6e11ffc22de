package sink

import (
	"context"
	"sync"
)

// A window bounds what is leased and not settled. Methods may be called from any
// goroutine.
type window struct {
	maxHits, maxBytes int

	mu          sync.Mutex
	hits, bytes int
	average     int // bytes of a hit, about
	freed       chan struct{}
}

func newWindow(hits, bytes int) *window {
	return &window{maxHits: hits, maxBytes: bytes, average: 1 << 10, freed: make(chan struct{}, 1)}
}

// wait blocks until there is room, and says for how many hits, at most most.
func (w *window) wait(ctx context.Context, most int) (int, bool) {
	for {
		w.mu.Lock()
		room := min(most, w.maxHits-w.hits)
		if left := w.maxBytes - w.bytes; left > 0 {
			room = min(room, max(1, left/w.average))
		} else {
			room = 0
		}
		w.mu.Unlock()
		if room > 0 {
			return room, true
		}
		select {
		case <-ctx.Done():
			return 0, false
		case <-w.freed:
		}
	}
}

func (w *window) take(hits, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hits += hits
	w.bytes += bytes
	if hits > 0 {
		w.average = max(1, (7*w.average+bytes/hits)/8)
	}
}

func (w *window) give(hits, bytes int) {
	w.mu.Lock()
	w.hits -= hits
	w.bytes -= bytes
	w.mu.Unlock()
	select {
	case w.freed <- struct{}{}:
	default:
	}
}
