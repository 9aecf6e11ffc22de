package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/caddyserver/certmagic"
	"golang.org/x/time/rate"

	"sluice/internal/testkit"
	"sluice/internal/testkit/pebble"
)

func TestFirstIssue(t *testing.T) {
	tests := []struct {
		name      string
		http, tls bool
	}{
		{"by HTTP-01", true, false},
		{"by TLS-ALPN-01", false, true},
		{"by either", true, true},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// certmagic knows challenges by name for the whole process.
			names := []string{fmt.Sprintf("a%d.first.example", i), fmt.Sprintf("b%d.first.example", i)}
			p, dir := freePorts(t), t.TempDir()
			ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https})
			acme := from(ca, names...)
			acme.HTTP, acme.TLSALPN = tt.http, tt.tls
			e := start(t, dir, p, acme)
			e.trusted(ca, names...)
			if got := e.orders("obtained"); got != 2 || ca.Orders() != 2 {
				t.Errorf("%v obtained by %d orders, want 2 by 2", got, ca.Orders())
			}
			for _, name := range names {
				if left := e.metric(`sluice_proxy_cert_expiry_seconds{name="` + name + `"}`); left < 3600 {
					t.Errorf("%s has %v s left", name, left)
				}
			}
			if state, err := e.shake("", nil); err != nil || state.PeerCertificates[0].DNSNames[0] != names[0] {
				t.Errorf("a client that names nobody gets %v %v, want the first name", state.PeerCertificates[0].DNSNames, err)
			}
			if err := hitOver(e.client(ca.Roots()), names[1]); err != nil {
				t.Error(err)
			}
			e.stop()
			onlyOurs(t, filepath.Join(dir, "acme"))
		})
	}
}

// onlyOurs checks that nobody else may read what is kept.
func onlyOurs(t *testing.T, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if !d.IsDir() {
			files++
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%d files, %v", files, err)
	}
}

func TestForeignTokensAreMatomos(t *testing.T) {
	p := freePorts(t)
	ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https})
	e := start(t, t.TempDir(), p, from(ca, "foreign.example"))
	e.trusted(ca, "foreign.example")
	const path = "/.well-known/acme-challenge/of-somebody-else"
	request, err := http.NewRequest(http.MethodGet, "http://"+e.http+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "foreign.example"
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "matomo: "+path {
		t.Errorf("got %q %v, want Matomo's answer", body, err)
	}
}

func TestAnAuthoritysHandshakeEndsTheConnection(t *testing.T) {
	p := freePorts(t)
	ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https})
	acme := from(ca, "handshake.example")
	acme.HTTP = false
	e := start(t, t.TempDir(), p, acme)
	e.trusted(ca, "handshake.example")
	// Without an order there is no answer.
	if conn, err := tls.Dial("tcp", e.https, &tls.Config{ServerName: "handshake.example", NextProtos: []string{alpnProtocol}, InsecureSkipVerify: true}); err == nil {
		conn.Close()
		t.Error("a challenge is answered that nobody made")
	}
	// A client that offers more gets a certificate like any other, and no service.
	conn, err := tls.Dial("tcp", e.https, &tls.Config{ServerName: "handshake.example", NextProtos: []string{alpnProtocol, "x"}, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "GET /matomo.php?idsite=1&rec=1 HTTP/1.1\r\nHost: handshake.example\r\n\r\n") // it may be closed already
	if answer, _ := io.ReadAll(conn); len(answer) != 0 {
		t.Errorf("got %q, want nothing", answer)
	}
	if handed := e.metric("sluice_proxy_handed_connections_total"); handed != 0 {
		t.Errorf("%v connections went on, want 0", handed)
	}
	if logged := e.log.String(); strings.Contains(logged, conn.LocalAddr().String()) {
		t.Errorf("the log names a client:\n%s", logged)
	}
}

