package testkit

import (
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// An Exchange is one tracking request and its answer, as an [Answer] sees it.
// Its methods are called by the goroutine that runs Answer.Do only.
type Exchange struct {
	*Request

	m       *Matomo
	w       http.ResponseWriter
	r       *http.Request
	state   state
	now     time.Time
	params  Params // of URL and form
	silent  bool   // send_image=0
	super   bool   // the token is a superuser's, and accepted
	hits    []*Hit
	poisons []poison
	counted bool     // CountOnly: hits are not decoded
	marks   []string // then only these are known
	lost    error    // of the database, while the hits were recorded
	status  int
}

// Judged returns the hits as Matomo understood them, in the order of the request.
// Nothing of them is recorded yet. It is empty with CountOnly.
func (x *Exchange) Judged() []*Hit { return x.hits }

// Commit records the hits, but not those whose places are in skip, as one
// transaction. It returns how many Matomo would count as tracked and the places
// of the invalid ones.
func (x *Exchange) Commit(skip ...int) (tracked int, invalid []int) {
	if x.counted {
		marks := x.marks
		if len(skip) > 0 && len(marks) == x.Hits {
			marks = nil
			for i, mark := range x.marks {
				if !slices.Contains(skip, i) {
					marks = append(marks, mark)
				}
			}
		}
		x.m.commitMarks(x.Hits-len(skip), marks)
		return x.Hits - len(skip), []int{}
	}
	return x.commit(skip, nil, nil)
}

// commit records the hits but for the skipped ones, and of those in half the action
// alone, if there are [Rows]. Between writing and committing them it calls hold,
// which says whether to commit.
func (x *Exchange) commit(skip, half []int, hold func() bool) (tracked int, invalid []int) {
	hits, rows := make([]*Hit, 0, len(x.hits)), make([]*Hit, 0, len(x.hits))
	halves := map[*Hit]bool{}
	invalid = []int{}
	for i, h := range x.hits {
		switch {
		case slices.Contains(half, i):
			halves[h] = true
			rows = append(rows, h)
			continue
		case slices.Contains(skip, i):
			continue
		case h.Outcome == Invalid:
			invalid = append(invalid, i)
		default:
			tracked++
		}
		hits, rows = append(hits, h), append(rows, h)
	}
	committed := true
	if x.m.cfg.Rows != nil {
		x.lost = x.m.cfg.Rows.record(rows, halves, func() bool {
			committed = hold == nil || hold()
			return committed
		})
		if x.lost != nil {
			committed = false
			x.m.lostDatabase(x)
		}
	} else if hold != nil {
		committed = hold()
	}
	if committed {
		x.m.commit(hits)
	}
	return tracked, invalid
}

// Verdict sends the answer that belongs to these numbers: JSON for a bulk (an
// empty 204 if it asked for that), image or nothing for a single hit.
//
// When the database was lost while the hits were recorded, it is the answer to that.
func (x *Exchange) Verdict(tracked int, invalid []int) {
	switch {
	case errors.Is(x.lost, errUnreachable):
		x.super = false // nobody could look the token up
		x.Error(0, []int{})
		return
	case x.lost != nil && x.Bulk:
		x.Send(http.StatusOK, htmlType, databaseGone)
		return
	case x.lost != nil:
		x.Error(0, []int{})
		return
	}
	if !x.Bulk {
		x.image(http.StatusOK, len(invalid) > 0)
		return
	}
	if x.silent {
		x.w.Header().Set("Content-Type", "application/json")
		x.cors()
		x.finish(http.StatusNoContent, "", nil)
		return
	}
	x.json(http.StatusOK, "success", tracked, invalid, x.super && x.Hits > 0)
}

// Error sends what Matomo prints for an exception: JSON with 500 for a bulk, the
// uniform 400 for a single hit. It records nothing by itself.
func (x *Exchange) Error(tracked int, invalid []int) {
	if !x.Bulk {
		x.image(http.StatusOK, true)
		return
	}
	x.json(http.StatusInternalServerError, "error", tracked, invalid, x.super)
}

// Send sends any answer; kind is the Content-Type, "" for none.
func (x *Exchange) Send(status int, kind, body string) {
	x.finish(status, kind, []byte(body))
}

// Header is the answer's header, for an answer that needs more than Send gives;
// the request's is x.Request.Header.
func (x *Exchange) Header() http.Header { return x.w.Header() }

// Hang sends nothing until the client goes away or the fake is closed.
func (x *Exchange) Hang() {
	select {
	case <-x.r.Context().Done():
	case <-x.m.closed:
	}
	x.Reset()
}

// Reset ends the connection without an answer; over HTTP/1 by a TCP reset. It
// does not return.
func (x *Exchange) Reset() {
	if conn, _, err := http.NewResponseController(x.w).Hijack(); err == nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // without it the client sees an orderly end, as good a loss
		}
		_ = conn.Close() // the client is to see a loss either way
	}
	panic(http.ErrAbortHandler)
}

// work lets time pass as PHP does: whether the client is still there or not.
func (x *Exchange) work(d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-x.m.closed:
	}
}

