package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

const (
	// lookInterval is how often certificate files are looked at because of handshakes,
	// at most.
	lookInterval = time.Second
	// watchInterval is how often they are looked at without one.
	watchInterval = 10 * time.Second
)

// openFiles reads a certificate chain and its key. They are read again when the files
// change: at a handshake at least a second after the last look, every ten seconds
// while run runs, and when reload is called. Files that do not fit together are left
// alone, complained about and counted, and the old ones stay in use.
func openFiles(certFile, keyFile string, log *slog.Logger, m *instruments) (*fileSource, error) {
	f := &fileSource{certFile: certFile, keyFile: keyFile, log: log, metrics: m, now: time.Now}
	f.seen = [2]fileMark{markOf(certFile), markOf(keyFile)}
	f.looked = f.now()
	if err := f.loadLocked(); err != nil {
		return nil, err
	}
	return f, nil
}

// A fileSource is a certificate that follows its files.
type fileSource struct {
	certFile, keyFile string
	log               *slog.Logger
	metrics           *instruments
	now               func() time.Time

	mu          sync.Mutex
	certificate *tls.Certificate // guarded by mu
	seen        [2]fileMark      // guarded by mu: the files that were last looked at
	looked      time.Time        // guarded by mu
}

// A fileMark tells whether a file is still the one that was read.
type fileMark struct {
	size     int64
	modified time.Time
}

func markOf(file string) fileMark {
	info, err := os.Stat(file)
	if err != nil {
		return fileMark{} // a missing file is a change, and reading it gives the error
	}
	return fileMark{info.Size(), info.ModTime()}
}

func (f *fileSource) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); now.Sub(f.looked) >= lookInterval {
		f.lookLocked(now)
	}
	return f.certificate, nil
}

func (f *fileSource) each(show func(string, *x509.Certificate)) {
	f.mu.Lock()
	leaf := f.certificate.Leaf
	f.mu.Unlock()
	show(nameOf(leaf), leaf)
}

// run notices changes while nobody connects.
func (f *fileSource) run(ctx context.Context) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f.mu.Lock()
			f.lookLocked(f.now())
			f.mu.Unlock()
		}
	}
}

func (f *fileSource) reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked = f.now()
	f.seen = [2]fileMark{markOf(f.certFile), markOf(f.keyFile)}
	return f.takeLocked()
}

func (f *fileSource) lookLocked(now time.Time) {
	f.looked = now
	if marks := [2]fileMark{markOf(f.certFile), markOf(f.keyFile)}; marks != f.seen {
		f.seen = marks
		// It is logged and counted; the next change is another chance.
		_ = f.takeLocked()
	}
}

func (f *fileSource) takeLocked() error {
	if err := f.loadLocked(); err != nil {
		f.metrics.reloadFailed.Inc()
		f.log.Warn("changed certificate files not taken, the old ones stay in use until the files change again", "err", err)
		return err
	}
	f.metrics.reloaded.Inc()
	f.log.Info("certificate loaded again", "name", nameOf(f.certificate.Leaf), "ends", f.certificate.Leaf.NotAfter)
	return nil
}

func (f *fileSource) loadLocked() error {
	certificate, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	f.certificate = &certificate
	return nil
}
