package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/config"
	"sluice/proxy/certs"
)

// openAdminCertificates makes what the private listener shows, and whom it lets in by
// certificate; nothing without admin.cert-file.
func (e *edge) openAdminCertificates() (*tls.Config, error) {
	a := &e.settings.Admin
	if a.CertFile == "" {
		return nil, nil
	}
	var err error
	// Its metrics would be those of the public listener's certificates.
	e.adminCerts, err = certs.Open(certs.Config{Mode: certs.ModeFiles, CertFile: a.CertFile, KeyFile: a.KeyFile}, e.log.With("part", "admin"), metrics.NewSet())
	if err != nil {
		return nil, fmt.Errorf("admin.cert-file: %w", err)
	}
	c := e.adminCerts.TLSConfig()
	if a.ClientCAFile != "" {
		if c.ClientCAs, err = readRoots(a.ClientCAFile); err != nil {
			return nil, fmt.Errorf("admin.client-ca-file: %w", err)
		}
		// Health paths are for everybody; the rest asks for proof itself.
		c.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return c, nil
}

func readRoots(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%q holds no certificate in PEM", file)
	}
	return roots, nil
}

// adminClientTLS says how commands know the private listener and what they show to it;
// nil is plain HTTP.
func adminClientTLS(a *config.AdminSettings) (*tls.Config, error) {
	if a.CertFile == "" && a.CAFile == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.ClientCert != "" || a.ClientKey != "" {
		pair, err := tls.LoadX509KeyPair(a.ClientCert, a.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("admin.client-cert-file: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if a.CAFile != "" {
		var err error
		if c.RootCAs, err = readRoots(a.CAFile); err != nil {
			return nil, fmt.Errorf("admin.ca-file: %w", err)
		}
		return c, nil
	}
	known, err := os.ReadFile(a.CertFile)
	if err != nil {
		return nil, fmt.Errorf("admin.cert-file: %w", err)
	}
	// The listener is addressed as 127.0.0.1, which is in few certificates: that it shows
	// the very certificate of the file proves as much.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if block, _ := pem.Decode(known); block == nil || !bytes.Equal(state.PeerCertificates[0].Raw, block.Bytes) {
			return errors.New("the private listener shows another certificate than admin.cert-file has")
		}
		return nil
	}
	return c, nil
}
