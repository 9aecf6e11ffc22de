package proxy

import (
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

func TestConfigFaults(t *testing.T) {
	_, err := New(Config{Listen: ":0", Expose: "some", Upstream: &url.URL{Scheme: "ftp"}, Limits: Limits{HeaderBytes: 5, BodyBytes: -1}, Grace: -1, MaskAddress: 5},
		&fakeQueue{}, nil, slog.New(slog.DiscardHandler), metrics.NewSet())
	for _, want := range []string{"certificate", `"ftp"`, `"some"`, "header limit 5", "5 bytes of addresses", "limit is negative", "duration is negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want it to name %s", err, want)
		}
	}
}

func TestSelfSigned(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	config, fingerprint, err := SelfSigned(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, selfSignedFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file %v %v, want mode 0600", info, err)
	}
	_, again, err := SelfSigned(dir)
	if err != nil || again != fingerprint || len(fingerprint) != 64 {
		t.Errorf("second call gives %q %v, want %q", again, err, fingerprint)
	}
	if len(config.Certificates) != 1 {
		t.Errorf("%d certificates, want 1", len(config.Certificates))
	}
	if err := os.WriteFile(filepath.Join(dir, selfSignedFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := SelfSigned(dir); err == nil {
		t.Error("a damaged file is taken")
	}
}

func TestLoadFilesFollowsChanges(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write := func(data []byte) {
		t.Helper()
		for _, f := range []string{cert, key} {
			if err := os.WriteFile(f, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := LoadFiles(cert, key, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("missing files are taken")
	}
	first, err := newSelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	write(first)
	now := time.Unix(testTime, 0)
	f := &certificateFiles{certFile: cert, keyFile: key, log: slog.New(slog.DiscardHandler), now: func() time.Time { return now }}
	if err := f.load(); err != nil {
		t.Fatal(err)
	}
	before, _ := f.get(nil)
	write([]byte("torn"))
	if got, err := f.get(nil); got != before || err != nil {
		t.Error("files were looked at again at once")
	}
	now = now.Add(reloadInterval)
	if got, err := f.get(nil); got != before || err != nil {
		t.Errorf("torn files: %v, want the old certificate", err)
	}
	second, err := newSelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	write(append(second, '\n'))
	now = now.Add(reloadInterval)
	if got, err := f.get(nil); got == before || err != nil {
		t.Errorf("changed files: %v, want the new certificate", err)
	}
}
