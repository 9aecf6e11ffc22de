package config

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// An ExternalAccount binds an ACME account to one that the authority's operator made.
type ExternalAccount struct {
	KeyID string // not secret
	Key   Secret // of HMAC, in base64url without padding
}

func (c *checker) tls(s *Settings) {
	switch s.TLS.Mode {
	case "acme":
		c.acme(s)
	case "files":
		for _, f := range []struct{ setting, path string }{
			{"tls.cert-file", s.TLS.CertFile}, {"tls.key-file", s.TLS.KeyFile},
		} {
			if f.path == "" {
				c.fault(f.setting, "", "is not set: tls.mode files needs it")
			} else if _, err := os.Stat(f.path); err != nil {
				c.fault(f.setting, f.path, reason(err))
			}
		}
		c.keyMode("tls.key-file", s.TLS.KeyFile)
	default:
		if s.TLS.CertFile != "" || s.TLS.KeyFile != "" {
			c.doubt("tls.mode", string(s.TLS.Mode), "tls.cert-file and tls.key-file are used with tls.mode files only")
		}
	}
	if s.TLS.Mode != "acme" && (len(s.TLS.Domains) > 0 || s.TLS.OnDemand == "on" || s.TLS.ACMECA != "" || s.TLS.ACMEStaging == "on" || s.TLS.ACMEEABFile != "") {
		c.doubt("tls.mode", string(s.TLS.Mode), "tls.domains, tls.on-demand and tls.acme-* are used with tls.mode acme only")
	}
}

// keyMode refuses a private key that everybody may read.
func (c *checker) keyMode(setting, path string) {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&othersBits != 0 {
		c.fault(setting, path, fmt.Sprintf("others can use this file (mode %04o): want mode 0600 or 0640", info.Mode().Perm()))
	}
}

// acme looks at what an authority needs. Its port may be forwarded to another one here,
// which nobody can see from inside: that is a doubt, no fault.
func (c *checker) acme(s *Settings) {
	t := &s.TLS
	if len(t.Domains) == 0 {
		c.fault("tls.domains", "", "is not set: tls.mode acme needs the names of this edge")
	}
	for _, d := range t.Domains {
		if strings.HasPrefix(string(d), "*.") && t.OnDemand != "on" {
			c.fault("tls.domains", string(d), "a name with * needs tls.on-demand on: no certificate for all names at once can be had")
		}
	}
	if s.Listen == "" {
		c.fault("tls.mode", "acme", "listen is off: want listen, or tls.mode off")
	}
	http, alpn := s.Challenges()
	if t.ACMEChallenge == "http-01" && s.ListenHTTP == "" {
		c.fault("tls.acme-challenge", "http-01", "listen-http is off: want listen-http, or tls-alpn-01")
	}
	if (http || alpn) && (!http || port(s.ListenHTTP) != "80") && (!alpn || port(s.Listen) != "443") {
		c.doubt("tls.acme-challenge", string(t.ACMEChallenge), unreached(s, http, alpn))
	}
	switch u, err := url.Parse(t.ACMECA); {
	case t.ACMECA == "":
		if t.ACMERootFile != "" {
			c.doubt("tls.acme-root-file", t.ACMERootFile, "tls.acme-ca is not set: Let's Encrypt will not be known by these roots")
		}
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil:
		c.fault("tls.acme-ca", t.ACMECA, "want the address of an ACME directory that begins with https://")
	case t.ACMEStaging == "on":
		c.fault("tls.acme-staging", "on", "is Let's Encrypt's, and tls.acme-ca names another authority: want one of the two")
	}
	if t.ACMEEmail != "" && !strings.Contains(t.ACMEEmail, "@") {
		c.fault("tls.acme-email", t.ACMEEmail, "want one address, such as admin@example.org")
	}
	if t.ACMERootFile != "" {
		data, err := os.ReadFile(t.ACMERootFile)
		if err != nil {
			c.fault("tls.acme-root-file", t.ACMERootFile, reason(err))
		} else if !x509.NewCertPool().AppendCertsFromPEM(data) {
			c.fault("tls.acme-root-file", t.ACMERootFile, "holds no certificate in PEM")
		}
	}
}

// Challenges says which of an authority's checks can be answered.
func (s *Settings) Challenges() (http, alpn bool) {
	return s.ListenHTTP != "" && s.TLS.ACMEChallenge != "tls-alpn-01", s.Listen != "" && s.TLS.ACMEChallenge != "http-01"
}

// unreached says which forwarding an authority needs.
func unreached(s *Settings, http, alpn bool) string {
	var ways []string
	if http {
		ways = append(ways, "80 must lead to listen-http "+string(s.ListenHTTP))
	}
	if alpn {
		ways = append(ways, "443 must lead to listen "+string(s.Listen))
	}
	return "an authority asks ports 80 and 443 only: port " + strings.Join(ways, ", or ") + ", or no certificate can be had"
}

func port(a Address) string {
	_, port, _ := net.SplitHostPort(string(a))
	return port
}

// externalAccount reads the file of tls.acme-eab-file.
func (c *checker) externalAccount(path string) ExternalAccount {
	if path == "" {
		return ExternalAccount{}
	}
	account, warning, err := readExternalAccount(path)
	c.judge("tls.acme-eab-file", path, warning, err)
	return account
}

func readExternalAccount(path string) (account ExternalAccount, warning string, err error) {
	text, warning, err := readSecretFile(path)
	if err != nil {
		return ExternalAccount{}, "", err
	}
	words := strings.Fields(text)
	if len(words) != 2 {
		return ExternalAccount{}, "", errors.New("want two words, the key id and the HMAC key, parted by a space or a line end")
	}
	key := strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(words[1], "="))
	if raw, err := base64.RawURLEncoding.DecodeString(key); err != nil || len(raw) == 0 {
		return ExternalAccount{}, "", errors.New("the second word is no HMAC key: want base64url")
	}
	return ExternalAccount{KeyID: words[0], Key: Secret(key)}, warning, nil
}
