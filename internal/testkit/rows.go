package testkit

import (
	"crypto/md5"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"html"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // the driver
)

// Rows keep what a fake Matomo commits in the tables of [MariaDB.CreateMatomo],
// in Matomo's order of statements and one transaction a request. They hold what can
// be looked up: visits are found by visitor id, else by address and browser, within
// half an hour; goals count once a visit; names are escaped and cut.
type Rows struct {
	tb     testing.TB
	db     *sql.DB
	prefix string
	mu     sync.Mutex // one transaction at a time, so that no lock is waited for
}

// OpenRows connects to tables that exist. They must be given to one fake only, as
// MatomoConfig.Rows.
func OpenRows(tb testing.TB, server *MariaDB, database, prefix string) *Rows {
	tb.Helper()
	db, err := sql.Open("mysql", server.DSN("root", "", database)+"?parseTime=true")
	if err != nil {
		tb.Fatalf("connect to MariaDB: %v", err)
	}
	tb.Cleanup(func() { db.Close() }) // nothing is open then
	return &Rows{tb: tb, db: db, prefix: prefix}
}

// visitLength is visit_standard_length.
const visitLength = 30 * time.Minute

// errUnreachable: not even a transaction could be begun.
var errUnreachable = errors.New("the database does not answer")

// record writes hits in one transaction, and of those in half the action only.
// hold is called with everything written and nothing committed; it says whether to
// commit. After an error nothing is recorded, but for one of the commit itself.
func (r *Rows) record(hits []*Hit, half map[*Hit]bool, hold func() bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	tx, err := r.db.Begin()
	if err != nil {
		return fmt.Errorf("record hits: %w: %w", errUnreachable, err)
	}
	for _, h := range hits {
		if h.Outcome == Recorded && err == nil {
			w := &rowWriter{tx: tx, prefix: r.prefix, h: h, half: half[h]}
			w.hit()
			err = w.err
		}
	}
	if err != nil || hold != nil && !hold() {
		err = errors.Join(err, tx.Rollback())
	} else {
		err = tx.Commit()
	}
	if err != nil {
		return fmt.Errorf("record hits: %w", err)
	}
	return nil
}

// A rowWriter writes one hit. After the first error it does nothing.
type rowWriter struct {
	tx     *sql.Tx
	prefix string
	h      *Hit
	half   bool // the wait for the lock on the visit's row times out
	err    error

	visit        int64 // 0 = none
	visitor      []byte
	interactions int64
	isNew        bool
}

func (w *rowWriter) exec(text string, args ...any) (last int64) {
	if w.err != nil {
		return 0
	}
	result, err := w.tx.Exec(strings.ReplaceAll(text, "{", "`"+w.prefix), args...)
	if err == nil {
		last, err = result.LastInsertId()
	}
	w.err = err
	return last
}

// one reads one row; false when there is none.
func (w *rowWriter) one(into []any, text string, args ...any) bool {
	if w.err != nil {
		return false
	}
	err := w.tx.QueryRow(strings.ReplaceAll(text, "{", "`"+w.prefix), args...).Scan(into...)
	if errors.Is(err, sql.ErrNoRows) {
		return false
	}
	w.err = err
	return err == nil
}

func (w *rowWriter) time() time.Time { return time.Unix(w.h.Time, 0).UTC() }

func (w *rowWriter) config() []byte {
	sum := md5.Sum([]byte(w.h.IP + " " + w.h.UserAgent + " " + w.h.Language))
	return sum[:8]
}

func (w *rowWriter) hit() {
	p := w.h.Params
	goal := p.Int("idgoal", -1)
	ping := p.Int("ping", 0) == 1
	action := !ping && goal < 0
	known := w.find()
	if w.half && w.isNew || ping && w.isNew {
		return
	}
	class := classOf(p)
	counts := action && (class == "page" || class == "search")
	if w.isNew {
		w.create(known, action, class, counts)
	}
	if action {
		w.action(class, counts)
	}
	if !w.isNew {
		if w.half {
			return
		}
		w.update(ping, action, class, counts)
	}
	if !ping && goal >= 0 {
		w.convert(goal)
	}
}

// find looks the visitor up as Matomo does; it reports whether he is known.
func (w *rowWriter) find() (known bool) {
	w.isNew = true
	var last time.Time
	into := []any{&w.visit, &w.visitor, &last, &w.interactions}
	const columns = "SELECT idvisit, idvisitor, visit_last_action_time, visit_total_interactions FROM {log_visit` WHERE idsite=? AND "
	id, _ := hex.DecodeString(w.h.Visitor) // 16 digits or none
	until := w.time().Add(visitLength)
	if len(id) > 0 {
		known = w.one(into, columns+"idvisitor=? AND visit_last_action_time<=? ORDER BY visit_last_action_time DESC LIMIT 1", w.h.Site, id, until)
	}
	if !known {
		known = w.one(into, columns+"config_id=? AND visit_last_action_time BETWEEN ? AND ? ORDER BY visit_last_action_time DESC LIMIT 1",
			w.h.Site, w.config(), w.time().Add(-visitLength), until)
	}
	w.isNew = !known || !last.After(w.time().Add(-visitLength)) || w.h.Params.Int("new_visit", 0) != 0
	switch {
	case len(id) > 0 && (!known || !w.isNew):
		w.visitor = id
	case !known:
		sum := md5.Sum(strconv.AppendInt(w.config(), time.Now().UnixNano(), 10))
		w.visitor = sum[:8]
	}
	return known
}

func (w *rowWriter) create(_ bool, action bool, class string, counts bool) {
	w.visit = w.exec("INSERT INTO {log_visit` (idsite, idvisitor, config_id, location_ip, visit_first_action_time, visit_last_action_time, visit_total_actions, visit_total_interactions, visit_total_events) VALUES (?,?,?,'',?,?,?,?,?)",
		w.h.Site, w.visitor, w.config(), w.time(), w.time(), action && class != "content", counts, class == "event")
	w.interactions = 0
}

