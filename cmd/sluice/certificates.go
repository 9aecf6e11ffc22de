package main

import (
	"crypto/tls"
	"path/filepath"
	"strings"
	"time"

	"sluice/internal/config"
	"sluice/proxy/certs"
)

// certsConfig translates the settings; it is not for tls.mode off.
func certsConfig(s *config.Settings, secrets config.Secrets) certs.Config {
	c := certs.Config{
		Mode: string(s.TLS.Mode), Dir: filepath.Join(s.DataDir, "tls"), MinVersion: tls.VersionTLS12,
		CertFile: s.TLS.CertFile, KeyFile: s.TLS.KeyFile,
		ACME: certs.ACME{
			OnDemand: s.TLS.OnDemand == "on", CA: s.TLS.ACMECA, Staging: s.TLS.ACMEStaging == "on", RootFile: s.TLS.ACMERootFile,
			Email: s.TLS.ACMEEmail, KeyID: secrets.ACME.KeyID, MACKey: secrets.ACME.Key.Reveal(),
		},
	}
	if s.TLS.MinVersion == "1.3" {
		c.MinVersion = tls.VersionTLS13
	}
	for _, d := range s.TLS.Domains {
		c.ACME.Domains = append(c.ACME.Domains, string(d))
	}
	c.ACME.HTTP, c.ACME.TLSALPN = s.Challenges()
	return c
}

// openCertificates makes what the HTTPS listener shows; there is none with tls.mode off.
func (e *edge) openCertificates() error {
	s := e.settings
	if s.TLS.Mode == "off" || s.Listen == "" {
		return nil
	}
	var err error
	if e.certs, err = certs.Open(certsConfig(s, e.secrets), e.log.With("part", "proxy"), e.set); err != nil {
		return &failure{exitSettings, "settings", err, "sluice check"}
	}
	e.fingerprint = e.certs.Fingerprint()
	return nil
}

// authority says what is stored of an authority's certificates. It asks nobody: what
// lacks is obtained while Sluice runs.
func (c *checkCommand) authority(secrets config.Secrets, now time.Time) (level, text string) {
	var missing []string
	var first certs.Stored
	for _, s := range certs.Find(certsConfig(&c.Settings, secrets)) {
		switch {
		case s.Ends.IsZero():
			missing = append(missing, s.Name)
		case first.Ends.IsZero() || s.Ends.Before(first.Ends):
			first = s
		}
	}
	level, text = levelOK, "certificate: acme"
	switch {
	case first.Ends.IsZero():
		level = levelUnset
	case now.After(first.Ends):
		level, text = levelWarn, text+", that of "+first.Name+" ended "+first.Ends.Format(time.DateOnly)
	case first.Ends.Sub(now) < warnBefore:
		level, text = levelWarn, text+", that of "+first.Name+" ends "+first.Ends.Format(time.DateOnly)
	default:
		text += ", until " + first.Ends.Format(time.DateOnly)
	}
	if c.TLS.OnDemand == "on" {
		return level, text + ", on demand"
	}
	if len(missing) > 0 {
		text += ", none yet for " + strings.Join(missing, ", ")
	}
	return level, text
}
