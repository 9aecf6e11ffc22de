package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"sluice/internal/testkit"
	"sluice/internal/testkit/pebble"
)

// TestHitsAreTakenWithAnAuthoritysCertificate runs the real thing against an authority that
// is away after the first run: visitors who trust nobody else get their hits stored.
func TestHitsAreTakenWithAnAuthoritysCertificate(t *testing.T) {
	const name = "stats.serve.example"
	https, plain := testkit.FreePort(t), testkit.FreePort(t)
	ca := pebble.Start(t, pebble.Options{HTTPPort: plain, TLSPort: https})
	acme := []string{
		"--tls.mode=acme", "--tls.domains=" + name, "--tls.acme-ca=" + ca.URL(), "--tls.acme-root-file=" + ca.RootFile(), "--tls.acme-email=admin@serve.example",
		fmt.Sprintf("--listen=127.0.0.1:%d", https), fmt.Sprintf("--listen-http=127.0.0.1:%d", plain),
	}
	dir := t.TempDir()
	check := func() string {
		_, stdout, _ := command(nil, append([]string{"check", "--matomo.url=" + nobody, "--data-dir=" + dir, "--queue.reserve=64MiB"}, acme...)...)
		return stdout
	}
	if got := check(); !strings.Contains(got, "certificate: acme, none yet for "+name) || !strings.Contains(got, "443 must lead to listen 127.0.0.1") {
		t.Errorf("check says\n%s", got)
	}
	s := startServer(t, dir, nobody, acme...)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: ca.Roots()},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", https))
		},
	}
	defer transport.CloseIdleConnections()
	visitor := &http.Client{Transport: transport}
	hit := func() (int, error) {
		resp, err := visitor.Get("https://" + name + "/matomo.php?idsite=1&rec=1")
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	s.log.await(t, `"msg":"certificate obtained"`)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		code, err := hit()
		if err == nil && code == http.StatusOK {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("status %d, %v", code, err)
		}
	}
	if code, stdout, _ := s.run("queue", "stats", "--json"); code != exitOK || !strings.Contains(stdout, `"pending":1`) {
		t.Errorf("exit %d, %s, want one hit pending", code, stdout)
	}
	if got := check(); !strings.Contains(got, "certificate: acme, until ") {
		t.Errorf("check says\n%s", got)
	}
	s.stop()

	ca.Down()
	startServer(t, dir, nobody, acme...)
	if code, err := hit(); err != nil || code != http.StatusOK {
		t.Errorf("after a restart without the authority: status %d, %v", code, err)
	}
}
