package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestACMESettings(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	const names, open = "--tls.domains=stats.example.org", " --listen=:443 --listen-http=:80"
	tests := []struct {
		name, args  string
		fault, warn string // part of the one there is; "" for none
	}{
		{"names and public ports are all it needs", names + open, "", ""},
		{"names are needed", open, "tls.domains: is not set", ""},
		{"names are host names", "--tls.domains=https://a.example" + open, "want host names", ""},
		{"addresses are no names", "--tls.domains=192.0.2.1" + open, "want host names", ""},
		{"a bare * is no name", "--tls.domains=*" + open, "want host names", ""},
		{"a * inside is no name", "--tls.domains=a.*.example.org" + open, "want host names", ""},
		{"*. before a top-level domain is no name", "--tls.domains=*.org --tls.on-demand=on" + open, "want host names", ""},
		{"a pattern needs certificates on demand", "--tls.domains=*.example.org" + open, "needs tls.on-demand on", ""},
		{"a pattern on demand is good", "--tls.domains=*.example.org,A.example.org --tls.on-demand=on" + open, "", ""},
		{"another port of HTTPS is doubtful", names, "", "port 443 must lead to listen :8443, or no certificate"},
		{"other ports of both are doubtful", names + " --listen-http=:8080", "", "port 80 must lead to listen-http :8080, or 443 must lead to listen :8443"},
		{"one public port is enough", names + " --listen-http=:80", "", ""},
		{"the port that is not asked does not count", names + " --listen-http=:80 --tls.acme-challenge=tls-alpn-01", "", "port 443 must lead"},
		{"HTTP-01 needs the plain listener", names + " --listen=:443 --tls.acme-challenge=http-01", "listen-http is off", ""},
		{"a listener is needed", names + " --listen=off --listen-http=:80", "listen is off", ""},
		{"another authority is good", names + open + " --tls.acme-ca=https://ca.example/acme/acme/directory", "", ""},
		{"an authority in clear is refused", names + open + " --tls.acme-ca=http://ca.example/directory", "begins with https://", ""},
		{"an authority with a password is refused", names + open + " --tls.acme-ca=https://a:b@ca.example/directory", "begins with https://", ""},
		{"staging is good", names + open + " --tls.acme-staging=on", "", ""},
		{"staging of another authority is refused", names + open + " --tls.acme-staging=on --tls.acme-ca=https://ca.example/d", "want one of the two", ""},
		{"an address for mail is good", names + open + " --tls.acme-email=a@example.org", "", ""},
		{"another is refused", names + open + " --tls.acme-email=admin", "want one address", ""},
		{"a root that is not there is refused", names + open + " --tls.acme-ca=https://ca.example/d --tls.acme-root-file=" + dir + "/no", "no such file", ""},
		{"a root that is none is refused", names + open + " --tls.acme-ca=https://ca.example/d --tls.acme-root-file=" + empty, "no certificate in PEM", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := load(t, append(strings.Fields(tt.args), "--tls.mode=acme", url), nil)
			if tt.fault == "" && len(l.faults) > 0 || tt.fault != "" && (len(l.faults) != 1 || !strings.Contains(l.faults[0].Error(), tt.fault)) {
				t.Errorf("faults %v, want one with %q", l.faults, tt.fault)
			}
			if tt.fault != "" {
				return
			}
			if tt.warn == "" && len(l.warnings) > 0 || tt.warn != "" && (len(l.warnings) != 1 || !strings.Contains(l.warnings[0].Error(), tt.warn)) {
				t.Errorf("warnings %v, want one with %q", l.warnings, tt.warn)
			}
		})
	}
	l := load(t, []string{url, "--tls.domains=A.example.org", "--tls.acme-staging=on"}, nil)
	if len(l.warnings) != 1 || !strings.Contains(l.warnings[0].Error(), "used with tls.mode acme only") {
		t.Errorf("without the mode: %v", l.warnings)
	}
	if got := l.values["tls.domains"].Text; got != "a.example.org" {
		t.Errorf("names are shown as %q", got)
	}
}

func TestExternalAccountFiles(t *testing.T) {
	tests := []struct {
		name, text string
		id, key    string
		fault      string
	}{
		{"on one line is read", "kid-1 c2VjcmV0LWtleQ\n", "kid-1", "c2VjcmV0LWtleQ", ""},
		{"on two lines is read", "kid-1\nc2VjcmV0LWtleQ\n", "kid-1", "c2VjcmV0LWtleQ", ""},
		{"in common base64 is read", "kid-1 +/+/YWE=", "kid-1", "-_-_YWE", ""},
		{"without a key is refused", "kid-1", "", "", "want two words"},
		{"with more is refused", "kid-1 c2VjcmV0 x", "", "", "want two words"},
		{"with a key that is none is refused", "kid-1 se!cret", "", "", "is no HMAC key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, "eab", tt.text, 0o600)
			l := load(t, []string{url, "--tls.mode=acme", "--tls.domains=a.example", "--listen=:443", "--tls.acme-eab-file=" + path}, nil)
			if tt.fault != "" {
				if len(l.faults) != 1 || !strings.Contains(l.faults[0].Error(), tt.fault) || strings.Contains(l.faults[0].Error(), "se!cret") {
					t.Errorf("got %v, want one with %q and without the key", l.faults, tt.fault)
				}
				return
			}
			if len(l.faults) > 0 || l.secrets.ACME.KeyID != tt.id || l.secrets.ACME.Key.Reveal() != tt.key {
				t.Errorf("got %v, %q %q", l.faults, l.secrets.ACME.KeyID, l.secrets.ACME.Key.Reveal())
			}
		})
	}
	open := write(t, "eab", "kid-1 c2VjcmV0", 0o644)
	if l := load(t, []string{url, "--tls.acme-eab-file=" + open}, nil); len(l.faults) != 1 || !strings.Contains(l.faults[0].Error(), "others can use this file") {
		t.Errorf("a file that everybody reads: %v", l.faults)
	}
}
