package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An authority signs certificates for a test.
type testAuthority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *testAuthority {
	t.Helper()
	a := &testAuthority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.make(name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, time.Hour)
	return a
}

// make signs a certificate, by itself when there is no authority yet, and writes it and
// its key to NAME.pem and NAME-key.pem.
func (a *testAuthority) make(name string, template *x509.Certificate, life time.Duration) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(life)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{a.file(name): {Type: "CERTIFICATE", Bytes: der}, a.file(name + "-key"): {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *testAuthority) file(name string) string { return filepath.Join(a.dir, name+".pem") }

func (a *testAuthority) client(name string, life time.Duration) {
	a.make(name, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, life)
}

func TestThePrivateListenerTakesClientCertificates(t *testing.T) {
	ours, foreign := newAuthority(t, "ours"), newAuthority(t, "foreign")
	ours.make("listener", &x509.Certificate{DNSNames: []string{"edge.internal"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, time.Hour)
	ours.client("operator", time.Hour)
	ours.client("retired", -time.Hour)
	foreign.client("operator", time.Hour)
	s := startServer(t, filepath.Join(t.TempDir(), "data"), nobody,
		"--admin.cert-file="+ours.file("listener"), "--admin.key-file="+ours.file("listener-key"), "--admin.client-ca-file="+ours.file("ours"))

	ask := func(method, path string, certificate ...string) string {
		t.Helper()
		c := &tls.Config{InsecureSkipVerify: true}
		if len(certificate) > 0 {
			pair, err := tls.LoadX509KeyPair(certificate[0], certificate[1])
			if err != nil {
				t.Fatal(err)
			}
			// It is shown whatever authorities the listener names.
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}}
		req, err := http.NewRequest(method, "https://"+s.private+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return "refused"
		}
		resp.Body.Close()
		return resp.Status
	}
	pair := func(a *testAuthority, name string) []string { return []string{a.file(name), a.file(name + "-key")} }
	for _, tt := range []struct {
		name, method, path string
		certificate        []string
		want               string
	}{
		{"health is for everybody", "GET", "/livez", nil, "200 OK"},
		{"metrics are not", "GET", "/metrics", nil, "401 Unauthorized"},
		{"orders are not", "POST", "/-/reload", nil, "401 Unauthorized"},
		{"a certificate of the authority reads", "GET", "/metrics", pair(ours, "operator"), "200 OK"},
		{"and gives orders", "POST", "/-/reload", pair(ours, "operator"), "200 OK"},
		{"one that has ended does not", "GET", "/metrics", pair(ours, "retired"), "refused"},
		{"one of another authority does not", "GET", "/metrics", pair(foreign, "operator"), "refused"},
		{"the listener's own is none of a client", "GET", "/metrics", pair(ours, "listener"), "refused"},
	} {
		if got := ask(tt.method, tt.path, tt.certificate...); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}

	// Commands know the listener by its file, or by its authority and name.
	elsewhere := "--data-dir=" + t.TempDir() // without the control key
	for _, tt := range []struct {
		name string
		args []string
		code int
	}{
		{"the file and a client certificate", []string{"--admin.cert-file=" + ours.file("listener"), "--admin.client-cert-file=" + ours.file("operator"), "--admin.client-key-file=" + ours.file("operator-key")}, exitOK},
		{"the file alone", []string{"--admin.cert-file=" + ours.file("listener")}, exitDenied},
		{"another file", []string{"--admin.cert-file=" + ours.file("operator")}, exitNotNow},
		{"its authority, but another name", []string{"--admin.ca-file=" + ours.file("ours")}, exitNotNow},
	} {
		if code, stdout, stderr := command(nil, append([]string{"queue", "stats", "--admin.listen=" + s.private, elsewhere}, tt.args...)...); code != tt.code {
			t.Errorf("%s: exit %d, want %d: %s%s", tt.name, code, tt.code, stdout, stderr)
		}
	}
	if code, _, stderr := command(nil, "healthcheck", "--admin.cert-file="+ours.file("listener"), "--admin.listen="+s.private, elsewhere); code != exitOK {
		t.Errorf("healthcheck: exit %d, %s", code, stderr)
	}

	// Who speaks plain HTTP is told so.
	resp, err := http.Get("http://" + s.private + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "HTTP request to an HTTPS server") {
		t.Errorf("plain HTTP gets %s, %q", resp.Status, text)
	}
}
