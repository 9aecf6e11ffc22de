package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// browserWait bounds every wait for the browser.
const browserWait = 20 * time.Second

// A chromium is one browser process for all tabs.
type chromium struct{ ctx context.Context }

func startBrowser(t *testing.T) *chromium {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("SKIPPED: there is no chromium on this machine, so nothing was looked at in a browser")
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.IgnoreCertErrors, chromedp.DisableGPU,
		chromedp.ModifyCmdFunc(func(cmd *exec.Cmd) {
			// Of a group of its own nothing is left over, whatever it has started.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
			cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		}),
	)...)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		cancel()
		stop()
		chromedp.FromContext(ctx).Allocator.Wait()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return &chromium{ctx}
}

// A tab is one with cookies of its own and no cache.
type tab struct {
	t    *testing.T
	ctx  context.Context
	seen *traffic
}

func (b *chromium) tab(t *testing.T) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	p := &tab{t: t, ctx: ctx, seen: &traffic{changed: make(chan struct{}, 1)}}
	if err := chromedp.Listen(ctx, p.seen.note); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, network.SetCacheDisabled, network.SetCacheDisabledParams{CacheDisabled: true}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *tab) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, browserWait)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatalf("%s: %v", what, err)
	}
}

// load does what loads a page, and gives the page's status.
func (p *tab) load(steps ...chromedp.Action[chromedp.Void]) int {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, browserWait)
	defer cancel()
	resp, err := chromedp.RunResponse(ctx, steps...)
	if err != nil || resp == nil {
		p.t.Fatalf("no page is loaded: %v", err)
	}
	return int(resp.Status)
}

func (p *tab) open(url string) int {
	p.t.Helper()
	return p.load(func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := chromedp.Evaluate[bool](fmt.Sprintf("location.href = %q, true", url))(ctx, target)
		return chromedp.Void{}, err
	})
}

// waitFor waits until an expression has a value.
func (p *tab) waitFor(expression string, want any) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, browserWait)
	defer cancel()
	poll := chromedp.Poll[bool](fmt.Sprintf("(%s) === %#v", expression, want), chromedp.WithPollingInterval(20*time.Millisecond))
	if _, err := chromedp.Run(ctx, poll); err != nil {
		now, _ := chromedp.Run(p.ctx, chromedp.Evaluate[any]("String("+expression+")")) // the error above says more
		p.t.Fatalf("%s is %v, want %v: %v", expression, now, want, err)
	}
}

func (p *tab) cookies() []*network.Cookie {
	p.t.Helper()
	got, err := chromedp.Call(p.ctx, network.GetCookies, network.GetCookiesParams{})
	if err != nil {
		p.t.Fatal(err)
	}
	return got.Cookies
}

// A seenRequest is what the browser says about one request.
type seenRequest struct {
	id          network.RequestID
	method, url string
	status      int
	failed      string
}

// traffic collects a tab's requests and tells who waits.
type traffic struct {
	mu      sync.Mutex
	list    []seenRequest
	changed chan struct{}
}

func (n *traffic) note(ev any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	of := func(id network.RequestID) *seenRequest {
		for i := range n.list {
			if n.list[i].id == id {
				return &n.list[i]
			}
		}
		return new(seenRequest) // of a view before
	}
	switch ev := ev.(type) {
	case *network.EventRequestWillBeSent:
		n.list = append(n.list, seenRequest{id: ev.RequestID, method: ev.Request.Method, url: ev.Request.URL})
	case *network.EventResponseReceived:
		of(ev.RequestID).status = int(ev.Response.Status)
	case *network.EventLoadingFailed:
		of(ev.RequestID).failed = ev.ErrorText
	default:
		return
	}
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (n *traffic) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = nil
}

func (n *traffic) await(p *tab, what string, ok func([]seenRequest) bool) []seenRequest {
	p.t.Helper()
	deadline := time.After(browserWait)
	for {
		n.mu.Lock()
		list := slices.Clone(n.list)
		n.mu.Unlock()
		if ok(list) {
			return list
		}
		select {
		case <-n.changed:
		case <-deadline:
			p.t.Fatalf("it did not come to pass that %s: %+v", what, list)
		}
	}
}