func (w *rowWriter) update(ping, action bool, class string, counts bool) {
	if ping {
		w.exec("UPDATE {log_visit` SET visit_total_time=TIMESTAMPDIFF(SECOND, visit_first_action_time, ?)+1 WHERE idvisit=?", w.time(), w.visit)
		return
	}
	w.exec("UPDATE {log_visit` SET idvisitor=?, visit_last_action_time=GREATEST(visit_last_action_time, ?), visit_total_time=TIMESTAMPDIFF(SECOND, visit_first_action_time, ?)+1, visit_total_actions=visit_total_actions+?, visit_total_interactions=visit_total_interactions+?, visit_total_events=visit_total_events+? WHERE idvisit=?",
		w.visitor, w.time(), w.time(), action && class != "content", counts, class == "event", w.visit)
}

// classOf gives the kind of an action, by Matomo's priorities.
func classOf(p Params) string {
	switch {
	case !isEmpty(p.String("download")):
		return "download"
	case !isEmpty(p.String("link")):
		return "link"
	case p.String("e_c") != "" && p.String("e_a") != "":
		return "event"
	case !isEmpty(p.String("c_n")):
		return "content"
	case !isEmpty(p.String("search")):
		return "search"
	}
	return "page"
}

// Types of names in log_action.
const (
	nameURL = 1 + iota
	nameLink
	nameDownload
	nameTitle
	nameSearch = 8

	nameEventCategory = 10
	nameEventAction   = 11
	nameEventName     = 12
	nameContent       = 13
	namePiece         = 14
)

func (w *rowWriter) action(class string, counts bool) {
	p := w.h.Params
	var page, title, category, act, content, piece any
	var value any
	switch class {
	case "page":
		page, title = w.name(normalURL(w.h.URL), nameURL), w.name(clean(p.String("action_name")), nameTitle)
	case "search":
		title = w.name(clean(p.String("search")), nameSearch)
	case "download":
		page = w.name(p.String("download"), nameDownload)
	case "link":
		page = w.name(p.String("link"), nameLink)
	case "event":
		page, title = w.name(normalURL(w.h.URL), nameEventCategory), w.name(clean(p.String("e_n")), nameEventName)
		category, act = w.name(clean(p.String("e_c")), nameEventCategory), w.name(clean(p.String("e_a")), nameEventAction)
		if v, err := strconv.ParseFloat(p.String("e_v"), 64); err == nil {
			value = v
		}
	case "content":
		page, content, piece = w.name(normalURL(w.h.URL), nameContent), w.name(clean(p.String("c_n")), nameContent), w.name(clean(p.String("c_p")), namePiece)
	}
	place := any(w.interactions)
	if counts {
		place = w.interactions + 1
	} else if w.interactions == 0 {
		place = nil
	}
	pv := clean(p.String("pv_id"))
	w.exec("INSERT INTO {log_link_visit_action` (idsite, idvisitor, idvisit, server_time, idpageview, pageview_position, idaction_url, idaction_name, idaction_event_category, idaction_event_action, idaction_content_name, idaction_content_piece, custom_float) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
		w.h.Site, w.visitor, w.visit, w.time(), pv[:min(len(pv), 6)], place, page, title, category, act, content, piece, value)
}

// name gives the number of a name, and makes it when it is not there.
func (w *rowWriter) name(text string, kind int) any {
	text = strings.ToValidUTF8(text[:min(len(text), 1024)], "")
	if text == "" {
		return 0
	}
	hash := crc32.ChecksumIEEE([]byte(text))
	var id int64
	if w.one([]any{&id}, "SELECT idaction FROM {log_action` WHERE type=? AND hash=? AND name=? ORDER BY idaction LIMIT 1", kind, hash, text) {
		return id
	}
	return w.exec("INSERT INTO {log_action` (name, hash, type) VALUES (?,?,?)", text, hash, kind)
}

func (w *rowWriter) convert(goal int64) {
	order := w.h.Params.String("ec_id")
	const insert = "INSERT IGNORE INTO {log_conversion` (idvisit, idsite, idvisitor, server_time, idgoal, buster, idorder) VALUES (?,?,?,?,?,?,?)"
	switch {
	case goal > 0:
		w.exec(insert, w.visit, w.h.Site, w.visitor, w.time(), goal, 0, nil)
	case isEmpty(order):
		w.exec(insert+" ON DUPLICATE KEY UPDATE server_time=VALUES(server_time)", w.visit, w.h.Site, w.visitor, w.time(), -1, 0, nil)
	default:
		w.exec(insert, w.visit, w.h.Site, w.visitor, w.time(), 0, crc32.ChecksumIEEE([]byte(order)), order)
	}
}

// clean escapes and trims as Matomo stores titles.
func clean(s string) string {
	if strings.ToValidUTF8(s, "") != s { // Matomo takes it for Latin-1
		var b strings.Builder
		for i := range len(s) {
			b.WriteRune(rune(s[i]))
		}
		s = b.String()
	}
	return strings.NewReplacer("\n", "", "\r", "", "\x00", "").Replace(strings.TrimSpace(html.EscapeString(s)))
}

// normalURL is a page's URL without scheme, fragment and campaign parameters.
func normalURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return ""
	}
	q := u.Query()
	for name := range q {
		if strings.HasPrefix(name, "utm_") {
			q.Del(name)
		}
	}
	u.Scheme, u.Fragment, u.RawQuery = "", "", q.Encode()
	return strings.TrimPrefix(strings.TrimPrefix(u.String(), "//"), "www.")
}
