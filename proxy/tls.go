package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// selfSignedFile holds the certificate and its key, so that the two cannot
	// come apart.
	selfSignedFile = "self-signed.pem"
	// selfSignedLife is long, because clients pin what nobody vouches for.
	selfSignedLife = 10 * 365 * 24 * time.Hour
	// reloadInterval is how often certificate files are looked at, at most.
	reloadInterval = time.Second
)

// SelfSigned makes a certificate that nobody vouches for, or finds the one made
// before, in a file of dir that only its owner can read. It returns settings for
// a listener and the certificate's SHA-256 fingerprint in hexadecimal digits. The
// directory is made if missing.
func SelfSigned(dir string) (*tls.Config, string, error) {
	file := filepath.Join(dir, selfSignedFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if data, err = newSelfSigned(); err == nil {
			err = writeOnce(dir, file, data)
		}
	}
	if err != nil {
		return nil, "", fmt.Errorf("self-signed certificate: %w", err)
	}
	certificate, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, "", fmt.Errorf("self-signed certificate %q: %w", file, err)
	}
	sum := sha256.Sum256(certificate.Certificate[0])
	return &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		hex.EncodeToString(sum[:]), nil
}

// newSelfSigned makes a certificate for this machine's names and its key, as PEM.
func newSelfSigned() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Sluice, self-signed"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(selfSignedLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if name, err := os.Hostname(); err == nil && name != "localhost" {
		template.DNSNames = append(template.DNSNames, name)
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyBytes})...), nil
}

// writeOnce writes a file that only its owner can read, whole or not at all.
func writeOnce(dir, file string, data []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temporary, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = temporary.Write(data)
	err = errors.Join(err, temporary.Sync(), temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary.Name()))
	}
	return nil
}

// LoadFiles reads a certificate chain and its key, and reads them again when the
// files change, at a handshake at least a second after the last look. Files that
// do not fit together are left alone and complained about in log, and the old
// ones stay in use.
func LoadFiles(certFile, keyFile string, log *slog.Logger) (*tls.Config, error) {
	f := &certificateFiles{certFile: certFile, keyFile: keyFile, log: log, now: time.Now}
	if err := f.load(); err != nil {
		return nil, err
	}
	return &tls.Config{GetCertificate: f.get, MinVersion: tls.VersionTLS12}, nil
}

// certificateFiles is a certificate that follows its files.
type certificateFiles struct {
	certFile, keyFile string
	log               *slog.Logger
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

func (f *certificateFiles) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); now.Sub(f.looked) >= reloadInterval {
		f.looked = now
		if marks := [2]fileMark{markOf(f.certFile), markOf(f.keyFile)}; marks != f.seen {
			f.seen = marks
			if err := f.loadLocked(); err != nil {
				f.log.Warn("changed certificate not taken, the old one stays", "err", err)
			} else {
				f.log.Info("certificate loaded again")
			}
		}
	}
	return f.certificate, nil
}

func (f *certificateFiles) load() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = [2]fileMark{markOf(f.certFile), markOf(f.keyFile)}
	f.looked = f.now()
	return f.loadLocked()
}

func (f *certificateFiles) loadLocked() error {
	certificate, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	f.certificate = &certificate
	return nil
}
