package sink

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"sluice/internal/phpform"
)

const (
	// maxGroup is how many tokens one request asks about; Matomo takes about a
	// millisecond for each.
	maxGroup = 1000
	// askShare is what part of the time is spent on questions at most, as its inverse.
	askShare = 4
	// ownFailures is how many wrong tokens an hour may be booked on our own address.
	// Together with the twelve tries of a token of ours that Matomo refuses
	// (refusedPause) they stay below its lock.
	ownFailures = 8
	// ownSpacing keeps wrong tokens that are booked on us apart, with a minute to spare.
	ownSpacing = (lockWindow + time.Minute) / ownFailures
	// forwardFor is how long it is believed how Matomo takes our forward header.
	forwardFor = 10 * time.Minute
)

// askTokens asks Matomo about clients' tokens until ctx is done. It sends no hit of
// a client, and records nothing.
func (s *Sink) askTokens(ctx context.Context) {
	var f forwarding
	size := maxGroup
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.clients.waking:
		}
		for s.clients.waiting() && ctx.Err() == nil {
			changed := s.brk.changes()
			if !s.brk.sending() {
				select {
				case <-ctx.Done():
				case <-changed:
				}
				continue
			}
			if sleep(ctx, s.clients.untilNext()) && s.brk.sending() {
				size = s.ask(ctx, &f, size)
			}
		}
	}
}

func (t *clientTokens) waiting() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.questions) > 0
}

func (t *clientTokens) untilNext() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Until(t.next)
}

// ask asks about as many as size tokens and says about how many to ask next time.
//
// One request asks about many tokens: each travels in a canary of its own, and our
// token, outside of them, makes Matomo name those that it refuses. Matomo books one
// failure a request at most, whatever it holds, on the address that it sees. That is
// the one of the question in front where Matomo believes our forward header, and
// ours where not.
func (s *Sink) ask(ctx context.Context, f *forwarding, size int) int {
	if s.cfg.BulkRequiresAuth {
		size = 1 // Matomo then looks at the token of the bulk only
	}
	began := time.Now()
	group := s.clients.group(size, began)
	if len(group) == 0 {
		return size
	}
	believed := s.believesForwarding(ctx, f)
	v := s.sendQuestions(ctx, group)
	var next time.Time
	switch {
	case ctx.Err() != nil:
	case v.kind == delivered:
		good, refused := divide(group, v.invalid)
		s.clients.answered(good, refused, time.Now())
		s.ins.tokens[true].Add(len(good))
		s.ins.tokens[false].Add(len(refused))
		s.findSupers(ctx, good)
		size = min(2*size, maxGroup)
		if len(refused) > 0 && !believed {
			next = time.Now().Add(ownSpacing)
		}
	case v.kind == partial && len(group) > 1:
		size = (len(group) + 1) / 2 // Matomo names nothing to our token
		if !believed {
			next = time.Now().Add(ownSpacing)
		}
	case !s.canaryPasses(ctx):
	case len(group) > 1:
		size = 1
	case v.kind == split && believed && !s.cfg.BulkRequiresAuth:
		s.clients.lock(group[0].address, time.Now())
	case v.kind == split:
		s.clients.answered(nil, group, time.Now())
		s.ins.tokens[false].Inc()
		if !believed {
			next = time.Now().Add(ownSpacing)
		}
	default:
		next = time.Now().Add(nearby)
	}
	if pause := time.Now().Add((askShare - 1) * time.Since(began)); pause.After(next) {
		next = pause
	}
	s.clients.after(next)
	return size
}

// divide tells questions by the places of those that were refused.
func divide(group []*inquiry, invalid []int) (good, refused []*inquiry) {
	for i, q := range group {
		if len(invalid) > 0 && invalid[0] == i {
			invalid = invalid[1:]
			refused = append(refused, q)
			continue
		}
		good = append(good, q)
	}
	return good, refused
}

