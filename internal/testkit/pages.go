package testkit

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Paths of what [Pages] shows.
const (
	LoginPath     = "/index.php?module=Login"
	HomePath      = "/index.php?module=CoreHome"
	ExportPath    = "/index.php?module=Export"
	LivePath      = "/index.php?module=Live"
	OptOutPath    = "/optout.html"
	TrackerPath   = "/matomo.js"
	ContainerPath = "/js/container_abcdefgh.js"
	PreviewPath   = "/js/container_abcdefgh_preview.js"
)

// SessionCookie and IgnoreCookie are named as Matomo's.
const (
	SessionCookie = "MATOMO_SESSID"
	IgnoreCookie  = "matomo_ignore"
)

// Reports is how many requests the home page has open at the same time.
const Reports = 4

// Pages are the fallback of a [Matomo] for a browser: what Matomo's own pages do with
// cookies, redirects, downloads, frames, sockets and streams, with texts of our own.
type Pages struct {
	seen chan string // numbers of the live page's events, as the page says that it has them

	mu       sync.Mutex
	preview  bool
	sessions map[string]bool
	asked    map[string]int // by path
	reports  int            // that wait for the others
	together chan struct{}  // closed when all of Reports wait
}

// NewPages returns pages with the preview of the container off.
func NewPages() *Pages {
	return &Pages{
		seen: make(chan string, 16), sessions: make(map[string]bool), asked: make(map[string]int), together: make(chan struct{}),
	}
}

// SetPreview turns the container's preview on or off.
func (p *Pages) SetPreview(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.preview = on
}

// Asked says how often a path was asked for in a client's name, not by Sluice itself.
func (p *Pages) Asked(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[path]
}

