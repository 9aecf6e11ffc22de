package admin

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"sluice/internal/hit"
)

// routeQueue serves what the queue commands ask.
func (s *Server) routeQueue(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/queue/stats", s.reading(s.queueStats))
	mux.HandleFunc("GET /api/v1/queue/sites", s.reading(s.queueSites))
	mux.HandleFunc("GET /api/v1/queue/hits", s.viewing(s.queueHits))
	mux.HandleFunc("GET /api/v1/queue/hits/{id}", s.viewing(s.queueHit))
	mux.HandleFunc("GET /api/v1/queue/dead", s.viewing(s.queueDead))
	mux.HandleFunc("GET /api/v1/queue/dead/summary", s.reading(s.queueDeadSummary))
	mux.HandleFunc("POST /api/v1/queue/requeue", s.controlling(s.queueRequeue))
	mux.HandleFunc("POST "+importPath, s.controlling(s.queueImport))
	mux.HandleFunc("POST /api/v1/queue/verify", s.controlling(s.queueVerify))
}

// viewing lets everybody who may read see masked hits, and those in control all
// that view=full and view=export ask for.
func (s *Server) viewing(next func(http.ResponseWriter, *http.Request, View)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		view, guard := Masked, s.reading
		switch r.URL.Query().Get("view") {
		case "full":
			view, guard = Full, s.controlling
		case "export":
			view, guard = Export, s.controlling
		}
		guard(func(w http.ResponseWriter, r *http.Request) { next(w, r, view) })(w, r)
	}
}

func (s *Server) queueStats(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.stats())
}

// meanHitBytes is assumed of a hit when none waits to measure.
const meanHitBytes = 400

func (s *Server) stats() QueueStats {
	st, now := s.parts.Queue.Stats(), s.now().UTC()
	drain := s.parts.Drain.Status()
	// The queue knows the hits in doubt since a crash, the drain also those since.
	st.Uncertain = max(st.Uncertain, int64(drain.Uncertain))
	stats := QueueStats{
		V: shapeVersion, Edge: s.cfg.Edge, At: now,
		Sum:    Sum{st.Accepted, st.Delivered, st.Invalid, st.Dead, st.Pending, st.Uncertain, st.Difference},
		Behind: Behind{PendingBytes: st.PendingBytes, OnTheWay: int64(drain.Leased)},
		Dead:   DeadStats{st.DeadKept, st.DeadExpired, st.DeadRequeued},
		Disk:   Disk{UsedBytes: st.DiskBytes, FreeBytes: st.FreeBytes, ReserveBytes: st.Reserve},
		Store: Store{
			Generation: fmt.Sprintf("%016x", st.Generation), Shelves: st.Shelves, Blocks: st.Blocks,
			DamagedBlocks: st.DamagedBlocks, MissingBlocks: st.MissingBlocks, SyncSeconds: st.SyncMean.Seconds(),
		},
	}
	if st.OldestReceivedAt != 0 {
		at := time.Unix(0, st.OldestReceivedAt).UTC()
		stats.Behind.OldestAt = &at
		// The clock may have been set back since.
		stats.Behind.OldestAgeSeconds = max(now.Sub(at).Seconds(), 0)
	}
	in, out, ok := s.pace.rates(now, st)
	if !ok {
		return stats
	}
	stats.Pace = Pace{&in, &out}
	if left := secondsToEmpty(st.Pending, in, out); left >= 0 {
		at := now.Add(time.Duration(left * float64(time.Second)))
		stats.Behind.EmptyAt = &at
	}
	if in > 0 && st.FreeBytes > 0 {
		perHit := float64(meanHitBytes)
		if st.Pending > 0 {
			perHit = max(float64(st.PendingBytes)/float64(st.Pending), 1)
		}
		room := float64(st.FreeBytes) / (in * perHit)
		stats.Disk.RoomSeconds = &room
	}
	return stats
}

// maxForecast is as far as a forecast goes, in seconds; beyond it is never.
const maxForecast = 365 * 24 * 3600

// secondsToEmpty forecasts when nothing will wait any more: 0 when nothing does,
// less than 0 for never at this pace.
func secondsToEmpty(pending int64, in, out float64) float64 {
	switch left := float64(pending) / (out - in); {
	case pending == 0:
		return 0
	case out <= in || left > maxForecast:
		return -1
	default:
		return left
	}
}

// quartersPerDay of a [Counter].
const quartersPerDay = 96

