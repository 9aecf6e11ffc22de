package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/VictoriaMetrics/metrics"
)

// What [Config.Mode] may say.
const (
	ModeSelfSigned = "self-signed" // one that nobody vouches for, made once
	ModeFiles      = "files"       // from Config.CertFile and Config.KeyFile
	ModeACME       = "acme"        // from an authority
)

// Config says where certificates come from.
type Config struct {
	Mode string
	// Dir is where a Keeper keeps what it makes and gets. It is made if missing, and
	// only its owner may read it.
	Dir        string
	MinVersion uint16 // of TLS; 1.2 when zero

	CertFile, KeyFile string // PEM, with [ModeFiles]

	ACME ACME // with [ModeACME]
}

// A source is one way of having certificates. All methods but run may be called at any
// time; run is called once, blocks until its context is done and waits for what it started.
type source interface {
	// get answers a handshake. It is called for each, from its own goroutine, and may block
	// for a few seconds only where a certificate is obtained on demand.
	get(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
	// each shows what is in use. A nil leaf is a name that has no certificate yet.
	each(show func(name string, leaf *x509.Certificate))
	run(ctx context.Context)
	// reload looks for something newer at once. After an error the old one stays.
	reload() error
}

// A Keeper holds the certificates of the public listener.
type Keeper struct {
	cfg         Config
	source      source
	acme        *acmeSource // nil unless [ModeACME]
	fingerprint string
}

// Open reads what is on the disk, makes a self-signed certificate if there is none,
// and checks cfg. It asks nobody. There is nothing to close.
func Open(cfg Config, log *slog.Logger, set *metrics.Set) (*Keeper, error) {
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS12
	}
	k := &Keeper{cfg: cfg}
	m := newInstruments(set)
	switch cfg.Mode {
	case ModeSelfSigned:
		made, err := selfSigned(cfg.Dir)
		if err != nil {
			return nil, err
		}
		k.source, k.fingerprint = fixedSource{made}, fingerprint(made)
	case ModeFiles:
		files, err := openFiles(cfg.CertFile, cfg.KeyFile, log, m)
		if err != nil {
			return nil, err
		}
		k.source = files
	case ModeACME:
		made, err := selfSigned(cfg.Dir)
		if err != nil {
			return nil, err
		}
		acme, err := openACME(cfg.ACME, filepath.Join(cfg.Dir, acmeDir), made, log, m)
		if err != nil {
			return nil, err
		}
		k.source, k.acme = acme, acme
	default:
		return nil, fmt.Errorf("certificates: mode %q is not known", cfg.Mode)
	}
	m.show(k.source)
	return k, nil
}

// Fingerprint is the SHA-256 of the certificate in hexadecimal digits with
// [ModeSelfSigned], and empty otherwise.
func (k *Keeper) Fingerprint() string { return k.fingerprint }

// suites are those of TLS 1.2 that keep their secrets when a key is lost, and that
// no padding oracle is known for. TLS 1.3 has its own, which are all good.
func suites() []uint16 {
	return []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
}

// TLSConfig gives settings for a listener: HTTP/2 and HTTP/1.1, session tickets whose
// keys change every day, and acme-tls/1 where that challenge may be used. A connection
// that negotiated acme-tls/1 has served its purpose and must be closed.
func (k *Keeper) TLSConfig() *tls.Config {
	c := &tls.Config{
		GetCertificate: k.source.get, MinVersion: k.cfg.MinVersion, CipherSuites: suites(),
		NextProtos: []string{"h2", "http/1.1"},
	}
	if k.acme != nil && k.cfg.ACME.TLSALPN {
		c.NextProtos = append(c.NextProtos, alpnProtocol)
	}
	return c
}

// AnswerChallenge answers an authority's HTTP-01 request if its token is one of ours.
// Otherwise it writes nothing and reports false.
func (k *Keeper) AnswerChallenge(w http.ResponseWriter, r *http.Request) bool {
	return k.acme != nil && k.acme.answerChallenge(w, r)
}

// Reload looks for newer certificates at once: files are read again whether they seem
// changed or not, and an authority is asked without waiting for the end of a pause.
// After an error the old certificate stays in use.
func (k *Keeper) Reload() error { return k.source.reload() }

// Run obtains, renews and watches until ctx is done, and returns nil. Call it once. An
// order that is under way when ctx ends is given up; the next start begins it again.
func (k *Keeper) Run(ctx context.Context) error {
	k.source.run(ctx)
	return nil
}

// A fixedSource is a certificate that never changes.
type fixedSource struct{ certificate *tls.Certificate }

func (s fixedSource) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate, nil }

func (s fixedSource) each(show func(string, *x509.Certificate)) {
	show(nameOf(s.certificate.Leaf), s.certificate.Leaf)
}

func (s fixedSource) run(ctx context.Context) { <-ctx.Done() }

func (s fixedSource) reload() error { return nil }

// nameOf gives the name by which a certificate is shown: its first.
func nameOf(leaf *x509.Certificate) string {
	switch {
	case len(leaf.DNSNames) > 0:
		return strings.ToLower(leaf.DNSNames[0])
	case len(leaf.IPAddresses) > 0:
		return leaf.IPAddresses[0].String()
	default:
		return leaf.Subject.CommonName
	}
}
