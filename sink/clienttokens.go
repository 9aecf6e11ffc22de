package sink

import (
	"sync"
	"time"
)

// maxClientTokens bounds what is remembered about clients' tokens.
const maxClientTokens = 1024

// clientTokens remember which clients' tokens are a superuser's, so that their
// hits can share a batch. Methods may be called from any goroutine.
type clientTokens struct {
	mu    sync.Mutex
	known map[string]struct{}
}

func newClientTokens() *clientTokens { return &clientTokens{known: map[string]struct{}{}} }

func (t *clientTokens) super(token string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.known[token]
	return ok
}

func (t *clientTokens) learn(token string, v verdict) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case v.kind == delivered && v.super:
		if len(t.known) >= maxClientTokens {
			clear(t.known)
		}
		t.known[token] = struct{}{}
	case v.kind == delivered || v.kind == partial:
		delete(t.known, token)
	}
}

// An admission says what to do with a hit that brought a token of its own.
type admission struct {
	// refused: Matomo would not take the token, so the hit is settled as invalid and
	// not sent.
	refused bool
	// until, if not zero, is when the hit may be tried.
	until time.Time
}

// admit decides about a hit of [hit.Theirs] before it is sent. It does no I/O.
func (t *clientTokens) admit(*item, time.Time) admission { return admission{} }
