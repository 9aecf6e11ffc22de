package assets

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"sluice/internal/durable"
)

func TestFirstRequests(t *testing.T) {
	t.Run("a hundred at once are one fetch", func(t *testing.T) {
		o := newOrigin(t)
		r := newRig(t, o, t.TempDir(), nil)
		release := make(chan struct{})
		o.has("/matomo.js", func(w http.ResponseWriter, _ *http.Request) {
			<-release
			_, _ = w.Write(trackerText(1))
		})
		var wg sync.WaitGroup
		codes := make(chan int, 100)
		for range cap(codes) {
			wg.Go(func() { codes <- r.get("/matomo.js?v=1").Code })
		}
		<-o.hits
		close(release)
		wg.Wait()
		close(codes)
		for code := range codes {
			if code != http.StatusOK {
				t.Fatalf("status %d", code)
			}
		}
		// The look that follows a first one comes from the loop, and its clock stands.
		if n := len(o.requests("/matomo.js")); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
	t.Run("no header and no query of the client reaches the origin", func(t *testing.T) {
		o := newOrigin(t)
		o.file("/matomo.js", trackerText(1))
		r := newRig(t, o, t.TempDir(), nil)
		w := r.get("/matomo.js?cb=99", "Cookie", "s=1", "Authorization", "x", "User-Agent", "Evil", "X-Forwarded-Host", "evil")
		if w.Code != http.StatusOK || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("got %d %v", w.Code, w.Header())
		}
		seen := o.requests("/matomo.js")[0]
		if seen.URL.RawQuery != "" || seen.Header.Get("Cookie") != "" || seen.Header.Get("Authorization") != "" ||
			seen.Header.Get("User-Agent") != "Sluice" || seen.Header.Get("X-Forwarded-Host") != "" {
			t.Errorf("the origin saw %v %v", seen.URL, seen.Header)
		}
	})
	t.Run("one for a file that is not there is passed on and asked once", func(t *testing.T) {
		o := newOrigin(t)
		r := newRig(t, o, t.TempDir(), nil)
		for range 3 {
			r.wants("/js/container_ABCDEFGH.js", http.StatusTeapot, nil)
		}
		if n := len(o.requests("/js/container_ABCDEFGH.js")); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
		o.file("/js/container_ABCDEFGH.js", containerText(1))
		r.clock.pass(refusedFor)
		r.wants("/js/container_ABCDEFGH.js", http.StatusOK, containerText(1))
	})
}

// TestOriginLies shows that what the origin may answer by mistake is never published,
// neither as the first copy nor in place of a good one.
func TestOriginLies(t *testing.T) {
	good := trackerText(1)
	elsewhere := newOrigin(t)
	elsewhere.file("/matomo.js", trackerText(66))
	say := func(mime, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mime)
			_, _ = w.Write([]byte(body))
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	const js = "application/javascript"
	changing := 0
	for _, tt := range []struct {
		name string
		lie  http.HandlerFunc
	}{
		{"half a file", say(js, string(trackerText(2)[:500]))},
		{"a file without its end", say(js, string(trackerText(2)[:len(trackerText(2))-20]))},
		{"a page", say("text/html", "<!DOCTYPE html><html>Maintenance</html>")},
		{"a page that is said to be JavaScript", say(js, "  \n<html>@license-end */;</html>;")},
		{"JavaScript that is said to be a page", say("text/html; charset=utf-8", string(trackerText(2)))},
		{"nothing", say(js, "")},
		{"white space", say(js, " \n ")},
		{"PHP's message before the file", say(js, "Warning: file_get_contents(): failed in x.php on line 3\n"+string(trackerText(2)))},
		{"PHP's page of a message before the file", say(js, "<br />\n<b>Warning</b>: x\n"+string(trackerText(2)))},
		{"something too large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("a;"), maxScript)) }},
		{"something that says it is too large", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(maxScript+1))
			_, _ = w.Write(good)
		}},
		{"fewer bytes than announced", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(trackerText(2))+10))
			_, _ = w.Write(trackerText(2))
			panic(http.ErrAbortHandler)
		}},
		{"something encoded", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(trackerText(2))
		}},
		{"a redirect to another host", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"/matomo.js", http.StatusFound)
		}},
		{"other bytes each time", func(w http.ResponseWriter, _ *http.Request) {
			changing++
			_, _ = w.Write(trackerText(1000 + changing))
		}},
		{"forbidden", status(http.StatusForbidden)},
		{"unauthorized", status(http.StatusUnauthorized)},
		{"an error", status(http.StatusInternalServerError)},
		{"maintenance", status(http.StatusServiceUnavailable)},
		{"nothing new, unasked", status(http.StatusNotModified)},
		{"a broken connection", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := newOrigin(t)
			r := newRig(t, o, t.TempDir(), nil)
			o.has("/x/matomo.js", tt.lie)
			if tt.name != "other bytes each time" {
				r.wants("/x/matomo.js", http.StatusTeapot, nil)
			}
			r.clock.pass(refusedFor)

			o.file("/matomo.js", good)
			r.wants("/matomo.js", http.StatusOK, good)
			o.has("/matomo.js", tt.lie)
			for range 2 * maxTries {
				r.lookAt("/matomo.js")
				r.clock.pass(time.Second)
			}
			r.wants("/matomo.js", http.StatusOK, good)
			r.stop()
			again := newRig(t, o, r.dir, nil)
			again.wants("/matomo.js", http.StatusOK, good)
		})
	}
	if n := len(elsewhere.requests("/matomo.js")); n != 0 {
		t.Errorf("a redirect to another host was followed %d times", n)
	}
}

