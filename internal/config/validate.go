package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// DefaultDataDir is where the queue is kept when neither a setting nor systemd
// names a place.
const DefaultDataDir = "./sluice-data"

// Shapes of names that go into file names, SQL and cookies.
var (
	edgeID       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	tablesPrefix = regexp.MustCompile(`^[A-Za-z0-9_]{0,32}$`)
	cookieName   = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	cookiePath   = regexp.MustCompile(`^(/[!-:<-~]{0,200})?$`)
)

// Secrets is what the secret files hold.
type Secrets struct {
	MatomoToken Secret
	MySQLDSN    Secret
	ReaderDSN   Secret
	AdminToken  Secret
	ACME        ExternalAccount
	// QueueKeys are the bytes of the queue's keys, 32 each; the first encrypts.
	QueueKeys []Secret
}

// Complete fills in the data directory that systemd gives, or else the default.
// env has the form of [os.Environ].
func (c *Client) Complete(env []string) {
	if c.DataDir != "" {
		return
	}
	c.DataDir = DefaultDataDir
	for _, line := range env {
		// systemd gives several directories parted by colons; the first is the main one.
		if value, ok := strings.CutPrefix(line, "STATE_DIRECTORY="); ok && value != "" {
			c.DataDir, _, _ = strings.Cut(value, ":")
		}
	}
}

// Complete fills in what depends on the machine, the edge's name included.
func (s *Settings) Complete(env []string) {
	s.Client.Complete(env)
	if s.EdgeID == "" {
		host, _ := os.Hostname()
		s.EdgeID, _, _ = strings.Cut(host, ".")
		if !edgeID.MatchString(s.EdgeID) {
			s.EdgeID = "edge"
		}
	}
}

// A checker collects faults and warnings about settings that were read well but
// do not go together.
type checker struct {
	source   map[string]string
	bad      map[string]bool // settings whose value was refused when it was read
	faults   Faults
	warnings Faults
}

// Check looks at what one value alone cannot show and reads the secret files. It
// returns all faults, those of the values included, and what is doubtful.
func (l *Loader) Check(ctx *kong.Context, s *Settings) (secrets Secrets, faults, warnings Faults) {
	c := l.checker(ctx)
	c.names(s)
	c.listeners(s)
	c.tls(s)
	c.rates(&s.Proxy)
	c.warn(s)
	secrets.AdminToken = c.secret("admin.token-file", s.Admin.TokenFile)
	secrets.MatomoToken = c.secret("matomo.token-file", s.Matomo.TokenFile)
	secrets.MySQLDSN = c.secret("mysql.dsn-file", s.MySQL.DSNFile)
	secrets.ReaderDSN = c.secret("mysql.reader-dsn-file", s.MySQL.ReaderFile)
	secrets.ACME = c.externalAccount(s.TLS.ACMEEABFile)
	secrets.QueueKeys = c.keys(&s.Client)
	l.faults = append(l.faults, c.faults...)
	return secrets, l.Faults(), c.warnings
}

// CheckClient is what [Loader.Check] is to a daemon for a tool: it reads the admin
// token and returns the faults of the tool's own settings only, so that a tool works
// while the daemon's other settings are being edited.
func (l *Loader) CheckClient(ctx *kong.Context, s *Client) (Secret, Faults) {
	c := l.checker(ctx)
	if s.Admin.Listen == "" {
		c.fault("admin.listen", "off", "want the address of the running Sluice")
	}
	token := c.secret("admin.token-file", s.Admin.TokenFile)
	l.faults = append(l.faults, c.faults...)
	return token, l.Faults()
}

// CheckKeys reads the keys of the queue for a tool that reads the queue itself. They
// are no part of [Loader.CheckClient]: who may ask the running Sluice need not be able
// to read them.
func (l *Loader) CheckKeys(ctx *kong.Context, s *Client) ([]Secret, Faults) {
	c := l.checker(ctx)
	keys := c.keys(s)
	return keys, c.faults
}

func (l *Loader) checker(ctx *kong.Context) *checker {
	c := &checker{source: make(map[string]string), bad: make(map[string]bool)}
	for _, f := range l.faults {
		c.bad[f.Setting] = true
	}
	for _, flag := range ctx.Flags() {
		c.source[flag.Name] = l.source(ctx, flag)
	}
	return c
}

