package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// logImportsPath is below which imports of access logs are.
const logImportsPath = "/api/v1/imports"

// Errors of [LogImports], joined to what they are about.
var (
	// ErrImportOpen: another import is open.
	ErrImportOpen = errors.New("another import is open")
	// ErrNoImport: there is no such import, or not in that state.
	ErrNoImport = errors.New("no such import, or it is in another state")
	// ErrLate: hits are older than others of their visitors that were delivered.
	ErrLate = errors.New("hits are older than hits of their visitors that were delivered")
	// ErrLateUnknown: nobody can say now whether hits are.
	ErrLateUnknown = errors.New("it cannot be known now whether hits are late")
	// ErrImportOrder: requests are older than those that the import has.
	ErrImportOrder = errors.New("requests are older than those that the import has already")
)

// LogImports takes requests that servers have logged, each once.
type LogImports interface {
	List() []LogImport
	// Begin opens an import, or gives the one that is open, with [ErrImportOpen].
	Begin(order BeginLogImport) (LogImport, error)
	// Take judges requests, which follow each other in time, and stores the hits of those
	// that are new and of wanted sites. With dry it only tells, for no import at all.
	Take(ctx context.Context, id string, dry bool, wanted SiteRanges, requests []LoggedRequest) (LogTaken, error)
	// Complete has the hits delivered. Unless they are allowed it gives [ErrLate] with late
	// ones, and [ErrLateUnknown].
	Complete(ctx context.Context, id string, allowLate bool) (LateHits, error)
	Cancel(id string) error
	Forget(id string) error
}

// A LogImport is one import of access logs.
type LogImport struct {
	ID        string     `json:"id"`
	State     string     `json:"state"` // open, complete or drained
	Note      string     `json:"note"`
	Begun     time.Time  `json:"begun_at"`
	Completed *time.Time `json:"completed_at"`
	From      time.Time  `json:"from"` // what it covers
	To        time.Time  `json:"to"`
	Forgotten bool       `json:"forgotten"` // its lines can be imported again
	Accepted  int64      `json:"accepted"`  // hits
	Delivered int64      `json:"delivered"`
	Invalid   int64      `json:"invalid"`
	Dead      int64      `json:"dead"`
	Pending   int64      `json:"pending"`
}

// LogImportList is the answer of GET /api/v1/imports.
type LogImportList struct {
	V       int         `json:"v"`
	Imports []LogImport `json:"imports"`
}

// BeginLogImport is the body of POST /api/v1/imports.
type BeginLogImport struct {
	Note string    `json:"note"`
	From time.Time `json:"from"` // of the first request and of the last
	To   time.Time `json:"to"`
	Who  string    `json:"who"`
}

// A LoggedRequest is one of those in the body of POST /api/v1/imports/ID/requests, which
// is a stream of encoding/gob. JSON would cost half of the time of an import.
type LoggedRequest struct {
	At      int64  // Unix nanoseconds
	LineAt  int64  // Unix seconds by which the line's identity goes
	Line    []byte // the identity: 10 bytes or more, of which 10 count
	Remote  string
	Method  string
	Target  []byte
	HTTPS   bool
	Header  [][]byte // names and values in turn
	Body    []byte
	HasBody bool
}

// LogTaken is the answer: what became of requests, and of the hits in them.
type LogTaken struct {
	V        int              `json:"v"`
	Requests map[string]int64 `json:"requests"` // by verdict
	Hits     int64            `json:"hits"`     // stored
	Sites    map[string]int64 `json:"sites"`    // hits by site
	// Verdicts has one a request, in their order: taken, known (it was taken before), elsewhere
	// (it does not track), nothing (Matomo records nothing for it), refused, without_body,
	// broken, other_sites or mixed_sites.
	Verdicts []string `json:"verdicts"`
	LateHits          // of a dry run; what is on its way to Matomo is not looked at
}