func TestChangedFile(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), nil)
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	o.file("/matomo.js", trackerText(2))

	if got := r.lookAt("/matomo.js"); got != unsure {
		t.Errorf("the first look at new bytes led to %s, want %s", got, unsure)
	}
	if got := r.lookAt("/matomo.js"); got != unsure {
		t.Errorf("a second look within the moment led to %s, want %s", got, unsure)
	}
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	r.clock.pass(time.Second)
	if got := r.lookAt("/matomo.js"); got != replaced {
		t.Errorf("the second look led to %s, want %s", got, replaced)
	}
	r.wants("/matomo.js", http.StatusOK, trackerText(2))

	// A file that was half written at the first look counts from the second.
	o.file("/matomo.js", trackerText(3))
	r.lookAt("/matomo.js")
	o.file("/matomo.js", trackerText(4))
	r.clock.pass(time.Second)
	r.settles("/matomo.js", replaced)
	r.wants("/matomo.js", http.StatusOK, trackerText(4))
}

func TestValidatorsReachTheOrigin(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), nil)
	r.wants("/matomo.js", http.StatusOK, nil)
	r.settles("/matomo.js", unchanged) // the look that follows a first one is whole
	r.settles("/matomo.js", unchanged)
	seen := o.requests("/matomo.js")
	if got := seen[1].Header.Get("If-None-Match"); got != "" {
		t.Errorf("the look that follows the first sends If-None-Match %q", got)
	}
	if got, want := seen[2].Header.Get("If-None-Match"), `"o-`+hashOf(trackerText(1))+`"`; got != want {
		t.Errorf("If-None-Match %q, want %q", got, want)
	}
	if got, want := seen[2].Header.Get("If-Modified-Since"), "Mon, 02 Nov 2026 10:00:00 GMT"; got != want {
		t.Errorf("If-Modified-Since %q, want %q", got, want)
	}
}

func TestDeletedContainer(t *testing.T) {
	const path = "/m/js/container_ABCDEFGH.js"
	o := newOrigin(t)
	o.file(path, containerText(1))
	r := newRig(t, o, t.TempDir(), nil)
	r.wants(path, http.StatusOK, containerText(1))
	o.has(path, nil)
	if got := r.lookAt(path); got != unsure {
		t.Errorf("the first 404 led to %s, want %s", got, unsure)
	}
	r.wants(path, http.StatusOK, containerText(1))
	r.clock.pass(time.Second)
	if got := r.lookAt(path); got != deleted {
		t.Errorf("the second 404 led to %s, want %s", got, deleted)
	}
	r.wants(path, http.StatusTeapot, nil)
	left, _ := filepath.Glob(filepath.Join(r.dir, "*"))
	if len(left) != 0 {
		t.Errorf("left on the disk: %v", left)
	}
}