func TestRenewalDropsNoConnection(t *testing.T) {
	p := freePorts(t)
	ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https, Life: 30 * time.Second})
	acme := from(ca, "renewal.example")
	acme.pace.renewRatio = 0.9
	e := start(t, t.TempDir(), p, acme)
	e.trusted(ca, "renewal.example")
	first, err := e.shake("renewal.example", ca.Roots())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() { // ended by done
			client := e.client(ca.Roots())
			client.Transport.(*http.Transport).DisableKeepAlives = i%2 == 0 // half of them shake hands each time
			for {
				if err := hitOver(client, "renewal.example"); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	e.eventually("clients see the new certificate", func() bool {
		now, err := e.shake("renewal.example", ca.Roots())
		if err != nil {
			t.Fatal(err)
		}
		return now.PeerCertificates[0].SerialNumber.Cmp(first.PeerCertificates[0].SerialNumber) != 0
	})
	close(done)
	clients.Wait()
	if e.orders("renewed") < 1 || e.orders("failed") != 0 {
		t.Errorf("%v renewed, %v failed", e.orders("renewed"), e.orders("failed"))
	}
	if left := e.metric(`sluice_proxy_cert_expiry_seconds{name="renewal.example"}`); left < 20 || left > 31 {
		t.Errorf("%v s left, want nearly 30", left)
	}
}

func TestAnAuthorityThatIsDownDelaysNothing(t *testing.T) {
	p, dir := freePorts(t), t.TempDir()
	ca := pebble.StartDown(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https, Life: 3 * time.Second})
	acme := from(ca, "down.example")
	e := start(t, dir, p, acme)
	state, err := e.shake("down.example", nil)
	if err != nil || state.PeerCertificates[0].Subject.CommonName != "Sluice, self-signed" {
		t.Fatalf("got %v, want the self-signed certificate", err)
	}
	if err := hitOver(e.client(nil), "down.example"); err != nil {
		t.Error(err)
	}
	e.eventually("failures are counted", func() bool { return e.orders("failed") >= 2 })
	if e.metric("sluice_proxy_cert_fallbacks_total") < 2 || e.metric(`sluice_proxy_cert_expiry_seconds{name="down.example"}`) != 0 {
		t.Error("metrics do not show that there is no certificate")
	}
	ca.Up()
	e.trusted(ca, "down.example")

	// Now there is one on the disk, and the authority goes away for good.
	issued, err := e.shake("down.example", nil)
	if err != nil {
		t.Fatal(err)
	}
	ca.Down()
	e.stop()
	e = start(t, dir, p, acme)
	again, err := e.shake("down.example", nil)
	if err != nil || again.PeerCertificates[0].Issuer.String() != issued.PeerCertificates[0].Issuer.String() {
		t.Errorf("got %v, want the stored certificate at the first handshake", err)
	}
	e.eventually("it has expired", func() bool { return e.metric(`sluice_proxy_cert_expiry_seconds{name="down.example"}`) < 0 })
	old, err := e.shake("down.example", nil)
	if err != nil || old.PeerCertificates[0].Subject.CommonName == "Sluice, self-signed" {
		t.Errorf("got %v, want the expired certificate", err)
	}
	if _, err := e.shake("down.example", ca.Roots()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("a client says %v, want that it has expired", err)
	}
}

func TestAWrongAnswerToTheChallenge(t *testing.T) {
	p := freePorts(t)
	// The authority reaches somebody else, who answers everything.
	wrong, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })}
	go func() { _ = server.Serve(wrong) }() // ended by Close
	t.Cleanup(func() { server.Close() })
	ca := pebble.Start(t, pebble.Options{HTTPPort: wrong.Addr().(*net.TCPAddr).Port, TLSPort: p.https})
	acme := from(ca, "wrong.example")
	acme.TLSALPN, acme.pace.firstRetry, acme.pace.longestRetry = false, time.Hour, time.Hour
	e := start(t, t.TempDir(), p, acme)
	e.eventually("a failure is counted", func() bool { return e.orders("failed") == 1 })
	orders := ca.Orders()
	if err := hitOver(e.client(nil), "wrong.example"); err != nil {
		t.Error(err)
	}
	for range 20 { // what clients do starts no attempt
		if _, err := e.shake("wrong.example", nil); err != nil {
			t.Fatal(err)
		}
	}
	if e.orders("failed") != 1 || ca.Orders() != orders || orders > 2 {
		t.Errorf("%v failures and %d orders, want 1 and what one attempt took", e.orders("failed"), ca.Orders())
	}
	if logged := e.log.String(); !regexp.MustCompile(`level=WARN msg="certificate not obtained or not renewed, will try again" name=wrong.example in=1h[0-6]m`).MatchString(logged) {
		t.Errorf("the log does not say what failed and when it is tried again:\n%s", logged)
	}
	if err := e.keeper.Reload(); err != nil {
		t.Fatal(err)
	}
	e.eventually("a reload ends the pause", func() bool { return e.orders("failed") == 2 })
}