func (s *Server) queueSites(w http.ResponseWriter, r *http.Request) {
	type key struct{ site, day int64 }
	sums := make(map[key]*SiteDay)
	for _, c := range s.parts.Queue.Counters() {
		// The counter of a hit before 1970 belongs to the day before it.
		day := c.Quarter / quartersPerDay
		if c.Quarter < 0 {
			day = (c.Quarter - quartersPerDay + 1) / quartersPerDay
		}
		sum := sums[key{c.Site, day}]
		if sum == nil {
			sum = &SiteDay{Site: c.Site, Day: time.Unix(day*24*3600, 0).UTC().Format(time.DateOnly)}
			sums[key{c.Site, day}] = sum
		}
		sum.Accepted += c.Accepted
		sum.Delivered += c.Delivered
		sum.Invalid += c.Invalid
		sum.Dead += c.Dead
		sum.Pending += c.Accepted - c.Delivered - c.Invalid - c.Dead
	}
	lines := make([]*SiteDay, 0, len(sums))
	for _, sum := range sums {
		lines = append(lines, sum)
	}
	slices.SortFunc(lines, func(a, b *SiteDay) int {
		return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Day, b.Day))
	})
	stream(w, func(yield func(any, error) bool) {
		for _, line := range lines {
			if !yield(line, nil) {
				return
			}
		}
	})
}

func (s *Server) queueHits(w http.ResponseWriter, r *http.Request, view View) {
	q := query{values: r.URL.Query()}
	f := PeekFilter{Site: q.site(), Limit: q.limit()}
	if id := q.id("after"); id != nil {
		f.After = *id
	}
	if q.err != nil {
		refuse(w, http.StatusBadRequest, q.err.Error(), "")
		return
	}
	hits := s.parts.Reader.Peek(r.Context(), f)
	stream(w, func(yield func(any, error) bool) {
		for p, err := range hits {
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(showPending(p, view), nil) {
				return
			}
		}
	})
}

// queueHit shows one hit, pending or buried.
func (s *Server) queueHit(w http.ResponseWriter, r *http.Request, view View) {
	id, err := hit.ParseID(r.PathValue("id"))
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error(), "")
		return
	}
	p, err := s.parts.Reader.Find(r.Context(), id)
	if err == nil {
		answer(w, http.StatusOK, showPending(p, view))
		return
	}
	if !errors.Is(err, ErrNotFound) {
		refuse(w, http.StatusInternalServerError, err.Error(), "")
		return
	}
	for l, err := range s.parts.DeadLetters.Dead(r.Context(), DeadFilter{IDs: []hit.ID{id}}) {
		if err != nil {
			continue // A letter that cannot be read is not known to be this one.
		}
		answer(w, http.StatusOK, showDead(l, view))
		return
	}
	refuse(w, http.StatusNotFound, "no such hit: it is neither pending nor buried", "")
}

func (s *Server) queueDead(w http.ResponseWriter, r *http.Request, view View) {
	q := query{values: r.URL.Query()}
	f := DeadFilter{Site: q.site(), Reason: q.values.Get("reason"), UpTo: q.id("up_to"), Limit: q.limit()}
	if q.err != nil {
		refuse(w, http.StatusBadRequest, q.err.Error(), "")
		return
	}
	letters := s.parts.DeadLetters.Dead(r.Context(), f)
	stream(w, func(yield func(any, error) bool) {
		var damaged error
		for l, err := range letters {
			if err != nil {
				damaged = cmp.Or(damaged, err)
				continue
			}
			if !yield(showDead(l, view), nil) {
				return
			}
		}
		if damaged != nil {
			yield(nil, damaged)
		}
	})
}

// maxGroupSites bounds how many sites a group names.
const maxGroupSites = 10

func (s *Server) queueDeadSummary(w http.ResponseWriter, r *http.Request) {
	q := query{values: r.URL.Query()}
	f := DeadFilter{Site: q.site(), Reason: q.values.Get("reason")}
	if q.err != nil {
		refuse(w, http.StatusBadRequest, q.err.Error(), "")
		return
	}
	summary := DeadSummary{V: shapeVersion, Groups: []DeadGroup{}}
	var newest hit.ID
	for l, err := range s.parts.DeadLetters.Dead(r.Context(), f) {
		if err != nil {
			summary.Damaged++
			continue
		}
		if summary.Total++; summary.Total == 1 || l.ID.Compare(newest) > 0 {
			newest = l.ID
		}
		summary.Groups = addToGroup(summary.Groups, l)
	}
	if summary.Total > 0 {
		summary.Newest = newest.String()
	}
	slices.SortFunc(summary.Groups, func(a, b DeadGroup) int { return cmp.Compare(b.Count, a.Count) })
	answer(w, http.StatusOK, summary)
}

