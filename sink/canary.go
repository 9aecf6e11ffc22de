package sink

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// A tokenKind says what our token is.
type tokenKind string

const (
	tokenUnknown tokenKind = "unknown"
	tokenSuper   tokenKind = "superuser"      // Matomo names invalid hits to it
	tokenWriter  tokenKind = "write-or-admin" // valid for sites, hits travel alone
	tokenRefused tokenKind = "refused"
	tokenNone    tokenKind = "none"
)

const (
	// canaryTimeout bounds a canary: it does next to nothing.
	canaryTimeout = 15 * time.Second
	// refusedPause is the least time between two tries of a token that Matomo
	// refused. More than 20 failed tries in an hour make Matomo lock our address
	// out, also for the right token.
	refusedPause = 5 * time.Minute
	// canaryAddress is a documentation address. Saying it needs an accepted token.
	canaryAddress = "192.0.2.1"
	// maxCanarySites is how many sites a canary tries before it takes Matomo for
	// another one than before.
	maxCanarySites = 3
)

// A canary is a request that leaves no row.
type canary struct {
	mu        sync.Mutex
	kind      tokenKind
	refusedAt time.Time // the last time that a privileged canary was refused
	apiAt     time.Time // the last time that the Reporting API refused the token
}

// noteAPI learns from a status of the Reporting API whether it refuses the token.
func (c *canary) noteAPI(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kind != tokenWriter && (status == http.StatusUnauthorized || status == http.StatusForbidden) {
		c.apiAt = time.Now()
	}
}

// refusedLately reports whether the token is known to be refused, so that only the
// canary may try it.
func (c *canary) refusedLately() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kind == tokenRefused || !c.apiAt.IsZero() && time.Since(c.apiAt) < refusedPause
}

func (c *canary) setKind(k tokenKind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kind = k
	c.apiAt = time.Time{} // it is accepted, so the API's refusal was about rights
}

func (c *canary) token() tokenKind {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kind
}

// canary asks Matomo for a hit that records nothing (rec=0). It passes when PHP,
// Matomo, its database connection and our token are all fine; it does not show
// whether the database takes writes.
func (s *Sink) canary(ctx context.Context) round {
	if s.cfg.Token == "" {
		return round{reason: ReasonAuth, detail: detailNoToken}
	}
	known, guess := s.sites.canaries()
	sites := append(known, guess)
	for i, site := range sites[:min(len(sites), maxCanarySites)] {
		v := s.sendCanary(ctx, "?idsite="+strconv.FormatInt(site, 10)+"&rec=0")
		switch {
		case v.kind == delivered && v.super && len(v.invalid) == 0:
			s.probe.setKind(tokenSuper)
			return round{ok: true}
		case v.kind == delivered && v.super:
			s.probe.setKind(tokenSuper)
			if i >= len(known) && len(known) == 0 {
				return round{ok: true} // the site was a guess; the answer proves all the rest
			}
		case v.kind == delivered || v.kind == refusedToken:
			return s.privilegedCanary(ctx, site)
		default:
			reason := v.reason
			if reason == ReasonNone {
				reason = ReasonDown
			}
			return round{reason: reason, detail: v.detail, wait: v.wait}
		}
	}
	return round{reason: ReasonConfig, detail: "Matomo no longer knows the sites that it took hits for; restart Sluice if that is meant"}
}

const detailNoToken = "no token"

// privilegedCanary tells the token of a write or admin user from one that is not
// valid. A refusal counts as a failed login, so it is not repeated soon.
func (s *Sink) privilegedCanary(ctx context.Context, site int64) round {
	refused := round{reason: ReasonAuth, detail: "Matomo does not accept the token", wait: refusedPause / 4}
	s.probe.mu.Lock()
	tooSoon := !s.probe.refusedAt.IsZero() && time.Since(s.probe.refusedAt) < refusedPause
	s.probe.mu.Unlock()
	if tooSoon {
		return refused
	}
	v := s.sendCanary(ctx, "?idsite="+strconv.FormatInt(site, 10)+"&rec=0&cip="+canaryAddress)
	switch {
	case v.kind == delivered && v.super:
		s.probe.setKind(tokenSuper)
		return round{ok: true}
	case v.kind == delivered && len(v.invalid) == 0:
		s.probe.setKind(tokenWriter)
		return round{ok: true}
	case v.kind == delivered || v.kind == refusedToken:
		s.probe.mu.Lock()
		s.probe.kind, s.probe.refusedAt = tokenRefused, time.Now()
		s.probe.mu.Unlock()
		return refused
	}
	return round{reason: v.reason, detail: v.detail, wait: v.wait}
}

// acceptedFor reports whether our token, known to be a write or admin user's, is
// accepted for a site, so that a hit that was refused there is invalid by itself.
func (s *Sink) acceptedFor(ctx context.Context, site int64) bool {
	if s.probe.token() != tokenWriter {
		return false
	}
	v := s.sendCanary(ctx, "?idsite="+strconv.FormatInt(site, 10)+"&rec=0&cip="+canaryAddress)
	return v.kind == delivered && !v.super && len(v.invalid) == 0
}

func (s *Sink) sendCanary(ctx context.Context, query string) verdict {
	ctx, cancel := context.WithTimeout(ctx, min(canaryTimeout, s.cfg.RequestTimeout))
	defer cancel()
	body := append([]byte(`{"token_auth":`), appendJSONString(nil, s.cfg.Token)...)
	body = append(body, `,"requests":["`+query+`"]}`...)
	return judge(s.client.bulk(ctx, body, group{}, ""), 1, false)
}

// canaryPasses runs the canary and opens the breaker when it fails.
func (s *Sink) canaryPasses(ctx context.Context) bool {
	c := s.canary(ctx)
	if !c.ok && ctx.Err() == nil {
		s.brk.found(c.reason, c.detail, c.wait)
	}
	return c.ok
}

// noteToken learns from a real answer what our token is. When a superuser's token
// stops being one the canary finds out what it is now.
func (s *Sink) noteToken(ctx context.Context, v verdict) {
	switch {
	case v.super:
		s.probe.setKind(tokenSuper)
	case s.probe.token() != tokenWriter:
		s.canaryPasses(ctx)
	}
}
