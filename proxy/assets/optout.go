package assets

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// How answers are remembered.
const (
	maxRemembered = 1000
	// maxRememberedBytes bounds one answer; opt-out forms have a few KiB.
	maxRememberedBytes = 256 << 10
	// maxRememberedSum bounds all of them together.
	maxRememberedSum = 32 << 20
	maxQuery         = 4 << 10
	// answerTime is how long Matomo has when there is something to answer without it.
	answerTime = 5 * time.Second
	// keepEvery is how often an answer that does not change is written to the disk, so
	// that its age there means something.
	keepEvery = 10 * time.Minute
)

// A remembrance says what may be kept of the answers to a request, to be given when
// Matomo fails.
type remembrance uint8

const (
	forgotten remembrance = iota
	// onDisk is the script of the opt-out, which is the same for all visitors.
	onDisk
	// inMemory is the configuration of heat maps: its query names the visitor's page,
	// which must not be kept on a disk.
	inMemory
	// never is the opt-out's page: it holds a nonce.
	never
)

// remembers says what a URL asks for. Parameters may stand in any order.
func remembers(u *url.URL) remembrance {
	const heatMaps = "/plugins/HeatmapSessionRecording/configs.php"
	if u.RawPath != "" || len(u.RawQuery) > maxQuery || len(u.Path) > maxPath || !canonical(u.Path) {
		return forgotten
	}
	if strings.HasSuffix(u.Path, heatMaps) {
		return inMemory
	}
	dir, name := u.Path[:strings.LastIndexByte(u.Path, '/')+1], u.Path[strings.LastIndexByte(u.Path, '/')+1:]
	if name != "" && name != "index.php" || name == "" && !strings.Contains(u.RawQuery, "optOut") || strings.HasSuffix(dir, "/js/") {
		return forgotten
	}
	module, ok := only(u.RawQuery, "module")
	if !ok || module != "CoreAdminHome" {
		return forgotten
	}
	switch action, _ := only(u.RawQuery, "action"); action {
	case "optOutJS":
		return onDisk
	case "optOut":
		return never
	}
	return forgotten
}

// canonical tells a path that every server reads in the same way.
func canonical(p string) bool {
	if p == "" || p[0] != '/' {
		return false
	}
	for i := 1; i < len(p); i++ {
		if p[i] != '/' && !plainByte(p[i]) || p[i-1] == '/' && (p[i] == '/' || p[i] == '.') {
			return false
		}
	}
	return true
}

// only gives the value of a parameter that stands exactly once and in plain letters.
func only(query, name string) (value string, ok bool) {
	for pair := range strings.SplitSeq(query, "&") {
		key, v, _ := strings.Cut(pair, "=")
		if strings.ContainsAny(key, "%+[") {
			// PHP could read it as the name: nobody writes it like that by chance.
			if plain, err := url.QueryUnescape(key); err != nil || strings.HasPrefix(strings.TrimSpace(plain), name) {
				return "", false
			}
		}
		if key != name {
			continue
		}
		if ok {
			return "", false
		}
		value, ok = v, true
	}
	return value, ok
}

// A memory holds answers that Matomo gave, by query and language, to give them again
// while it fails.
type memory struct {
	c *Cache

	mu    sync.Mutex
	order *list.List // of *recollection, the last used first
	byKey map[string]*list.Element
	sum   int64
}

// A recollection is one answer.
type recollection struct {
	key   string
	meta  meta
	body  []byte
	disk  bool
	saved time.Time
}

func newMemory(c *Cache) *memory {
	return &memory{c: c, order: list.New(), byKey: make(map[string]*list.Element)}
}

// serve asks Matomo and remembers what it says. When Matomo fails it gives what it
// said last.
func (m *memory) serve(w http.ResponseWriter, r *http.Request, next http.Handler, what remembrance) {
	if what == never || r.Method != http.MethodGet || r.Header["Range"] != nil {
		m.c.metrics.asIsOut.Inc()
		next.ServeHTTP(w, r)
		return
	}
	language := languageOf(r)
	key := r.URL.Path + "?" + r.URL.RawQuery + " " + language
	known := m.recall(key)
	ctx := r.Context()
	if known != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answerTime)
		defer cancel()
	}
	kept := &keeper{client: w, header: make(http.Header), limit: maxRememberedBytes, hold: known != nil}
	// An answer is kept as it is, so that it is good for every client.
	asked := r.Clone(ctx)
	asked.Header["Accept-Encoding"] = []string{"identity"}
	asked.Header.Del("If-None-Match")
	asked.Header.Del("If-Modified-Since")
	failed := kept.run(next, asked)
	switch {
	case kept.passed:
		m.c.metrics.asIsOut.Inc()
	case failed && known != nil && r.Context().Err() == nil:
		m.c.metrics.recalled.Inc()
		known.write(w, m.c.now())
	default:
		if !failed && memorable(r, kept) {
			m.remember(key, &recollection{
				key: key, body: kept.body.Bytes(), disk: what == onDisk,
				meta: meta{Path: key, Mime: kept.header.Get("Content-Type"), CacheControl: kept.header.Get("Cache-Control"), Language: language, Fetched: m.c.now().UnixNano()},
			})
			m.c.metrics.remembered.Inc()
		} else {
			m.c.metrics.asIsOut.Inc()
		}
		kept.flush()
	}
}

// languageOf gives what of a request decides the language of its answer: nothing when
// the query names one.
func languageOf(r *http.Request) string {
	if language, ok := only(r.URL.RawQuery, "language"); ok && language != "auto" && language != "" {
		return ""
	}
	const longest = 100
	accepted := strings.ToLower(strings.ReplaceAll(joined(r.Header["Accept-Language"]), " ", ""))
	return accepted[:min(len(accepted), longest)]
}