// sendQuestions sends a group of questions. Naming an address needs the right that
// is asked about; rec=0 keeps Matomo from recording.
func (s *Sink) sendQuestions(ctx context.Context, group []*inquiry) verdict {
	if s.cfg.BulkRequiresAuth {
		return s.sendQuestion(ctx, group[0])
	}
	b := []byte(`{"requests":[`)
	for i, q := range group {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(q.appendCanary(append(b, '"')), `\u0026token_auth=`...)
		b = append(phpform.AppendEscaped(b, q.token), '"')
	}
	// PHP reads the body as a form besides, as it does with what browsers send. A token
	// there is that of the bulk as a whole and of no hit. The hits' own parameters are
	// none of the form's, since their separators are escaped.
	b = append(b, `],"bulk":"&token_auth=`...)
	b = append(phpform.AppendEscaped(b, s.cfg.Token), `&"}`...)
	return s.post(ctx, b, "application/x-www-form-urlencoded", len(group), group[0].address)
}

// sendQuestion asks about one token as the token of a bulk, so that the answer also
// says whether it is a superuser's.
func (s *Sink) sendQuestion(ctx context.Context, q *inquiry) verdict {
	b := appendJSONString([]byte(`{"token_auth":`), q.token)
	b = append(q.appendCanary(append(b, `,"requests":["`...)), `"]}`...)
	return s.post(ctx, b, "application/json", 1, q.address)
}

func (q *inquiry) appendCanary(b []byte) []byte {
	b = phpform.AppendEscaped(append(b, "?idsite="...), q.site)
	return append(b, `\u0026rec=0\u0026cip=`+canaryAddress...)
}

func (s *Sink) post(ctx context.Context, body []byte, kind string, n int, visitor string) verdict {
	ctx, cancel := context.WithTimeout(ctx, min(canaryTimeout, s.cfg.RequestTimeout))
	defer cancel()
	return judge(s.client.post(ctx, s.client.bulkURL, body, func(h http.Header) {
		h.Set("Content-Type", kind)
		s.client.forward(h, visitor)
	}), n, true)
}

// forward names the visitor's address to Matomo.
func (c *client) forward(h http.Header, visitor string) {
	if visitor != "" && c.forwardHeader != "" {
		h.Set(c.forwardHeader, visitor)
	}
}

// findSupers finds out which tokens that just proved good are superusers'. It books
// no failure.
func (s *Sink) findSupers(ctx context.Context, good []*inquiry) {
	seen := map[rightKey]bool{}
	for _, q := range good {
		if seen[q.tokenKey] || s.clients.super(q.token) {
			continue
		}
		seen[q.tokenKey] = true
		if v := s.sendQuestion(ctx, q); v.kind == delivered && v.super {
			s.clients.foundSuper(q)
		}
	}
}

// A forwarding is what is known of how Matomo takes our forward header.
type forwarding struct {
	believed bool
	until    time.Time
}

// believesForwarding reports whether Matomo is known to take the visitor's address
// from our forward header. Where that cannot be found out it is false.
func (s *Sink) believesForwarding(ctx context.Context, f *forwarding) bool {
	if time.Now().After(f.until) {
		believed, known := s.seenAddress(ctx)
		f.believed, f.until = believed && known, time.Now().Add(forwardFor)
		if !known {
			f.until = time.Now().Add(time.Minute)
		}
	}
	return f.believed
}

// seenAddress asks Matomo's Reporting API which address a request with our forward
// header seems to come from (API.getIpFromHeader). Login failures are booked on the
// same one. It is unknown without a header, or when the API does not tell.
func (s *Sink) seenAddress(ctx context.Context) (believed, known bool) {
	if s.client.forwardHeader == "" {
		return false, true
	}
	ctx, cancel := context.WithTimeout(ctx, min(canaryTimeout, s.cfg.RequestTimeout))
	defer cancel()
	a := s.client.callFor(ctx, "API.getIpFromHeader", s.cfg.Token, canaryAddress)
	var got struct {
		Value string `json:"value"`
	}
	if a.err != nil || a.status != http.StatusOK || json.Unmarshal(a.body, &got) != nil || got.Value == "" {
		return false, false
	}
	return got.Value == canaryAddress, true
}