func TestPausesGrow(t *testing.T) {
	a := &acmeSource{log: testkit.Logger(t), metrics: newInstruments(metrics.NewSet())}
	a.cfg.pace = pace{}.withDefaults()
	for failures, want := range map[int]time.Duration{1: time.Minute, 2: 2 * time.Minute, 6: 32 * time.Minute, 7: time.Hour, 1000: time.Hour} {
		if got := a.failed("a.example", failures, errors.New("no")); got < want || got > want+want/10 {
			t.Errorf("after %d failures %v, want %v and a little", failures, got, want)
		}
	}
}

func TestExternalAccounts(t *testing.T) {
	p := freePorts(t)
	const id, key = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https, Accounts: map[string]string{id: key}})
	e := start(t, t.TempDir(), p, from(ca, "eab.example"))
	e.eventually("it is refused without one", func() bool { return e.orders("failed") >= 1 })
	e.stop()
	acme := from(ca, "eab.example")
	acme.KeyID, acme.MACKey = id, key
	e = start(t, t.TempDir(), p, acme)
	e.trusted(ca, "eab.example")
	if logged := e.log.String(); strings.Contains(logged, key) {
		t.Error("the log holds the key")
	}
}

func TestOnDemand(t *testing.T) {
	p := freePorts(t)
	ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https})
	acme := from(ca, "demand.example", "*.shop.example")
	acme.OnDemand = true
	dir := t.TempDir()
	e := start(t, dir, p, acme)
	for _, name := range []string{"other.example", "shop.example", "a.b.shop.example", "a_b.shop.example", "x.demand.example", ""} {
		state, err := e.shake(name, nil)
		if err != nil || state.PeerCertificates[0].Subject.CommonName != "Sluice, self-signed" {
			t.Errorf("%q gets %v, want the self-signed certificate", name, err)
		}
	}
	if ca.Orders() != 0 {
		t.Fatalf("%d orders for names that are nobody's", ca.Orders())
	}
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() { // ends with its handshake
			if _, err := e.shake("one.shop.example", ca.Roots()); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	if _, err := e.shake("DEMAND.example", ca.Roots()); err != nil {
		t.Error(err)
	}
	if ca.Orders() != 2 || e.orders("obtained") != 2 {
		t.Errorf("%d orders, want one a name", ca.Orders())
	}
	if state, err := e.shake("other.example", nil); err != nil || state.PeerCertificates[0].DNSNames[0] != "demand.example" {
		t.Errorf("another name gets %v, want the first name's certificate", err)
	}
	// What is stored needs no authority.
	e.stop()
	ca.Down()
	e = start(t, dir, p, acme)
	if _, err := e.shake("one.shop.example", ca.Roots()); err != nil {
		t.Error(err)
	}
	// What is not is asked for once, and then left alone for a while.
	e.keeper.acme.cfg.pace.firstRetry, e.keeper.acme.cfg.pace.longestRetry = time.Hour, time.Hour
	for range 5 {
		if _, err := e.shake("two.shop.example", nil); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(e.log.String(), "will try again\" name=two.shop.example"); n != 1 {
		t.Errorf("%d attempts, want 1", n)
	}
}

func TestStoredNamesOnDemandAreRenewed(t *testing.T) {
	p, dir := freePorts(t), t.TempDir()
	ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https, Life: time.Minute})
	acme := from(ca, "kept.example", "*.kept.example", "kept.example")
	acme.OnDemand = true
	e := start(t, dir, p, acme)
	for _, name := range []string{"kept.example", "a.kept.example"} {
		if _, err := e.shake(name, ca.Roots()); err != nil {
			t.Fatal(err)
		}
	}
	e.stop()
	acme.pace.renewRatio = 0.999 // due now
	e = start(t, dir, p, acme)
	e.eventually("the listed name is renewed by itself", func() bool { return e.orders("renewed") >= 1 })
	if _, err := e.shake("a.kept.example", ca.Roots()); err != nil {
		t.Error(err)
	}
	e.eventually("the other is once a client has come", func() bool { return strings.Contains(e.log.String(), `msg="certificate renewed" name=a.kept.example`) })
}

