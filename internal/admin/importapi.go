package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
	"unicode/utf8"

	"sluice/internal/hit"
)

const importPath = "/api/v1/queue/import"

// MaxImport is the most bytes that one request of an import may have. It is more
// than the longest line that an export writes.
const MaxImport = 16 << 20

// maxFaults is how many faulty lines an answer names; all are counted.
const maxFaults = 10

// An Importer takes hits of exports.
type Importer interface {
	// Import gives what became of each hit; those that were taken are durable. With
	// an error it gives the outcomes of the hits before the one where it stopped.
	Import(ctx context.Context, hits []hit.Pending, order hit.ImportOrder) ([]hit.Imported, error)
}

// Imported is the answer of POST /api/v1/queue/import, whose body is lines of an
// export.
type Imported struct {
	V        int              `json:"v"`
	Lines    int              `json:"lines"` // from the first on, that are done with
	Taken    int64            `json:"taken"`
	Requeued int64            `json:"requeued"` // were buried here and wait again
	Skipped  map[string]int64 `json:"skipped"`  // by why
	Faulty   int64            `json:"faulty"`
	Faults   []ImportFault    `json:"faults"` // the first of the faulty lines
	// Stopped says why the lines behind those done with were not taken.
	Stopped string `json:"stopped,omitempty"`
}

// An ImportFault is a line that cannot be taken.
type ImportFault struct {
	File string `json:"file,omitempty"` // where there are several
	Line int64  `json:"line"`           // the first is 1
	Why  string `json:"why"`
}

// NewImported gives an answer that says nothing yet.
func NewImported() Imported {
	return Imported{V: shapeVersion, Skipped: map[string]int64{}, Faults: []ImportFault{}}
}

// Fault counts a faulty line.
func (i *Imported) Fault(f ImportFault) {
	if i.Faulty++; len(i.Faults) < maxFaults {
		i.Faults = append(i.Faults, f)
	}
}

// Add adds the answer about lines that follow the first of a file, counted from
// there.
func (i *Imported) Add(next Imported, file string, first int64) {
	i.Lines += next.Lines
	i.Taken += next.Taken
	i.Requeued += next.Requeued
	for why, n := range next.Skipped {
		i.Skipped[why] += n
	}
	for _, f := range next.Faults {
		i.Fault(ImportFault{file, first + f.Line - 1, f.Why})
	}
	i.Faulty += next.Faulty - int64(len(next.Faults))
	i.Stopped = next.Stopped
}

func (i *Imported) count(o hit.Imported, line int64) {
	switch {
	case o == hit.ImportTaken:
		i.Taken++
	case o == hit.ImportRequeued:
		i.Requeued++
	case o.Fault():
		i.Fault(ImportFault{Line: line, Why: o.String()})
	default:
		i.Skipped[o.String()]++
	}
}

// queueImport takes lines of an export. A request is what fits into memory: who has
// more sends one request after another, and waits for each answer.
func (s *Server) queueImport(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	order := hit.ImportOrder{Again: q.Get("again") == "1", DryRun: q.Get("dry_run") == "1"}
	done := NewImported()
	var hits []hit.Pending
	var places []int64 // lines of the hits
	var faults []ImportFault
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, MaxImport)
	n := 0
	for lines.Scan() {
		n++
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		p, err := parseExported(lines.Bytes())
		if err != nil {
			faults = append(faults, ImportFault{Line: int64(n), Why: err.Error()})
			continue
		}
		hits, places = append(hits, p), append(places, int64(n))
	}
	if err := lines.Err(); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("read the lines: %v", err), "")
		return
	}
	if q.Get("first") == "1" && !order.DryRun {
		s.log.Info("an import of hits begins", "who", q.Get("who"), "again", order.Again)
	}
	outcomes, err := s.parts.Importer.Import(r.Context(), hits, order)
	done.Lines = n
	if err != nil {
		done.Stopped = err.Error()
		done.Lines = 0
		if len(outcomes) < len(hits) {
			done.Lines = int(places[len(outcomes)]) - 1
		}
	}
	for i, o := range outcomes {
		done.count(o, places[i])
	}
	for _, f := range faults {
		if f.Line <= int64(done.Lines) {
			done.Fault(f)
		}
	}
	answer(w, http.StatusOK, done)
}

// errIncomplete: a line that shows a hit, and not all of it.
var errIncomplete = errors.New("it does not hold the whole hit: want a line of \"sluice queue export\"")