// ServeHTTP implements http.Handler.
func (p *Pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	if r.Header.Get("X-Forwarded-For") != "" {
		p.asked[r.URL.Path]++
	}
	preview := p.preview
	p.mu.Unlock()
	switch r.URL.Path {
	case TrackerPath:
		writeScript(w, trackerScript)
	case ContainerPath:
		writeScript(w, containerScript)
	case PreviewPath:
		if !preview {
			http.NotFound(w, r)
			return
		}
		writeScript(w, previewScript)
	case OptOutPath:
		writePage(w, optOutHost)
	case "/index.php":
		p.index(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (p *Pages) index(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch q.Get("module") {
	case "Login":
		p.login(w, r)
		return
	case "CoreAdminHome":
		optOut(w, r, q.Get("action"))
		return
	}
	cookie, err := r.Cookie(SessionCookie)
	p.mu.Lock()
	known := err == nil && p.sessions[cookie.Value]
	p.mu.Unlock()
	if !known {
		http.Redirect(w, r, absolute(r)+LoginPath, http.StatusFound)
		return
	}
	switch q.Get("module") {
	case "CoreHome":
		writePage(w, fmt.Sprintf(homePage, Reports))
	case "Report":
		p.report(w, r)
	case "Export":
		w.Header().Set("Content-Type", "application/vnd.ms-excel")
		w.Header().Set("Content-Disposition", `attachment; filename="Export _ Visits.csv"`)
		_, _ = w.Write(Export()) // the browser may be gone
	case "Live":
		p.live(w, r, q.Get("action"))
	default:
		http.NotFound(w, r)
	}
}

// absolute is the base address as the client knows it, which Matomo makes its redirects
// from.
func absolute(r *http.Request) string {
	scheme := r.Header.Get("X-Forwarded-Proto")
	if scheme == "" {
		scheme = "http"
	}
	return scheme + "://" + r.Host
}

func (p *Pages) login(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		writePage(w, loginPage)
		return
	}
	if r.FormValue("name") != "anna" || r.FormValue("password") != "p&ss=wörd" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	id := rand.Text()
	p.mu.Lock()
	p.sessions[id] = true
	p.mu.Unlock()
	http.SetCookie(w, &http.Cookie{
		Name: SessionCookie, Value: id, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	http.Redirect(w, r, absolute(r)+HomePath, http.StatusFound)
}

// report answers when all reports of a page have come.
func (p *Pages) report(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	together := p.together
	if p.reports++; p.reports == Reports {
		close(together)
		p.reports, p.together = 0, make(chan struct{})
	}
	p.mu.Unlock()
	select {
	case <-together:
	case <-r.Context().Done():
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	n, _ := strconv.Atoi(r.FormValue("n")) // 0 shows in the page
	fmt.Fprintf(w, `{"n":%d,"visits":%d}`, n, 100+n)
}

// live is the page with a stream and a socket, and these. An event follows when the
// page says that it has the one before: whoever holds events back gets the first only.
func (p *Pages) live(w http.ResponseWriter, r *http.Request, action string) {
	switch action {
	case "seen":
		select {
		case p.seen <- r.FormValue("n"):
		default: // nobody waits for it
		}
		w.WriteHeader(http.StatusNoContent)
	case "socket":
		echo(w, r)
	case "stream":
		w.Header().Set("Content-Type", "text/event-stream")
		for n := 1; n <= 3; n++ {
			fmt.Fprintf(w, "data: %d\n\n", n)
			_ = http.NewResponseController(w).Flush() // a client that is gone ends the context
			if !p.acknowledged(r.Context(), strconv.Itoa(n)) {
				return
			}
		}
		fmt.Fprint(w, "data: end\n\n")
	default:
		writePage(w, livePage)
	}
}

func (p *Pages) acknowledged(ctx context.Context, n string) bool {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		select {
		case got := <-p.seen:
			if got == n {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
}

func optOut(w http.ResponseWriter, r *http.Request, action string) {
	if action == "optOutJS" {
		writeScript(w, `document.getElementById("matomo-opt-out").textContent = "You may choose.";`)
		return
	}
	_, err := r.Cookie(IgnoreCookie)
	out := err == nil
	if r.Method == http.MethodPost {
		out = !out
		cookie := &http.Cookie{
			Name: IgnoreCookie, Value: "ignore=Kg==", Path: "/", MaxAge: 3600, Secure: true, SameSite: http.SameSiteNoneMode,
		}
		if !out {
			cookie.MaxAge = -1
		}
		http.SetCookie(w, cookie)
	}
	text := "You are counted."
	if out {
		text = "You are not counted."
	}
	writePage(w, fmt.Sprintf(optOutForm, text))
}

// Shop returns the page of a website with the tracker and the container of the Matomo
// at base, such as https://127.0.0.1:8443. It sends hits with the marks of [ShopMarks]
// for the run that its query names, and loads the preview if its query has that.
func Shop(base string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		preview := ""
		if r.FormValue("preview") != "" {
			preview = `<script src="` + base + PreviewPath + `"></script>`
		}
		writePage(w, fmt.Sprintf(shopPage, base, preview, base, base, r.FormValue("run")))
	})
}

// ShopMarks are the marks of the hits that one view of a [Shop] sends, in 4 requests.
func ShopMarks(run string) []string {
	marks := []string{"beacon", "xhr", "image", "bulk1", "bulk2"}
	for i := range marks {
		marks[i] = run + "-" + marks[i]
	}
	return marks
}

// ShopRequests is how many requests a view of a [Shop] sends its hits in.
const ShopRequests = 4

// Export is the file that [ExportPath] offers: 2 MB that compress badly.
func Export() []byte {
	var b bytes.Buffer
	b.WriteString("\xff\xfel\x00,\x00") // UTF-16, as Matomo writes for spreadsheets
	for n := uint32(1); b.Len() < 2<<20; n++ {
		fmt.Fprintf(&b, "%d,%08x\r\n", n, n*2654435761)
	}
	return b.Bytes()
}

func writeScript(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/javascript; charset=utf-8")
	_, _ = w.Write([]byte(text)) // the client may be gone
}

func writePage(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", htmlType)
	_, _ = w.Write([]byte("<!DOCTYPE html>\n<meta charset=\"utf-8\">\n" + body)) // the client may be gone
}
