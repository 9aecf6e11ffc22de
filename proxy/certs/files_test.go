package certs

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

func TestSelfSigned(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	open := func() (*Keeper, error) {
		return Open(Config{Mode: ModeSelfSigned, Dir: dir}, slog.New(slog.DiscardHandler), metrics.NewSet())
	}
	first, err := open()
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, selfSignedFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file %v %v, want mode 0600", info, err)
	}
	again, err := open()
	if err != nil || again.Fingerprint() != first.Fingerprint() || len(first.Fingerprint()) != 64 {
		t.Errorf("the second has %v %v, want %q", again, err, first.Fingerprint())
	}
	if err := os.WriteFile(filepath.Join(dir, selfSignedFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(); err == nil {
		t.Error("a damaged file is taken")
	}
}

// pair writes a certificate and its key, in that order and each whole.
type pair struct {
	t         *testing.T
	cert, key string
}

func newPair(t *testing.T) pair {
	dir := t.TempDir()
	return pair{t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

func (p pair) write(cert, key []byte) {
	p.t.Helper()
	for path, data := range map[string][]byte{p.cert: cert, p.key: key} {
		if err := os.WriteFile(path+".new", data, 0o600); err != nil {
			p.t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			p.t.Fatal(err)
		}
	}
}

// made gives a certificate that is its own root, as PEM.
func made(t *testing.T) ([]byte, *x509.CertPool) {
	t.Helper()
	data, err := newSelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(data)
	return data, pool
}

func TestFilesAreFollowed(t *testing.T) {
	p := newPair(t)
	log, m := slog.New(slog.DiscardHandler), newInstruments(metrics.NewSet())
	if _, err := openFiles(p.cert, p.key, log, m); err == nil {
		t.Error("missing files are taken")
	}
	first, _ := made(t)
	p.write(first, first)
	f, err := openFiles(p.cert, p.key, log, m)
	if err != nil {
		t.Fatal(err)
	}
	now := f.looked
	f.now = func() time.Time { return now }
	before, _ := f.get(nil)
	p.write([]byte("torn"), first)
	if got, err := f.get(nil); got != before || err != nil {
		t.Error("files were looked at again at once")
	}
	now = now.Add(lookInterval)
	if got, err := f.get(nil); got != before || err != nil || m.reloadFailed.Get() != 1 {
		t.Errorf("torn files: %v, %d failed, want the old certificate and 1", err, m.reloadFailed.Get())
	}
	second, _ := made(t)
	p.write(append(second, '\n'), append(second, '\n'))
	now = now.Add(lookInterval)
	got, err := f.get(nil)
	if got == before || err != nil || m.reloaded.Get() != 1 {
		t.Errorf("changed files: %v, want the new certificate", err)
	}
	p.write(first, second)
	if err := f.reload(); err == nil || m.reloadFailed.Get() != 2 {
		t.Errorf("a key of another certificate: %v", err)
	}
	if still, _ := f.get(nil); still != got {
		t.Error("the certificate in use was lost")
	}
	p.write(first, first)
	if err := f.reload(); err != nil {
		t.Error(err)
	}
	if third, _ := f.get(nil); third == got {
		t.Error("a reload did not look at the files")
	}
}

func TestChangedFilesDropNoConnection(t *testing.T) {
	p := newPair(t)
	first, roots := made(t)
	p.write(first, first)
	e := startWith(t, Config{Mode: ModeFiles, CertFile: p.cert, KeyFile: p.key}, freePorts(t))
	all := roots.Clone()
	done := make(chan struct{})
	var clients sync.WaitGroup
	second, otherRoots := made(t)
	all.AppendCertsFromPEM(second)
	for i := range 4 {
		clients.Go(func() { // ended by done
			client := e.client(all)
			client.Transport.(*http.Transport).DisableKeepAlives = i%2 == 0
			for {
				if err := hitOver(client, "localhost"); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	p.write([]byte("torn"), second)
	if err := e.keeper.Reload(); err == nil {
		t.Error("torn files are taken")
	}
	if _, err := e.shake("localhost", roots); err != nil {
		t.Errorf("after torn files: %v", err)
	}
	p.write(second, second)
	if err := e.keeper.Reload(); err != nil {
		t.Error(err)
	}
	if _, err := e.shake("localhost", otherRoots); err != nil {
		t.Errorf("after new files: %v", err)
	}
	close(done)
	clients.Wait()
	if got := e.metric(`sluice_proxy_cert_reloads_total{result="failed"}`); got < 1 {
		t.Errorf("%v failed reloads, want 1 or more", got)
	}
	if left := e.metric(`sluice_proxy_cert_expiry_seconds{name="localhost"}`); left < 9*365*24*3600 {
		t.Errorf("%v s left", left)
	}
}

func TestWhatTheListenerOffers(t *testing.T) {
	first, roots := made(t)
	p := newPair(t)
	p.write(first, first)
	e := startWith(t, Config{Mode: ModeFiles, CertFile: p.cert, KeyFile: p.key}, freePorts(t))
	dial := func(c *tls.Config) (tls.ConnectionState, error) {
		c.RootCAs, c.ServerName = roots, "localhost"
		conn, err := tls.Dial("tcp", e.https, c)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		return conn.ConnectionState(), nil
	}
	tests := []struct {
		name   string
		config *tls.Config
		want   string // protocol; "refused" for none
	}{
		{"HTTP/2 before HTTP/1.1", &tls.Config{NextProtos: []string{"http/1.1", "h2"}}, "h2"},
		{"HTTP/1.1 alone", &tls.Config{NextProtos: []string{"http/1.1"}}, "http/1.1"},
		{"no challenge where there is no authority", &tls.Config{NextProtos: []string{alpnProtocol}}, "refused"},
		{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, ""},
		{"no TLS 1.1", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "refused"},
		{"no CBC", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, "refused"},
		{"ChaCha20", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			state, err := dial(tt.config)
			if got := state.NegotiatedProtocol; err == nil && got != tt.want || (err != nil) != (tt.want == "refused") {
				t.Errorf("got %q %v, want %q", got, err, tt.want)
			}
		})
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run("sessions of "+tls.VersionName(version)+" are resumed", func(t *testing.T) {
			client := e.client(roots)
			transport := client.Transport.(*http.Transport)
			transport.DisableKeepAlives = true
			transport.TLSClientConfig.MaxVersion = version
			transport.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(4)
			for i, want := range []bool{false, true, true} {
				resp, err := client.Get("https://localhost/matomo.php?idsite=1&rec=1")
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.TLS.DidResume != want || resp.TLS.Version != version {
					t.Errorf("connection %d: resumed %v, want %v", i, resp.TLS.DidResume, want)
				}
			}
		})
	}
	strict := startWith(t, Config{Mode: ModeFiles, CertFile: p.cert, KeyFile: p.key, MinVersion: tls.VersionTLS13}, freePorts(t))
	e = strict
	if _, err := dial(&tls.Config{MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is taken where 1.3 is the least")
	}
}