func TestOriginGone(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), func(c *Config) { c.MaxStale = time.Hour })
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	o.Close()
	r.clock.pass(10 * time.Minute)
	w := r.wants("/matomo.js", http.StatusOK, trackerText(1))
	if got := w.Header().Get(staleHeader); got != "600" {
		t.Errorf("%s: %q, want 600", staleHeader, got)
	}
	r.stop()

	cold := newRig(t, o, r.dir, nil)
	cold.clock.at = r.clock.now()
	w = cold.wants("/matomo.js", http.StatusOK, trackerText(1))
	if got := w.Header().Get(staleHeader); got != "600" {
		t.Errorf("after a restart %s: %q, want 600", staleHeader, got)
	}
	r.clock.pass(time.Hour)
	r.wants("/matomo.js", http.StatusTeapot, nil)
}

// TestSeldomAskedFile shows that a change reaches also the first client after a long
// time.
func TestSeldomAskedFile(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), func(c *Config) { c.Now, c.Revalidate = nil, time.Second })
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	f := r.find("/matomo.js")
	// The loop leaves it alone.
	f.asked.Store(time.Now().Add(-2 * inUse).UnixNano())
	o.file("/matomo.js", trackerText(2))
	f.checked.Store(time.Now().Add(-2 * inUse).UnixNano())
	f.mu.Lock()
	f.attempted = time.Time{}
	f.mu.Unlock()
	r.wants("/matomo.js", http.StatusOK, trackerText(2))

	hang := make(chan struct{})
	defer close(hang)
	o.has("/matomo.js", func(http.ResponseWriter, *http.Request) { <-hang })
	f.checked.Store(time.Now().Add(-2 * inUse).UnixNano())
	f.mu.Lock()
	f.attempted = time.Time{}
	f.mu.Unlock()
	began := time.Now()
	w := r.wants("/matomo.js", http.StatusOK, trackerText(2))
	if took := time.Since(began); took > lookWait+time.Second || w.Header().Get(staleHeader) == "" {
		t.Errorf("a slow origin: answered after %s with %v", took, w.Header())
	}
}

func TestLoop(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	o.file("/js/container_a.js", containerText(1))
	r := newRig(t, o, t.TempDir(), func(c *Config) { c.Now, c.Revalidate, c.Moment = nil, time.Second, 50*time.Millisecond })
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	r.wants("/js/container_a.js", http.StatusOK, containerText(1))
	o.file("/matomo.js", trackerText(2))
	o.has("/js/container_a.js", nil)
	eventually(t, "the changed file is live", func() bool {
		return r.find("/matomo.js").serving.Load().hash == hashOf(trackerText(2))
	})
	eventually(t, "the deleted file is gone", func() bool { return r.find("/js/container_a.js") == nil })
}

func TestLimits(t *testing.T) {
	o := newOrigin(t)
	r := newRig(t, o, t.TempDir(), func(c *Config) { c.MaxSize = 20_000 })
	for i := range 30 {
		path := fmt.Sprintf("/js/container_%d.js", i)
		o.file(path, containerText(i))
		r.wants(path, http.StatusOK, containerText(i))
		r.clock.pass(2 * time.Second)
	}
	eventually(t, "the oldest are forgotten", func() bool { r.makeRoom(); return r.metrics.bytes.Load() <= 20_000 })
	if r.find("/js/container_29.js") == nil || r.find("/js/container_0.js") != nil {
		t.Error("others than the oldest were forgotten")
	}
}

