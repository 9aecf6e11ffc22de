package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"sluice/internal/testkit"
)

// TestInABrowser looks at Matomo, and at a website that is counted, through Sluice with
// a real browser.
func TestInABrowser(t *testing.T) {
	b := startBrowser(t)
	site := startSite(t)
	t.Run("Matomo's pages work", func(t *testing.T) { browsePages(t, b, site) })
	t.Run("an export is downloaded whole", func(t *testing.T) { browseExport(t, b, site) })
	t.Run("a socket and a stream work", func(t *testing.T) { browseLive(t, b, site) })
	t.Run("the opt-out works in its frame", func(t *testing.T) { browseOptOut(t, b, site) })
	t.Run("the container is a copy and its preview is not", func(t *testing.T) { browseContainer(t, b, site) })
	t.Run("hits are counted also while Matomo is down", func(t *testing.T) { browseOutage(t, b, site) })
	t.Run("only tracking is exposed", func(t *testing.T) {
		site := startSite(t, "--proxy.expose=tracking-only")
		p := b.tab(t)
		if status := p.open(site.edge.public + testkit.HomePath); status != http.StatusNotFound {
			t.Errorf("a page of Matomo is answered %d, want 404", status)
		}
		site.view(p, "exposed", "")
		site.delivered(t)
	})
}

func browsePages(t *testing.T, b *chromium, site *site) {
	p := b.tab(t)
	// Who has not signed in is sent to the form.
	p.open(site.edge.public + testkit.HomePath)
	p.waitFor(`location.href`, site.edge.public+testkit.LoginPath)
	p.do("sign in", chromedp.SetValue(chromedp.CSS("[name=name]"), "anna"), chromedp.SetValue(chromedp.CSS("[name=password]"), "p&ss=wörd"))
	if status := p.load(chromedp.Click(chromedp.CSS("button"))); status != http.StatusOK {
		t.Fatalf("the sign-in is answered %d", status)
	}
	p.waitFor(`location.href`, site.edge.public+testkit.HomePath)
	cookies := p.cookies()
	i := slices.IndexFunc(cookies, func(c *network.Cookie) bool { return c.Name == testkit.SessionCookie })
	if i < 0 || !cookies[i].Secure || !cookies[i].HTTPOnly || cookies[i].SameSite != network.CookieSameSiteLax || cookies[i].Path != "/" {
		t.Errorf("the browser has the cookies %+v", cookies)
	}
	p.waitFor(`document.querySelectorAll("li").length`, testkit.Reports)
	p.waitFor(`Array.from(document.querySelectorAll("li"), li => li.textContent).sort().join()`, "1: 101,2: 102,3: 103,4: 104")
}

// signIn gives the tab a session.
func (p *tab) signIn(site *site) {
	p.t.Helper()
	p.open(site.edge.public + testkit.LoginPath)
	p.do("sign in", chromedp.SetValue(chromedp.CSS("[name=name]"), "anna"), chromedp.SetValue(chromedp.CSS("[name=password]"), "p&ss=wörd"))
	p.load(chromedp.Click(chromedp.CSS("button")))
	p.waitFor(`document.title`, "Home")
}

