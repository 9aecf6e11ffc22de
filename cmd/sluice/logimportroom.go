package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/admin"
	"sluice/internal/hit"
	"sluice/proxy"
	"sluice/queue"
	"sluice/sink"
)

// logImportChunk is how many bytes are stored at once, unless one request alone has more;
// the queue's limit for a transaction is above it.
const logImportChunk = 1 << 20

// A logImportRoom lets the private listener import access logs: proxy judges requests, sink
// says which hits are late, and queue keeps.
type logImportRoom struct {
	queue *queue.Queue
	proxy *proxy.Server
	sink  *sink.Sink
	set   *metrics.Set
}

// List is part of [admin.LogImports].
func (r logImportRoom) List() []admin.LogImport {
	out := []admin.LogImport{}
	for _, i := range r.queue.Imports() {
		out = append(out, logImportOf(i))
	}
	return out
}

func logImportOf(i queue.Import) admin.LogImport {
	out := admin.LogImport{
		ID: i.ID, State: string(i.State), Note: i.Note, Begun: i.Begun, From: i.From, To: i.To, Forgotten: i.Forgotten,
		Accepted: i.Accepted, Delivered: i.Delivered, Invalid: i.Invalid, Dead: i.Dead,
		Pending: i.Accepted - i.Delivered - i.Invalid - i.Dead,
	}
	if !i.Completed.IsZero() {
		out.Completed = &i.Completed
	}
	return out
}

// Begin is part of [admin.LogImports].
func (r logImportRoom) Begin(order admin.BeginLogImport) (admin.LogImport, error) {
	i, err := r.queue.BeginImport(order.Note, order.From, order.To)
	return logImportOf(i), logImportError(err)
}

// Complete is part of [admin.LogImports].
func (r logImportRoom) Complete(ctx context.Context, id string, allowLate bool) (admin.LateHits, error) {
	judge, by, end := r.lateJudge()
	defer end()
	late, err := r.queue.CompleteImport(ctx, id, allowLate, judge)
	return admin.LateHits{Late: late, LateBy: by}, logImportError(err)
}

// lateJudge gives a judge of late hits, by what it knows them, and what ends it; nil for
// the queue's own.
func (r logImportRoom) lateJudge() (judge queue.LateJudge, by string, end func()) {
	if j := r.sink.JudgeLate(); j != nil {
		return j, "visitor", func() { j.Close() } // nothing was written through it
	}
	return nil, "site", func() {}
}

// Cancel is part of [admin.LogImports].
func (r logImportRoom) Cancel(id string) error { return logImportError(r.queue.CancelImport(id)) }

// Forget is part of [admin.LogImports].
func (r logImportRoom) Forget(id string) error { return logImportError(r.queue.ForgetImport(id)) }

// logImportError gives the queue's errors in the listener's words.
func logImportError(err error) error {
	for theirs, ours := range map[error]error{
		queue.ErrImportOpen: admin.ErrImportOpen, queue.ErrNoImport: admin.ErrNoImport,
		queue.ErrLate: admin.ErrLate, queue.ErrLateUnknown: admin.ErrLateUnknown, queue.ErrImportOrder: admin.ErrImportOrder,
	} {
		if errors.Is(err, theirs) {
			return ours
		}
	}
	return err
}

// Take is part of [admin.LogImports].
func (r logImportRoom) Take(ctx context.Context, id string, dry bool, wanted admin.SiteRanges, requests []admin.LoggedRequest) (admin.LogTaken, error) {
	taken := admin.LogTaken{Requests: map[string]int64{}, Sites: map[string]int64{}}
	lines := make([]queue.Line, len(requests))
	for i := range requests {
		if len(requests[i].Line) < len(lines[i].ID) || i > 0 && requests[i].LineAt < lines[i-1].At {
			return taken, fmt.Errorf("request %d: its line has no identity, or is older than the one before", i+1)
		}
		lines[i] = queue.Line{At: requests[i].LineAt, ID: [10]byte(requests[i].Line)}
	}
	known, err := r.queue.KnownLines(lines)
	if err != nil {
		return taken, err
	}
	judge := r.proxy.Replayer(wanted.Has)
	var sets []*hit.RequestSet
	var of []queue.Line
	size := 0
	store := func() (err error) {
		switch {
		case len(sets) == 0:
			return nil
		case dry:
			err = r.countLate(ctx, sets, &taken.LateHits)
		default:
			err = r.queue.AppendImport(ctx, id, sets, of)
		}
		sets, of, size = nil, nil, 0
		return logImportError(err)
	}
	for i := range requests {
		verdict := "known"
		if !known[i] {
			logged, err := loggedOf(&requests[i])
			made, v := judge.Replay(ctx, logged)
			if err != nil {
				v = proxy.ReplayBroken
			}
			n, err := queue.Size(made...)
			if err != nil {
				v = proxy.ReplayBroken // no client could send it to the edge either
			}
			verdict = string(v)
			if v == proxy.ReplayTaken {
				if size+n > logImportChunk {
					if err := store(); err != nil {
						return taken, err
					}
				}
				for _, s := range made {
					for h := range s.Hits {
						taken.Hits++
						taken.Sites[strconv.FormatInt(s.Hits[h].Site, 10)]++
					}
				}
				sets, of, size = append(sets, made...), append(of, lines[i]), size+n
			}
		}
		taken.Verdicts = append(taken.Verdicts, verdict)
		taken.Requests[verdict]++
	}
	if err := store(); err != nil || dry {
		return taken, err
	}
	for verdict, n := range taken.Requests {
		r.set.GetOrCreateCounter(fmt.Sprintf("sluice_queue_import_requests_total{verdict=%q}", verdict)).Add(int(n))
	}
	return taken, nil
}

// countLate adds what would be late of what a dry run would take.
func (r logImportRoom) countLate(ctx context.Context, sets []*hit.RequestSet, late *admin.LateHits) error {
	judge, by, end := r.lateJudge()
	defer end()
	if late.LateBy = by; judge == nil {
		judge = r.queue.JudgeBySite()
	}
	var hits []hit.Pending
	for _, s := range sets {
		for i := range s.Hits {
			hits = append(hits, hit.Pending{ReceivedAt: s.ReceivedAt, Environment: &s.Environment, Hit: s.Hits[i]})
		}
	}
	found, err := judge.Late(ctx, hits, true)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		late.Late = -1
	}
	for i := range found {
		if found[i] && late.Late >= 0 {
			late.Late++
		}
	}
	return nil
}

// loggedOf reads what the client sent.
func loggedOf(r *admin.LoggedRequest) (*proxy.Logged, error) {
	l := &proxy.Logged{
		At: time.Unix(0, r.At), Method: r.Method, Target: string(r.Target), HTTPS: r.HTTPS,
		Header: make(http.Header, len(r.Header)/2), Body: r.Body, HasBody: r.HasBody,
	}
	var err error
	l.Remote, err = netip.ParseAddr(r.Remote)
	for i := 0; i+1 < len(r.Header); i += 2 {
		l.Header.Add(string(r.Header[i]), string(r.Header[i+1]))
	}
	return l, err
}