// honest does what Matomo does.
func (x *Exchange) honest() {
	st := &x.state
	switch {
	case x.state.bodyLimit > 0 && int64(x.Bytes) > st.bodyLimit:
		x.html(http.StatusRequestEntityTooLarge)
	case st.paused:
		x.paused()
	case st.queued && x.params.String("queuedtracking") != "0":
		x.Commit()
		x.image(http.StatusOK, false)
	case x.Hits == 0:
		x.nothing()
	case st.database == DatabaseDown && !x.Bulk && x.Probe:
		// A warm cache knows the site, and an excluded hit needs no more.
		x.image(http.StatusOK, false)
	case st.database == DatabaseDown, x.Bulk && x.blocked():
		x.super = false // nobody could look the token up
		x.Error(0, []int{})
	case x.Bulk && x.m.cfg.RequireAuth && !x.allTrusted():
	default:
		x.process()
	}
}

// allTrusted answers for itself when it returns false: with
// bulk_requests_require_authentication one hit without rights refuses all.
func (x *Exchange) allTrusted() bool {
	for _, h := range x.hits {
		if h.Token != "" && x.m.sites[h.Site].ID == 0 {
			x.json(http.StatusBadRequest, "error", 0, []int{}, false)
			return false
		}
		if !h.Trusted {
			x.json(http.StatusInternalServerError, "error", 0, []int{}, false)
			return false
		}
	}
	return true
}

// process records the hits up to the first that kills the request.
func (x *Exchange) process() {
	tracked := 0
	for i, h := range x.hits {
		kind := x.poisons[i]
		if h.Outcome == Recorded {
			if p := x.m.poisonOf(h); p != harmless {
				kind = p
			}
			if x.state.database == DatabaseReadOnly {
				kind = failing
			}
		}
		if kind == harmless {
			if h.Outcome != Invalid {
				tracked++
			}
			continue
		}
		if x.m.cfg.NoTransactions {
			rest := make([]int, len(x.hits)-i)
			for j := range rest {
				rest[j] = i + j
			}
			x.commit(rest, nil, nil)
		}
		if kind == fatal {
			x.Send(http.StatusInternalServerError, htmlType, "")
			return
		}
		// What was found invalid so far is forgotten when the exception leaves the
		// loop: the answer says 0.
		x.Error(tracked, []int{})
		return
	}
	x.Verdict(x.Commit())
}

func (x *Exchange) blocked() bool { return x.state.blocked && x.Token != "" }

// paused answers with recording off. Nothing is looked at.
func (x *Exchange) paused() {
	if !x.Bulk {
		x.image(http.StatusServiceUnavailable, false)
		return
	}
	if x.silent {
		x.Verdict(0, nil)
		return
	}
	x.json(http.StatusOK, "success", 0, []int{}, false)
}

// nothing answers a request without hits.
func (x *Exchange) nothing() {
	if x.Bulk {
		x.Verdict(0, []int{})
		return
	}
	status := http.StatusOK
	if x.r.Method != http.MethodGet {
		status = http.StatusBadRequest
	}
	x.cors()
	x.finish(status, htmlType, x.m.cfg.InfoPage)
}

// image answers a single hit. A failed one gets 400, and the information page
// after the image, because Matomo prints both.
func (x *Exchange) image(status int, failed bool) {
	x.cors()
	if x.Method == http.MethodGet {
		x.w.Header().Set("Cache-Control", "no-store")
	}
	single := !x.Bulk && x.params["send_image"] == "0"
	switch {
	case failed && single:
		x.finish(http.StatusBadRequest, htmlType, x.m.cfg.InfoPage)
	case failed:
		x.finish(http.StatusBadRequest, "image/gif", append([]byte(gif), x.m.cfg.InfoPage...))
	case single:
		x.finish(http.StatusNoContent, htmlType, nil)
	default:
		x.finish(status, "image/gif", []byte(gif))
	}
}

func (x *Exchange) json(status int, word string, tracked int, invalid []int, indices bool) {
	b := []byte(`{"status":"` + word + `","tracked":`)
	b = strconv.AppendInt(b, int64(tracked), 10)
	b = append(b, `,"invalid":`...)
	b = strconv.AppendInt(b, int64(len(invalid)), 10)
	if indices {
		b = append(append(b, `,"invalid_indices":`...), jsonText(invalid)...)
	}
	x.cors()
	x.finish(status, "application/json", append(b, '}'))
}

// html sends a web server's own error page.
func (x *Exchange) html(status int) {
	text := strconv.Itoa(status) + " " + http.StatusText(status)
	x.finish(status, "text/html", []byte("<html><head><title>"+text+"</title></head><body><h1>"+text+"</h1></body></html>\n"))
}

func (x *Exchange) cors() {
	if x.Method == http.MethodGet {
		return
	}
	origin := x.r.Header.Get("Origin")
	if origin == "" {
		origin = "*"
	}
	x.w.Header().Set("Access-Control-Allow-Origin", origin)
	x.w.Header().Set("Access-Control-Allow-Credentials", "true")
}

func (x *Exchange) finish(status int, kind string, body []byte) {
	if kind != "" {
		x.w.Header().Set("Content-Type", kind)
	}
	x.status = status
	x.w.WriteHeader(status)
	_, _ = x.w.Write(body) // a client that went away is its own business
}