func browseExport(t *testing.T, b *chromium, site *site) {
	p := b.tab(t)
	p.signIn(site)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(p.ctx, browserWait)
	defer cancel()
	yes := true
	if _, err := chromedp.CallBrowser(ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllowAndName, BrowserContextID: chromedp.FromContext(p.ctx).BrowserContextID,
		DownloadPath: dir, EventsEnabled: &yes,
	}); err != nil {
		t.Fatal(err)
	}
	events := make(chan any, 1000)
	if err := chromedp.ListenBrowser(ctx, func(ev any) {
		switch ev.(type) {
		case *browser.EventDownloadWillBegin, *browser.EventDownloadProgress:
			select {
			case events <- ev:
			default:
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	p.do("export", chromedp.Click(chromedp.CSS("#export")))
	for {
		select {
		case ev := <-events:
			switch ev := ev.(type) {
			case *browser.EventDownloadWillBegin:
				if ev.SuggestedFilename != "Export _ Visits.csv" {
					t.Errorf("the file is named %q", ev.SuggestedFilename)
				}
			case *browser.EventDownloadProgress:
				if ev.State == browser.DownloadProgressStateInProgress {
					continue
				}
				got, err := os.ReadFile(filepath.Join(dir, ev.GUID))
				if err != nil || !bytes.Equal(got, testkit.Export()) {
					t.Errorf("the download is %s with %d bytes, want %d: %v", ev.State, len(got), len(testkit.Export()), err)
				}
				return
			}
		case <-ctx.Done():
			t.Fatal("the download does not end")
		}
	}
}

func browseLive(t *testing.T, b *chromium, site *site) {
	p := b.tab(t)
	p.signIn(site)
	p.open(site.edge.public + testkit.LivePath)
	p.waitFor(`document.getElementById("socket").textContent`, "grüße;again;1000 clean")
	p.waitFor(`document.getElementById("events").textContent`, "1;2;3;end;")
}

func browseOptOut(t *testing.T, b *chromium, site *site) {
	p := b.tab(t)
	p.open(site.edge.public + testkit.OptOutPath)
	p.waitFor(`document.getElementById("matomo-opt-out").textContent`, "You may choose.")
	const told = `document.querySelector("iframe").contentDocument.querySelector("p")?.textContent`
	p.waitFor(told, "You are counted.")
	p.do("opt out", chromedp.Steps(func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := chromedp.Evaluate[bool](`document.querySelector("iframe").contentDocument.querySelector("button").click(), true`)(ctx, target)
		return chromedp.Void{}, err
	}))
	p.waitFor(told, "You are not counted.")
	cookies := p.cookies()
	if len(cookies) != 1 || cookies[0].Name != testkit.IgnoreCookie || !cookies[0].Secure || cookies[0].SameSite != network.CookieSameSiteNone {
		t.Errorf("the browser has the cookies %+v", cookies)
	}
	p.open(site.edge.public + testkit.OptOutPath)
	p.waitFor(told, "You are not counted.")
}

func browseContainer(t *testing.T, b *chromium, site *site) {
	p := b.tab(t)
	const shown = `window.MatomoTagManager?.container`
	site.pages.SetPreview(true)
	before := site.pages.Asked(testkit.PreviewPath)
	for _, run := range []string{"preview1", "preview2"} {
		site.view(p, run, "preview=1")
		p.waitFor(shown, "preview")
	}
	if n := site.pages.Asked(testkit.PreviewPath) - before; n != 2 {
		t.Errorf("Matomo is asked for the preview %d times in 2 views", n)
	}
	site.pages.SetPreview(false)
	site.view(p, "published", "preview=1")
	p.waitFor(shown, "abcdefgh")
	if status := p.open(site.edge.public + testkit.PreviewPath); status != http.StatusNotFound {
		t.Errorf("the preview that is off is answered %d, want 404", status)
	}
	if n := site.pages.Asked(testkit.ContainerPath) + site.pages.Asked(testkit.TrackerPath); n != 0 {
		t.Errorf("%d requests for files that Sluice has copies of are passed to Matomo", n)
	}
}

func browseOutage(t *testing.T, b *chromium, site *site) {
	p := b.tab(t)
	site.view(p, "up", "")
	site.delivered(t)

	site.matomo.stop()
	// Now Sluice knows, and serves its copies nevertheless.
	if code, out, _ := site.edge.run("assets", "purge", "--all"); code != exitFailed || !strings.Contains(out, testkit.TrackerPath) {
		t.Errorf("a comparison with a Matomo that is down exits %d:\n%s", code, out)
	}
	site.view(p, "down", "")
	p.waitFor(`window.MatomoTagManager?.container`, "abcdefgh")
	if status := p.open(site.edge.public + testkit.HomePath); status != http.StatusBadGateway {
		t.Errorf("a page of Matomo is answered %d, want 502", status)
	}
	p.waitFor(`document.title + "|" + document.querySelector("h1")?.textContent`, "Bad Gateway|Matomo does not answer.")
	if _, out, _ := site.edge.run("queue", "stats"); !strings.HasPrefix(out, fmt.Sprintf("accepted %d = ", len(site.marks))) {
		t.Errorf("of %d hits is known\n%s", len(site.marks), out)
	}

	site.matomo.start()
	site.delivered(t)
	site.edge.stop()
	want := fmt.Sprintf("accepted %d = delivered %[1]d + invalid 0 + dead 0 + pending 0     ok\n", len(site.marks))
	if _, out, _ := site.edge.run("queue", "stats"); !strings.HasPrefix(out, want) {
		t.Errorf("after the stop:\n%swant %s", out, want)
	}
}

// A site is an edge in front of a Matomo with pages, and a website that it counts.
type site struct {
	fake   *testkit.Matomo
	pages  *testkit.Pages
	matomo *outage
	edge   *server
	shop   string
	marks  []string // of all hits that the website has sent
}

func startSite(t *testing.T, args ...string) *site {
	t.Helper()
	s := &site{pages: testkit.NewPages()}
	s.fake = testkit.NewMatomo(testkit.MatomoConfig{Fallback: s.pages})
	s.matomo = &outage{t: t, handler: s.fake, address: "127.0.0.1:0"}
	s.matomo.start()
	t.Cleanup(func() {
		s.fake.Close()
		s.matomo.stop()
	})
	token := file(t, "token", testkit.SuperToken, 0o600)
	s.edge = startServer(t, t.TempDir(), "http://"+s.matomo.address, append([]string{
		"--matomo.token-file=" + token, "--sink.probe-interval=1s",
	}, args...)...)
	shop := httptest.NewServer(testkit.Shop(s.edge.public))
	t.Cleanup(shop.Close)
	s.shop = shop.URL
	return s
}

// view opens the website, whose hits have marks with the run's name, and waits until
// scripts and hits are answered.
func (s *site) view(p *tab, run, more string) {
	p.t.Helper()
	s.marks = append(s.marks, testkit.ShopMarks(run)...)
	p.seen.reset()
	if status := p.open(s.shop + "/?run=" + run + "&" + more); status != http.StatusOK {
		p.t.Fatalf("the website answers %d", status)
	}
	answered := func(part string) func(seenRequest) bool {
		return func(r seenRequest) bool { return strings.Contains(r.url, part) && (r.status != 0 || r.failed != "") }
	}
	list := p.seen.await(p, "the scripts and hits are answered", func(list []seenRequest) bool {
		hits := slices.DeleteFunc(slices.Clone(list), func(r seenRequest) bool { return !answered("/matomo.php")(r) })
		return len(hits) == testkit.ShopRequests && slices.ContainsFunc(list, answered(testkit.TrackerPath)) &&
			slices.ContainsFunc(list, answered(testkit.ContainerPath))
	})
	for _, r := range list {
		if (r.status/100 != 2 || r.failed != "") && !strings.Contains(r.url, testkit.PreviewPath) && !strings.HasSuffix(r.url, "/favicon.ico") {
			p.t.Errorf("%s %s is answered %d %s", r.method, r.url, r.status, r.failed)
		}
	}
}

// delivered waits until all hits are in Matomo, and counts them. After an outage that a
// slow machine makes long, the sink tries again within a minute.
func (s *site) delivered(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+browserWait)
	defer cancel()
	if err := s.fake.Wait(ctx, func(testkit.Counts) bool {
		have := s.fake.Marks()
		return !slices.ContainsFunc(s.marks, func(mark string) bool { return !slices.Contains(have, mark) })
	}); err != nil {
		t.Fatalf("%v; it has %q", err, s.fake.Marks())
	}
	s.fake.CheckOnce(t, s.marks)
}

// An outage is a server that stops and comes again at its address.
type outage struct {
	t       *testing.T
	handler http.Handler
	address string
	server  *http.Server
	done    chan struct{}
}

func (o *outage) start() {
	o.t.Helper()
	l, err := net.Listen("tcp", o.address)
	if err != nil {
		o.t.Fatal(err)
	}
	o.address, o.server, o.done = l.Addr().String(), &http.Server{Handler: o.handler}, make(chan struct{})
	go func(srv *http.Server, done chan struct{}) { // ended by stop
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			o.t.Error(err)
		}
	}(o.server, o.done)
}

// stop ends all connections, too.
func (o *outage) stop() {
	_ = o.server.Close() // its listener may be closed
	<-o.done
}
