package certs

import (
	"context"
	"path/filepath"
	"time"

	"github.com/caddyserver/certmagic"
)

// directory is the address of the authority's directory.
func (c ACME) directory() string {
	switch {
	case c.CA != "":
		return c.CA
	case c.Staging:
		return certmagic.LetsEncryptStagingCA
	default:
		return certmagic.LetsEncryptProductionCA
	}
}

// Stored is what is kept of a configured name's certificate.
type Stored struct {
	Name string
	Ends time.Time // zero when there is no certificate
}

// Find tells what is stored for the names of a configuration with [ModeACME], patterns
// left out. It changes nothing and asks no authority.
func Find(cfg Config) []Stored {
	storage := cfg.ACME.Storage
	if storage == nil {
		storage = &certmagic.FileStorage{Path: filepath.Join(cfg.Dir, acmeDir)}
	}
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	var found []Stored
	for _, name := range cfg.ACME.Domains {
		if isPattern(name) {
			continue
		}
		s := Stored{Name: name}
		if certificate, err := stored(ctx, storage, issuerKey(cfg.ACME), name); err == nil {
			s.Ends = certificate.Leaf.NotAfter
		}
		found = append(found, s)
	}
	return found
}

// issuerKey is where certmagic keeps what the authority issued.
func issuerKey(c ACME) string {
	return (&certmagic.ACMEIssuer{CA: c.directory()}).IssuerKey()
}