// addToGroup counts a letter under its reason; reasons are few.
func addToGroup(groups []DeadGroup, l *hit.DeadLetter) []DeadGroup {
	i := slices.IndexFunc(groups, func(g DeadGroup) bool { return g.Reason == l.Reason })
	at := time.Unix(0, l.BuriedAt).UTC()
	if i < 0 {
		i = len(groups)
		groups = append(groups, DeadGroup{Reason: l.Reason, First: at, Last: at, Sample: l.ID.String()})
	}
	g := &groups[i]
	g.Count++
	if at.Before(g.First) {
		g.First = at
	}
	if at.After(g.Last) {
		g.Last = at
	}
	if len(g.Sites) < maxGroupSites && !slices.Contains(g.Sites, l.Hit.Site) {
		g.Sites = append(g.Sites, l.Hit.Site)
	}
	return groups
}

func (s *Server) queueRequeue(w http.ResponseWriter, r *http.Request) {
	var order Requeue
	if !readOrder(w, r, &order) {
		return
	}
	f := DeadFilter{Site: order.Site, Reason: order.Reason}
	for _, text := range order.IDs {
		id, err := hit.ParseID(text)
		if err != nil {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("ids: %q: %v", text, err), "")
			return
		}
		f.IDs = append(f.IDs, id)
	}
	if order.UpTo != "" {
		id, err := hit.ParseID(order.UpTo)
		if err != nil {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("up_to: %v", err), "")
			return
		}
		f.UpTo = &id
	}
	if len(f.IDs) == 0 && f.UpTo == nil {
		refuse(w, http.StatusBadRequest, "up_to is missing: an order reaches no further than what its giver has seen", "")
		return
	}
	n, err := s.parts.DeadLetters.Requeue(r.Context(), f)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error(), "")
		return
	}
	s.log.Info("buried hits are pending again", "hits", n, "who", order.Who, "reason", order.Reason)
	answer(w, http.StatusOK, Requeued{shapeVersion, n})
}

func (s *Server) queueVerify(w http.ResponseWriter, r *http.Request) {
	report, err := s.parts.Queue.Verify(r.Context())
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error(), "")
		return
	}
	problems := slices.Concat([]string{}, report.Problems) // never null
	answer(w, http.StatusOK, VerifyResult{
		V: shapeVersion, OK: len(problems) == 0, Shelves: report.Shelves, Blocks: report.Blocks,
		Hits: report.Hits, Pending: report.Pending, Dead: report.Dead, Problems: problems,
	})
}

// readOrder reads the JSON body of a POST, strictly, and answers itself if it
// cannot.
func readOrder(w http.ResponseWriter, r *http.Request, order any) bool {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(order); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("the body is not the JSON wanted here: %v", err), "")
		return false
	}
	return true
}

// A query reads parameters and keeps the first error.
type query struct {
	values url.Values
	err    error
}

func (q *query) site() *int64 {
	text := q.values.Get("site")
	if text == "" {
		return nil
	}
	site, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		q.err = cmp.Or(q.err, errors.New("site: want a number"))
	}
	return &site
}

func (q *query) limit() int {
	text := q.values.Get("limit")
	if text == "" {
		return 0
	}
	limit, err := strconv.Atoi(text)
	if err != nil || limit < 0 {
		q.err = cmp.Or(q.err, errors.New("limit: want a number, 0 for all"))
	}
	return limit
}

func (q *query) id(name string) *hit.ID {
	text := q.values.Get(name)
	if text == "" {
		return nil
	}
	id, err := hit.ParseID(text)
	if err != nil {
		q.err = cmp.Or(q.err, fmt.Errorf("%s: %w", name, err))
	}
	return &id
}

// stream writes one JSON value a line. An error after the first line is a line of
// its own, {"error": …}, and the last one. A client that takes nothing for
// [streamStall] is cut off.
func stream(w http.ResponseWriter, lines iter.Seq2[any, error]) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	begun := false
	for line, err := range lines {
		if err != nil && !begun {
			refuse(w, http.StatusInternalServerError, err.Error(), "")
			return
		}
		if err != nil {
			_ = encoder.Encode(Problem{Error: err.Error()}) // The last line; nothing follows if it fails.
			return
		}
		begun = true
		// Recorders in tests have no deadline to set.
		if err := control.SetWriteDeadline(time.Now().Add(streamStall)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return
		}
		if err := encoder.Encode(line); err != nil {
			// A list must not end early as if it were whole.
			if _, ours := errors.AsType[*json.MarshalerError](err); ours {
				_ = encoder.Encode(Problem{Error: err.Error()}) // as above
			}
			return
		}
	}
}