func TestNamesThatMayBeObtained(t *testing.T) {
	a := &acmeSource{cfg: ACME{Domains: []string{"www.example.org", "*.shop.example"}}}
	for name, want := range map[string]bool{
		"www.example.org": true, "example.org": false, "a.www.example.org": false, "": false,
		"a.shop.example": true, "a-1.shop.example": true, "shop.example": false, ".shop.example": false, "a.b.shop.example": false,
		"-a.shop.example": false, "a-.shop.example": false, "../a.shop.example": false, "*.shop.example": false, "a/b.shop.example": false,
		strings.Repeat("a", 64) + ".shop.example": false, "ashop.example": false,
	} {
		if got := a.allowed(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

func TestDamagedStorageIsOrderedAnew(t *testing.T) {
	p, dir := freePorts(t), t.TempDir()
	ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https})
	acme := from(ca, "torn.example")
	e := start(t, dir, p, acme)
	e.trusted(ca, "torn.example")
	e.stop()
	for i, damage := range []string{
		certmagic.StorageKeys.SitePrivateKey(issuerKey(acme), "torn.example"), certmagic.StorageKeys.SiteCert(issuerKey(acme), "torn.example"),
		certmagic.StorageKeys.SiteMeta(issuerKey(acme), "torn.example"),
	} {
		file := filepath.Join(dir, acmeDir, damage)
		if _, err := os.Stat(file); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		e := start(t, dir, p, acme)
		e.trusted(ca, "torn.example")
		e.eventually("it is ordered anew after damage to "+damage, func() bool { return ca.Orders() == i+2 })
		e.stop()
	}
}

// Edges that share a storage share certificates: one orders, the other takes.
func TestTwoEdgesWithOneStorage(t *testing.T) {
	p, q := freePorts(t), freePorts(t)
	ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https})
	acme := from(ca, "fleet.example")
	acme.Storage = &certmagic.FileStorage{Path: t.TempDir()}
	one, two := start(t, t.TempDir(), p, acme), start(t, t.TempDir(), q, acme)
	one.trusted(ca, "fleet.example")
	two.trusted(ca, "fleet.example")
	first, err := one.shake("fleet.example", ca.Roots())
	if err != nil {
		t.Fatal(err)
	}
	second, err := two.shake("fleet.example", ca.Roots())
	if err != nil || !first.PeerCertificates[0].Equal(second.PeerCertificates[0]) || ca.Orders() != 1 {
		t.Errorf("%d orders, %v, want one certificate", ca.Orders(), err)
	}
	if sum := one.orders("obtained") + two.orders("obtained"); sum != 1 {
		t.Errorf("%v obtained, want 1 together", sum)
	}
}

func TestStrangersCannotMakeTheEdgeAskForMuch(t *testing.T) {
	a := &acmeSource{
		demands: make(map[string]*demand), certs: make(map[string]*tls.Certificate),
		limiter: rate.NewLimiter(rate.Every(demandEvery), demandBurst),
	}
	now := time.Now()
	taken := 0
	for i := range 3 * demandBurst {
		if _, start := a.begin(fmt.Sprint(i), now, false); start {
			taken++
		}
	}
	if taken != demandBurst {
		t.Errorf("%d names at once, want %d", taken, demandBurst)
	}
	if _, start := a.begin("stored", now, true); !start {
		t.Error("a name with a stored certificate is refused")
	}
	for i := range 2 * maxDemands {
		a.begin(fmt.Sprint("stored", i), now, true)
	}
	if len(a.demands) != maxDemands {
		t.Errorf("%d names are kept, want %d", len(a.demands), maxDemands)
	}
	for _, d := range a.demands {
		d.retryAt = now // they could not be had
	}
	if _, start := a.begin("later", now.Add(time.Hour), false); !start || len(a.demands) != 1 {
		t.Errorf("%d names are kept, want room", len(a.demands))
	}
}

// TestARoundAfterTheEnd: a stop may come between the start of a name's goroutine and its
// first round.
func TestARoundAfterTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := new(acmeSource).round(ctx, "a.example", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
