package proxy

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// A Logged is a request that a server has written into its log, as far as the log has it.
type Logged struct {
	At     time.Time
	Remote netip.Addr // the other end of the connection, or what the server took for it
	Method string
	Target string // path and query, as on the request line
	HTTPS  bool
	Header http.Header // canonical names
	Body   []byte
	// HasBody: the log has bodies, so that one that is empty was empty.
	HasBody bool
}

// A Verdict says what a logged request is good for.
type Verdict string

// The verdicts about logged requests.
const (
	ReplayTaken       Verdict = "taken"
	ReplayElsewhere   Verdict = "elsewhere"    // it does not track
	ReplayNothing     Verdict = "nothing"      // Matomo would have recorded nothing: no parameters, opt-out, look ahead
	ReplayRefused     Verdict = "refused"      // Matomo would have refused it: no rights, no such site
	ReplayWithoutBody Verdict = "without_body" // what it tracks is in a body that was not logged
	ReplayBroken      Verdict = "broken"       // it is no request
)

// A Replayer makes hits of logged requests, by the same rules as for a client that sends
// them: what came without a token gets no rights here, and nothing that the log does not
// have is invented. It is for one goroutine.
type Replayer struct {
	endpoint endpoint
	scratch  scratch
	kept     keptSets
	keep     []string
}

// Replayer makes one, with the settings of this moment. Limits of rates do not apply to
// it, and the requests are not counted among those of clients.
func (s *Server) Replayer() *Replayer {
	r := &Replayer{endpoint: s.endpoint, keep: s.cfg.KeepHeaders}
	now := *s.tuned()
	now.rates = rates{}
	r.endpoint.live = new(atomic.Pointer[tuned])
	r.endpoint.live.Store(&now)
	r.endpoint.queue = &r.kept
	r.endpoint.metrics = newInstruments(metrics.NewSet())
	r.endpoint.pass, r.endpoint.retries = nil, nil
	if s.endpoint.sites != nil {
		r.endpoint.sites = &askedOnce{sites: s.endpoint.sites, answers: map[int64]SiteAnswer{}}
	}
	return r
}

// askedOnce asks for each site once, and waits for no answer after the first that did
// not come: a million lines would wait as often.
type askedOnce struct {
	sites   Sites
	answers map[int64]SiteAnswer
	tired   bool
}

// Lookup is part of [Sites].
func (a *askedOnce) Lookup(ctx context.Context, site int64) SiteAnswer {
	if answer, ok := a.answers[site]; ok {
		return answer
	}
	if a.tired {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		cancel()
	}
	answer := a.sites.Lookup(ctx, site)
	a.tired = a.tired || answer == SiteUnknown
	a.answers[site] = answer
	return answer
}

// keptSets is an [Appender] that keeps copies.
type keptSets struct{ sets []*hit.RequestSet }

// Append is part of [Appender].
func (k *keptSets) Append(_ context.Context, sets ...*hit.RequestSet) error {
	for _, s := range sets {
		c, _, err := hit.DecodeRequestSet(hit.AppendRequestSet(nil, s))
		if err != nil {
			return err
		}
		k.sets = append(k.sets, c)
	}
	return nil
}

// Replay gives the hits of a logged request, received when it was logged. It may ask
// Matomo for a site that is not known yet, as for a client.
func (r *Replayer) Replay(ctx context.Context, l *Logged) ([]*hit.RequestSet, Verdict) {
	raw, query, _ := strings.Cut(l.Target, "?")
	path, err := url.PathUnescape(raw)
	if err != nil || !strings.HasPrefix(path, "/") || !l.Remote.IsValid() || l.At.Unix() <= 0 {
		return nil, ReplayBroken
	}
	at := placeOf(cleanPath(path))
	if !at.tracks(l.Method, []byte(query)) {
		return nil, ReplayElsewhere
	}
	if l.Method == http.MethodOptions {
		return nil, ReplayNothing // a browser's question before a POST; no log has the headers that say so
	}
	if l.Method == http.MethodPost && !l.HasBody {
		return nil, ReplayWithoutBody
	}
	in := request{method: l.Method, place: at, query: []byte(query), body: l.Body, https: l.HTTPS, peer: canonical(l.Remote), receivedAt: l.At}
	in.fill(&http.Request{Host: l.Header.Get("Host"), Header: l.Header}, r.keep)
	in.peerText = in.peer.String()
	r.kept.sets = nil
	a := r.endpoint.serve(ctx, &in, &r.scratch)
	switch {
	case len(r.kept.sets) > 0:
		return r.kept.sets, ReplayTaken
	case a.status >= http.StatusBadRequest:
		return nil, ReplayRefused
	}
	return nil, ReplayNothing
}