// LateHits says how many hits are older than others of their visitors that Matomo has, or
// that are on their way there.
type LateHits struct {
	Late   int64  `json:"late"`    // -1: nobody can say now
	LateBy string `json:"late_by"` // visitor; or site, as long as there is no account on MySQL
}

// Add adds others up; what is not known stays so.
func (l *LateHits) Add(o LateHits) {
	l.LateBy = cmp.Or(o.LateBy, l.LateBy)
	if l.Late += o.Late; o.Late < 0 || l.Late < o.Late {
		l.Late = -1
	}
}

// CompletedLogImport is the answer of POST /api/v1/imports/ID/complete.
type CompletedLogImport struct {
	V int `json:"v"`
	LateHits
}

func (s *Server) routeLogImports(mux *http.ServeMux) {
	p := s.parts.LogImports
	if p == nil {
		return
	}
	mux.HandleFunc("GET "+logImportsPath, s.reading(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, LogImportList{shapeVersion, p.List()})
	}))
	mux.HandleFunc("POST "+logImportsPath, s.controlling(s.beginLogImport))
	mux.HandleFunc("POST "+logImportsPath+"/check", s.controlling(func(w http.ResponseWriter, r *http.Request) { s.takeLogged(w, r, "", true) }))
	mux.HandleFunc("POST "+logImportsPath+"/{id}/requests", s.controlling(func(w http.ResponseWriter, r *http.Request) { s.takeLogged(w, r, r.PathValue("id"), false) }))
	mux.HandleFunc("POST "+logImportsPath+"/{id}/complete", s.controlling(s.completeLogImport))
	mux.HandleFunc("POST "+logImportsPath+"/{id}/cancel", s.controlling(func(w http.ResponseWriter, r *http.Request) { s.endLogImport(w, r, "cancelled", p.Cancel) }))
	mux.HandleFunc("POST "+logImportsPath+"/{id}/forget", s.controlling(func(w http.ResponseWriter, r *http.Request) { s.endLogImport(w, r, "forgotten", p.Forget) }))
}

func (s *Server) beginLogImport(w http.ResponseWriter, r *http.Request) {
	var order BeginLogImport
	if !readOrder(w, r, &order) {
		return
	}
	if order.From.IsZero() || order.To.Before(order.From) {
		refuse(w, http.StatusBadRequest, "want the time that is covered: from and to", "")
		return
	}
	i, err := s.parts.LogImports.Begin(order)
	switch {
	case errors.Is(err, ErrImportOpen):
		answer(w, http.StatusConflict, i)
	case err != nil:
		refuseLogImport(w, err)
	default:
		s.log.Info("an import of access logs begins", "import", i.ID, "who", order.Who, "from", i.From, "to", i.To)
		answer(w, http.StatusCreated, i)
	}
}

// takeLogged takes lines. The parameter sites has the [SiteRanges] that are wanted.
func (s *Server) takeLogged(w http.ResponseWriter, r *http.Request, id string, dry bool) {
	wanted, err := ParseSiteRanges(r.URL.Query().Get("sites"))
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("sites: %v", err), "")
		return
	}
	var requests []LoggedRequest
	for d := gob.NewDecoder(r.Body); ; {
		var one LoggedRequest
		err := d.Decode(&one)
		if err == io.EOF {
			break
		}
		if err != nil {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("request %d: %v", len(requests)+1, err), "")
			return
		}
		requests = append(requests, one)
	}
	taken, err := s.parts.LogImports.Take(r.Context(), id, dry, wanted, requests)
	if err != nil {
		refuseLogImport(w, err)
		return
	}
	taken.V = shapeVersion
	answer(w, http.StatusOK, taken)
}

func (s *Server) completeLogImport(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	late, err := s.parts.LogImports.Complete(r.Context(), id, r.URL.Query().Get("allow_late") == "1")
	switch {
	case errors.Is(err, ErrLate):
		answer(w, http.StatusConflict, CompletedLogImport{shapeVersion, late})
	case err != nil:
		refuseLogImport(w, err)
	default:
		s.log.Info("an import of access logs is complete", "import", id, "late_hits", late.Late, "who", r.URL.Query().Get("who"))
		answer(w, http.StatusOK, CompletedLogImport{shapeVersion, late})
	}
}

