package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// handOver makes p start with sockets that stay open when it ends, as systemd does.
func (p *edgeProcess) handOver(names ...string) (addresses []string) {
	p.t.Helper()
	for range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			p.t.Fatal(err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { l.Close(); f.Close() })
		p.sockets = append(p.sockets, f)
		addresses = append(addresses, l.Addr().String())
	}
	p.names = strings.Join(names, ":")
	return addresses
}

// command is the edge's command line; with sockets a shell tells it its number first.
func (p *edgeProcess) command(path string) *exec.Cmd {
	if len(p.sockets) == 0 {
		return exec.Command(path, p.args...)
	}
	cmd := exec.Command("sh", slices.Concat([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, path}, p.args)...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(p.sockets)), "LISTEN_FDNAMES="+p.names)
	cmd.ExtraFiles = p.sockets
	return cmd
}

// An upgrade behind handed sockets drops no connection: every request is answered, and
// every hit that was acknowledged is kept, once.
func TestRestartsBehindHandedSocketsDropNothing(t *testing.T) {
	p := newEdgeProcess(t, nobody, filepath.Join(t.TempDir(), "data"), "--tls.mode=self-signed", "--shutdown.delay=100ms")
	// What the sockets stand in for could not be bound.
	p.args = append(p.args, "--listen=192.0.2.1:1", "--admin.listen=127.0.0.1:1")
	addresses := p.handOver("https", "admin", "http")
	secure, plain := "https://"+addresses[0], "http://"+addresses[2]
	p.private, p.public = "http://"+addresses[1], plain
	p.start()

	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var mu sync.Mutex
	answered, failed := 0, []string(nil)
	for i := range 8 {
		base := []string{secure, plain}[i%2]
		clients.Go(func() { // ended by cancel
			transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: i/2%2 == 0}
			client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
			defer transport.CloseIdleConnections()
			for n := 0; ctx.Err() == nil; n++ {
				resp, err := client.Get(fmt.Sprintf("%s/matomo.php?idsite=1&rec=1&url=http%%3A%%2F%%2Fexample.org%%2F%d%%2F%d", base, i, n))
				fault := ""
				if err != nil {
					fault = err.Error()
				} else {
					_, _ = io.Copy(io.Discard, resp.Body) // the status says it all
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						fault = resp.Status
					}
				}
				mu.Lock()
				answered++
				if fault != "" {
					failed = append(failed, fmt.Sprintf("client %d (fresh connections %v): %s", i, transport.DisableKeepAlives, fault))
				}
				mu.Unlock()
			}
		})
	}
	enough := func(n int) {
		t.Helper()
		p.eventually("requests are answered", func() bool { mu.Lock(); defer mu.Unlock(); return answered >= n })
	}
	for range 4 {
		mu.Lock()
		n := answered
		mu.Unlock()
		enough(n + 50)
		p.stop()
		p.start()
	}
	cancel()
	clients.Wait()
	for _, f := range failed {
		t.Error(f)
	}
	if got := p.metric("sluice_queue_pending_hits"); int(got) != answered {
		t.Errorf("%v hits are kept, %d were acknowledged", got, answered)
	}
	t.Logf("%d requests over 4 restarts, none failed", answered)
}

func TestSocketsThatNobodyKnowsAreRefused(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, socket, mode, want string }{
		{"another name", "web", "self-signed", `socket 3, named "web", is not known: want FileDescriptorName= https, http, admin`},
		{"HTTPS without certificates", "https", "off", "https was handed over, but tls.mode is off"},
		{"a private listener for everybody", "admin", "self-signed", "others can reach the socket admin at 0.0.0.0:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newEdgeProcess(t, nobody, filepath.Join(t.TempDir(), "data"), "--tls.mode="+tt.mode)
			p.handOver(tt.socket)
			if tt.socket == "admin" {
				p.sockets = []*os.File{openToAll(t)}
			}
			out, err := p.command(path).CombinedOutput()
			if err == nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("got %v\n%s", err, out)
			}
		})
	}
}

// openToAll gives a socket that listens on every address.
func openToAll(t *testing.T) *os.File {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); f.Close() })
	return f
}

// A start right after kill -9 waits for the process that is ending.
func TestAStartWaitsForTheDataDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first := startServer(t, dir, nobody)
	var second *server
	started := make(chan struct{})
	go func() { // ended by the second server's start, or its failure
		defer close(started)
		second = startServer(t, dir, nobody)
	}()
	select {
	case <-started:
		t.Fatal("two edges in one directory")
	case <-time.After(lockPatience / 6): // long enough that it has met the lock
	}
	first.stop()
	<-started
	if second == nil || second.hit("idsite=1&rec=1") != http.StatusOK {
		t.Error("the second does not serve")
	}
}