// parseExported reads a line of an export, of a waiting hit or of a buried one. What
// it does not know it refuses, since it would be lost.
func parseExported(line []byte) (hit.Pending, error) {
	if !utf8.Valid(line) {
		return hit.Pending{}, errors.New("it is not UTF-8")
	}
	var kind struct {
		Hit json.RawMessage `json:"hit"`
	}
	if err := json.Unmarshal(line, &kind); err != nil {
		return hit.Pending{}, fmt.Errorf("it is not one JSON object: %w", err)
	}
	if kind.Hit == nil {
		var h Hit
		if err := strictly(line, &h); err != nil {
			return hit.Pending{}, err
		}
		return h.pending()
	}
	var d Dead
	if err := strictly(line, &d); err != nil {
		return hit.Pending{}, err
	}
	if d.ID != d.Hit.ID {
		return hit.Pending{}, errors.New("the letter and its hit have different ids")
	}
	return d.Hit.pending()
}

func strictly(line []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}

// pending gives the hit that an export has written.
func (h *Hit) pending() (hit.Pending, error) {
	var p hit.Pending
	r := h.Request
	if r == nil || !r.Complete {
		return p, errIncomplete
	}
	id, err := hit.ParseID(h.ID)
	if err != nil {
		return p, err
	}
	if err := r.decode(); err != nil {
		return p, err
	}
	received := h.ReceivedAt.UnixNano()
	if !time.Unix(0, received).Equal(h.ReceivedAt) || h.At.IsZero() {
		return p, errors.New("received_at or at is missing, or is no time that a hit can have")
	}
	p = hit.Pending{
		ID: id, ReceivedAt: received, Hit: hit.Hit{Params: []byte(r.Params), Token: r.Token, Site: h.Site, At: h.At.Unix()},
		Environment: &hit.Environment{
			ClientIP: r.ClientIP, UserAgent: r.UserAgent, AcceptLanguage: r.AcceptLanguage, Referer: r.Referer, ClientHints: r.ClientHints,
			VisitorCookie: r.VisitorCookie, Headers: r.Headers, DoNotTrack: r.DoNotTrack, DataSaver: r.DataSaver,
		},
	}
	switch h.Form {
	case "query":
	case "object":
		p.Form = hit.Object
	default:
		return p, errors.New("form: want query or object")
	}
	switch h.Rights {
	case "ours":
	case "theirs":
		p.Rights = hit.Theirs
	default:
		return p, errors.New("rights: want ours or theirs")
	}
	switch h.State {
	case "waiting", "buried":
	case "uncertain":
		p.Uncertain = 1
	default:
		return p, errors.New("state: want waiting, uncertain or buried")
	}
	if p.Token != "" && p.Rights != hit.Theirs {
		return p, errors.New("token_auth: only a hit with rights of its own has one")
	}
	return p, nil
}

// texts is every field that may hold bytes that are not UTF-8, with the field where
// they stand then.
func (r *Request) texts() []struct{ plain, encoded *string } {
	return []struct{ plain, encoded *string }{
		{&r.Params, &r.ParamsBase64}, {&r.Token, &r.TokenBase64}, {&r.ClientIP, &r.ClientIPBase64},
		{&r.UserAgent, &r.UserAgentBase64}, {&r.AcceptLanguage, &r.AcceptLanguageBase64}, {&r.Referer, &r.RefererBase64},
		{&r.ClientHints, &r.ClientHintsBase64}, {&r.VisitorCookie, &r.VisitorCookieBase64}, {&r.Headers, &r.HeadersBase64},
	}
}

// encode moves what JSON cannot carry.
func (r *Request) encode() {
	for _, t := range r.texts() {
		if !utf8.ValidString(*t.plain) {
			*t.plain, *t.encoded = "", base64.StdEncoding.EncodeToString([]byte(*t.plain))
		}
	}
}

// decode moves it back.
func (r *Request) decode() error {
	for _, t := range r.texts() {
		if *t.encoded == "" {
			continue
		}
		text, err := base64.StdEncoding.DecodeString(*t.encoded)
		if err != nil || *t.plain != "" {
			return errors.New("a field that ends in _base64 is not base64, or its bytes stand in two fields")
		}
		*t.plain, *t.encoded = string(text), ""
	}
	return nil
}

// An ImportCall is what a [Client] says about the lines that it sends.
type ImportCall struct {
	hit.ImportOrder
	Who   string
	First bool // the first lines of an import
}

// Import sends lines of an export, at most [MaxImport] bytes, and waits until they
// are done with.
func (c *Client) Import(ctx context.Context, lines []byte, call ImportCall) (Imported, error) {
	q := url.Values{"who": {call.Who}}
	for name, on := range map[string]bool{"again": call.Again, "dry_run": call.DryRun, "first": call.First} {
		if on {
			q.Set(name, "1")
		}
	}
	done := NewImported()
	r, err := c.send(ctx, http.MethodPost, importPath+"?"+q.Encode(), bytes.NewReader(lines))
	if err != nil {
		return done, err
	}
	defer r.Close()
	if err := json.NewDecoder(io.LimitReader(r, maxAnswer)).Decode(&done); err != nil {
		return done, fmt.Errorf("read the answer: %w", err)
	}
	return done, nil
}