// memorable says whether an answer is good for every visitor: JavaScript, without
// cookies on either side, and whole.
func memorable(r *http.Request, k *keeper) bool {
	if k.status != http.StatusOK || r.Header["Cookie"] != nil || r.Header["Authorization"] != nil || k.header["Set-Cookie"] != nil {
		return false
	}
	if vary := strings.ToLower(joined(k.header["Vary"])); strings.Contains(vary, "cookie") || strings.Contains(vary, "*") {
		return false
	}
	mime := strings.ToLower(k.header.Get("Content-Type"))
	if !strings.HasPrefix(mime, "application/javascript") && !strings.HasPrefix(mime, "text/javascript") && !strings.HasPrefix(mime, "application/x-javascript") {
		return false
	}
	return k.header.Get("Content-Encoding") == "" && len(kept(mime)) > 0 && check(plugin, "", mime, k.body.Bytes()) == ""
}

// recall gives the answer of a key, nil when there is none.
func (m *memory) recall(key string) *recollection {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.byKey[key]
	if e == nil {
		return nil
	}
	m.order.MoveToFront(e)
	return e.Value.(*recollection)
}

// remember keeps an answer, and on the disk if it has changed or was written long
// ago.
func (m *memory) remember(key string, n *recollection) {
	now := m.c.now()
	m.mu.Lock()
	write := n.disk
	if e := m.byKey[key]; e != nil {
		old := e.Value.(*recollection)
		m.sum -= int64(len(old.body))
		n.saved = old.saved
		write = write && (!bytes.Equal(old.body, n.body) || now.Sub(old.saved) >= keepEvery)
		m.order.Remove(e)
	}
	if write {
		n.saved = now
	}
	m.byKey[key] = m.order.PushFront(n)
	m.sum += int64(len(n.body))
	var gone []*recollection
	for m.order.Len() > maxRemembered || m.sum > maxRememberedSum {
		e := m.order.Back()
		old := m.order.Remove(e).(*recollection)
		delete(m.byKey, old.key)
		m.sum -= int64(len(old.body))
		gone = append(gone, old)
	}
	m.mu.Unlock()
	if write {
		if err := m.c.disk.put(n.meta, rememberRole, n.body); err != nil {
			m.c.diskFailed(err)
		}
	}
	for _, old := range gone {
		if !old.disk {
			continue
		}
		if err := m.c.disk.remove(old.key, rememberRole); err != nil {
			m.c.diskFailed(err)
		}
	}
}

// restore takes an answer from the disk.
func (m *memory) restore(s storedCopy) {
	if m.order.Len() >= maxRemembered || len(s.body) > maxRememberedBytes || m.sum+int64(len(s.body)) > maxRememberedSum {
		return
	}
	m.byKey[s.meta.Path] = m.order.PushBack(&recollection{key: s.meta.Path, meta: s.meta, body: s.body, disk: true, saved: s.checked})
	m.sum += int64(len(s.body))
}

// write gives the answer again. It must not be kept by anybody, since it is a
// makeshift.
func (n *recollection) write(w http.ResponseWriter, now time.Time) {
	h := w.Header()
	h.Set("Content-Type", n.meta.Mime)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(staleHeader, seconds(now.Sub(time.Unix(0, n.meta.Fetched))))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(n.body) // the client may be gone
}

// A keeper is the response writer that holds an answer back until it is known to be
// whole. One that cannot be kept goes to the client as it comes.
type keeper struct {
	client http.ResponseWriter
	header http.Header
	limit  int
	hold   bool // an answer that says Matomo fails is held back, too

	status int
	body   bytes.Buffer
	passed bool // the client has got the head
}

// run has the answer made, and says whether Matomo failed to give one.
func (k *keeper) run(next http.Handler, r *http.Request) (failed bool) {
	defer func() {
		fault := recover()
		if fault == nil {
			return
		}
		// The reverse proxy gives up like this when Matomo's answer breaks off.
		if err, ok := fault.(error); !ok || !errors.Is(err, http.ErrAbortHandler) || k.passed || !k.hold {
			panic(fault)
		}
		failed = true
	}()
	next.ServeHTTP(k, r)
	return k.status >= http.StatusInternalServerError
}

// Header is part of [http.ResponseWriter].
func (k *keeper) Header() http.Header {
	if k.passed {
		return k.client.Header()
	}
	return k.header
}

// WriteHeader is part of [http.ResponseWriter].
func (k *keeper) WriteHeader(status int) {
	if k.status != 0 || status < http.StatusOK {
		return // hints on the way are of no use here
	}
	k.status = status
	if status != http.StatusOK && !(k.hold && status >= http.StatusInternalServerError) {
		k.pass()
	}
}

// Write is part of [http.ResponseWriter].
func (k *keeper) Write(b []byte) (int, error) {
	k.WriteHeader(http.StatusOK)
	if !k.passed && k.body.Len()+len(b) > k.limit {
		k.flush()
	}
	if k.passed {
		return k.client.Write(b)
	}
	return k.body.Write(b)
}

// pass gives the client the head.
func (k *keeper) pass() {
	to := k.client.Header()
	for name, values := range k.header {
		to[name] = values
	}
	k.passed = true
	k.client.WriteHeader(k.status)
}

// flush gives the client what was held back, unless that was done.
func (k *keeper) flush() {
	if k.passed {
		return
	}
	if k.status == 0 {
		k.status = http.StatusOK
	}
	k.pass()
	_, _ = k.client.Write(k.body.Bytes()) // the client may be gone
}

// Flush sends the client what it is to have already. An answer that is held back
// stays held back.
func (k *keeper) Flush() {
	if k.passed {
		_ = http.NewResponseController(k.client).Flush() // a client that is gone shows itself at the next write
	}
}