func TestDamagedCopies(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), nil)
	r.wants("/matomo.js", http.StatusOK, nil)
	r.stop()
	name := r.disk.path("/matomo.js", liveRole)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	o.Close()
	for _, tt := range []struct {
		name   string
		damage func([]byte) []byte
	}{
		{"cut off", func(b []byte) []byte { return b[:len(b)-1] }},
		{"empty", func([]byte) []byte { return nil }},
		{"with a bit changed in the body", func(b []byte) []byte { b[len(b)-100] ^= 1; return b }},
		{"with a bit changed in the metadata", func(b []byte) []byte { b[headSize+5] ^= 1; return b }},
		{"of a later version", func(b []byte) []byte { b[len(magic)]++; return b }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(name, tt.damage(bytes.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			again := newRig(t, o, r.dir, nil)
			again.wants("/matomo.js", http.StatusTeapot, nil)
			if n := again.metrics.damaged.Get(); n != 1 {
				t.Errorf("%d damaged copies counted, want 1", n)
			}
			if _, err := os.Stat(filepath.Join(r.dir, damagedDir, filepath.Base(name))); err != nil {
				t.Errorf("the damaged copy is not set aside: %v", err)
			}
		})
	}
	t.Run("under another path's name", func(t *testing.T) {
		if err := os.WriteFile(r.disk.path("/piwik.js", liveRole), whole, 0o600); err != nil {
			t.Fatal(err)
		}
		again := newRig(t, o, r.dir, nil)
		again.wants("/piwik.js", http.StatusTeapot, nil)
		if n := again.metrics.damaged.Get(); n != 1 {
			t.Errorf("%d damaged copies counted, want 1", n)
		}
	})
}

func TestCrashBetweenRenames(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), nil)
	r.wants("/matomo.js", http.StatusOK, nil)
	r.stop()
	o.Close()
	name := r.disk.path("/matomo.js", "")
	if err := os.Rename(name+liveRole, name+previousRole); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+liveRole+durable.TemporarySuffix, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	newRig(t, o, r.dir, nil).wants("/matomo.js", http.StatusOK, trackerText(1))
	if _, err := os.Stat(name + liveRole + durable.TemporarySuffix); err == nil {
		t.Error("what the crash left half done is still there")
	}
}

func TestFullDisk(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), nil)
	full := true
	r.disk.write = func(name string, b []byte) error {
		if full {
			return os.ErrInvalid
		}
		return durable.WriteFile(name, b)
	}
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	o.file("/matomo.js", trackerText(2))
	r.settles("/matomo.js", replaced)
	r.wants("/matomo.js", http.StatusOK, trackerText(2))
	if n := r.metrics.diskErrors.Get(); n != 2 {
		t.Errorf("%d errors of the disk counted, want 2", n)
	}
	if _, err := r.Pin("/matomo.js", ""); err == nil {
		t.Error("a pin that cannot be stored is taken")
	}
	full = false
	r.clock.pass(touchEvery)
	r.settles("/matomo.js", unchanged)
	r.stop()
	o.Close()
	newRig(t, o, r.dir, nil).wants("/matomo.js", http.StatusOK, trackerText(2))
}

func TestPreviousVersionOutlivesARestart(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), nil)
	r.wants("/matomo.js", http.StatusOK, nil)
	r.stop()
	r = newRig(t, o, r.dir, nil)
	o.file("/matomo.js", trackerText(2))
	r.settles("/matomo.js", replaced)
	r.stop()
	r = newRig(t, o, r.dir, nil)
	if list := r.List(); len(list) != 1 || list[0].Previous != hashOf(trackerText(1)) {
		t.Errorf("listed as %+v", list)
	}
	if _, err := r.Pin("/matomo.js", PreviousVersion); err != nil {
		t.Error(err)
	}
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
}

func TestStopLeavesNobodyWaiting(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), nil)
	r.stop()
	began := time.Now()
	r.wants("/matomo.js", http.StatusTeapot, nil)
	if took := time.Since(began); took > firstWait/2 {
		t.Errorf("a request waited %s for a cache that has stopped", took)
	}
}

func TestFailingScriptDoesNotStopLooksAtFiles(t *testing.T) {
	o := newOrigin(t)
	o.file("/js/", trackerText(1))
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), nil)
	r.wants("/js/", http.StatusOK, trackerText(1))
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	o.has("/js/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	if got := r.lookAt("/js/"); got != failed || r.isDown(r.clock.now()) {
		t.Errorf("the look led to %s, and the origin counts as down: %t", got, r.isDown(r.clock.now()))
	}
	o.has("/matomo.js", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	if got := r.lookAt("/matomo.js"); got != failed || !r.isDown(r.clock.now()) {
		t.Errorf("the look led to %s, and the origin counts as down: %t", got, r.isDown(r.clock.now()))
	}
}