// fault says nothing about a setting whose value could not even be read: one fault
// a setting is enough.
func (c *checker) fault(setting, value, want string) {
	if c.bad[setting] {
		return
	}
	c.faults = append(c.faults, Fault{setting, value, c.source[setting], want})
}

func (c *checker) doubt(setting, value, want string) {
	c.warnings = append(c.warnings, Fault{setting, value, c.source[setting], want})
}

func (c *checker) names(s *Settings) {
	if s.Matomo.URL.URL == nil {
		c.fault("matomo.url", "", "is not set: want Matomo's address, such as https://stats.example.org")
	}
	if !edgeID.MatchString(s.EdgeID) {
		c.fault("edge.id", s.EdgeID, "want 1 to 63 letters, digits, dots, dashes and underscores")
	}
	if !tablesPrefix.MatchString(s.MySQL.TablesPrefix) {
		c.fault("mysql.tables-prefix", s.MySQL.TablesPrefix, "want at most 32 letters, digits and underscores")
	}
	if !cookieName.MatchString(s.Matomo.CookieIgnore) {
		c.fault("matomo.cookie-ignore", s.Matomo.CookieIgnore, "want a cookie's name")
	}
	if !cookieName.MatchString(s.Matomo.CookieVisitor) {
		c.fault("matomo.cookie-visitor", s.Matomo.CookieVisitor, "want a cookie's name")
	}
	if !cookiePath.MatchString(s.Matomo.CookiePath) {
		c.fault("matomo.cookie-path", s.Matomo.CookiePath, "want a path that begins with /")
	}
	if s.Matomo.CookieDomain != "" && !validHost(s.Matomo.CookieDomain) {
		c.fault("matomo.cookie-domain", s.Matomo.CookieDomain, "want a host name")
	}
	for _, h := range s.Sink.HeaderGroups {
		if strings.EqualFold(string(h), s.Sink.ForwardHeader) {
			c.fault("sink.header-groups", string(h), "is sink.forward-header already: want another header")
		}
	}
	if len(s.Sink.HeaderGroups) > maxHeaderGroups {
		c.fault("sink.header-groups", settingText(reflect.ValueOf(s.Sink.HeaderGroups)), fmt.Sprintf("want at most %d headers", maxHeaderGroups))
	}
}

func (c *checker) listeners(s *Settings) {
	if s.Admin.Listen == "" {
		c.fault("admin.listen", "off", "want HOST:PORT: health checks and all commands need it")
	}
	c.admin(&s.Admin)
	if s.Listen == "" && s.ListenHTTP == "" {
		c.fault("listen", "off", "want listen or listen-http")
	}
	if s.TLS.Mode == "off" && s.Listen != "" && s.ListenHTTP != "" {
		c.fault("listen-http", string(s.ListenHTTP), "with tls.mode off, listen is plain HTTP already: want off")
	}
}

// admin looks at who can reach the private listener and what keeps strangers out.
func (c *checker) admin(a *AdminSettings) {
	if (a.CertFile == "") != (a.KeyFile == "") {
		c.fault("admin.cert-file", a.CertFile, "want admin.cert-file and admin.key-file together")
	}
	if a.ClientCAFile != "" && a.CertFile == "" {
		c.fault("admin.client-ca-file", a.ClientCAFile, "client certificates need HTTPS: want admin.cert-file with it")
	}
	for _, f := range []struct{ setting, path string }{
		{"admin.cert-file", a.CertFile}, {"admin.key-file", a.KeyFile}, {"admin.client-ca-file", a.ClientCAFile},
	} {
		if _, err := os.Stat(f.path); f.path != "" && err != nil {
			c.fault(f.setting, f.path, reason(err))
		}
	}
	c.keyMode("admin.key-file", a.KeyFile)
	if a.Listen == "" || IsLoopback(a.Listen) {
		return
	}
	switch {
	case a.TokenFile == "" && a.ClientCAFile == "":
		c.fault("admin.listen", string(a.Listen), "others can reach it: want admin.token-file or admin.client-ca-file with it, or 127.0.0.1")
	case a.CertFile == "":
		c.doubt("admin.listen", string(a.Listen), "others can reach it, and the token crosses the network in clear: admin.cert-file makes it HTTPS")
	}
}