func (s *Server) endLogImport(w http.ResponseWriter, r *http.Request, what string, do func(string) error) {
	id := r.PathValue("id")
	if err := do(id); err != nil {
		refuseLogImport(w, err)
		return
	}
	s.log.Info("an import of access logs is "+what, "import", id, "who", r.URL.Query().Get("who"))
	w.WriteHeader(http.StatusNoContent)
}

func refuseLogImport(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, ErrNoImport):
		refuse(w, http.StatusNotFound, err.Error(), "sluice import status")
	case errors.Is(err, ErrLateUnknown):
		refuse(w, http.StatusServiceUnavailable, err.Error(), "again when MySQL answers, or allow late hits")
	case errors.Is(err, ErrImportOrder):
		refuse(w, http.StatusConflict, err.Error(), "")
	default:
		refuse(w, http.StatusServiceUnavailable, err.Error(), "")
	}
}

// LogImports gives all imports of access logs.
func (c *Client) LogImports(ctx context.Context) (LogImportList, error) {
	var list LogImportList
	err := c.object(ctx, http.MethodGet, logImportsPath, nil, &list)
	return list, err
}

// BeginLogImport opens an import. With [ErrImportOpen] it gives the one that is open.
func (c *Client) BeginLogImport(ctx context.Context, order BeginLogImport) (i LogImport, err error) {
	err = c.conflicting(ctx, logImportsPath, order, &i, ErrImportOpen)
	return i, err
}

// TakeLogged sends requests, each a [LoggedRequest] in a stream of encoding/gob, of which
// only those of wanted sites are taken; with id "" nothing is stored.
func (c *Client) TakeLogged(ctx context.Context, id string, wanted SiteRanges, requests []byte) (taken LogTaken, err error) {
	path := logImportsPath + "/check"
	if id != "" {
		path = logImportsPath + "/" + url.PathEscape(id) + "/requests"
	}
	r, err := c.send(ctx, http.MethodPost, path+"?"+url.Values{"sites": {wanted.String()}}.Encode(), bytes.NewReader(requests))
	if err != nil {
		return taken, err
	}
	defer r.Close()
	if err := json.NewDecoder(r).Decode(&taken); err != nil {
		return taken, fmt.Errorf("read the answer: %w", err)
	}
	return taken, nil
}

// CompleteLogImport has an import delivered. With [ErrLate] nothing has changed.
func (c *Client) CompleteLogImport(ctx context.Context, id string, allowLate bool, who string) (LateHits, error) {
	q := url.Values{"who": {who}}
	if allowLate {
		q.Set("allow_late", "1")
	}
	var done CompletedLogImport
	err := c.conflicting(ctx, logImportsPath+"/"+url.PathEscape(id)+"/complete?"+q.Encode(), nil, &done, ErrLate)
	return done.LateHits, err
}

// EndLogImport cancels or forgets an import: what is "cancel" or "forget".
func (c *Client) EndLogImport(ctx context.Context, id, what, who string) error {
	r, err := c.do(ctx, http.MethodPost, logImportsPath+"/"+url.PathEscape(id)+"/"+what+"?"+url.Values{"who": {who}}.Encode(), nil)
	if err != nil {
		return err
	}
	return r.Close()
}

// conflicting posts an order whose refusal for a conflict has an answer, too.
func (c *Client) conflicting(ctx context.Context, path string, body, into any, conflict error) error {
	resp, err := c.exchange(ctx, http.MethodPost, path, body)
	if err == nil && resp.StatusCode == http.StatusConflict {
		defer resp.Body.Close()
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		return conflict
	}
	r, err := accepted(resp, err)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := json.NewDecoder(io.LimitReader(r, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}