func (c *checker) rates(p *ProxySettings) {
	for _, r := range []struct {
		setting, of string
		burst, rate int
	}{
		{"proxy.address-burst", "proxy.address-rate", p.AddressBurst, p.AddressRate},
		{"proxy.site-burst", "proxy.site-rate", p.SiteBurst, p.SiteRate},
	} {
		if r.burst > 0 && r.rate == 0 {
			c.fault(r.setting, fmt.Sprint(r.burst), "is for nothing without "+r.of)
		}
	}
	if p.AccessLogFile == "" {
		c.fault("proxy.access-log-file", "", "want a file, or - for standard output")
	}
}

func (c *checker) warn(s *Settings) {
	for _, p := range s.Proxy.Trusted {
		if netip.Prefix(p).Bits() == 0 {
			c.doubt("proxy.trusted", netip.Prefix(p).String(), "everybody is believed: any client can invent its address")
		}
	}
	for _, p := range s.Proxy.ProtocolTrusted {
		if netip.Prefix(p).Bits() == 0 {
			c.doubt("proxy.protocol-trusted", netip.Prefix(p).String(), "everybody is believed: any client can invent its address")
		}
	}
}

// secret reads the file of one setting.
func (c *checker) secret(setting, path string) Secret {
	if path == "" {
		return ""
	}
	secret, warning, err := readSecret(path)
	c.judge(setting, path, warning, err)
	return secret
}

// keys reads the queue's keys.
func (c *checker) keys(s *Client) []Secret {
	const setting = "queue.encryption-key-file"
	path := s.QueueKeyFile
	if path == "" {
		return nil
	}
	keys, warning, err := readKeys(path)
	c.judge(setting, path, warning, err)
	if err == nil && within(path, s.DataDir) {
		c.doubt(setting, path, "lies in the directory that it protects: whoever takes the one has the other")
	}
	return keys
}

// judge reports what is wrong with a secret file. The value is shown only when it
// looks like a path: somebody may have written the secret itself there.
func (c *checker) judge(setting, path, warning string, err error) {
	shown := path
	if !strings.ContainsRune(path, filepath.Separator) || strings.ContainsAny(path, "@()=") {
		shown = ""
	}
	if err != nil {
		c.fault(setting, shown, err.Error())
	}
	if warning != "" {
		c.doubt(setting, shown, warning)
	}
}

// within reports whether a file that is there lies in a directory.
func within(path, dir string) bool {
	found := func(p string) string {
		p, err := filepath.Abs(p)
		if err == nil {
			p, err = filepath.EvalSymlinks(p)
		}
		if err != nil {
			return ""
		}
		return p
	}
	rel, err := filepath.Rel(found(dir), found(path))
	return err == nil && filepath.IsLocal(rel)
}

// IsLoopback reports whether only this machine can reach a listener.
func IsLoopback(a Address) bool {
	host, _, err := net.SplitHostPort(string(a))
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// settingText writes a value as it could stand in the file.
func settingText(v reflect.Value) string {
	switch value := v.Interface().(type) {
	case URL:
		if value.URL == nil {
			return ""
		}
		return value.String()
	case time.Duration:
		return value.String()
	case Address:
		if value == "" {
			return "off"
		}
		return string(value)
	case []Prefix:
		parts := make([]string, len(value))
		for i, p := range value {
			parts[i] = netip.Prefix(p).String()
		}
		return strings.Join(parts, ",")
	case []ResponseHeader:
		parts := make([]string, len(value))
		for i, h := range value {
			parts[i] = h.String()
		}
		return strings.Join(parts, ", ")
	case []HeaderName:
		parts := make([]string, len(value))
		for i, h := range value {
			parts[i] = string(h)
		}
		return strings.Join(parts, ",")
	case []Domain:
		parts := make([]string, len(value))
		for i, d := range value {
			parts[i] = string(d)
		}
		return strings.Join(parts, ",")
	case []Host:
		parts := make([]string, len(value))
		for i, h := range value {
			parts[i] = string(h)
		}
		return strings.Join(parts, ",")
	default:
		return fmt.Sprint(value)
	}
}
