package certs

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

const (
	// roundTimeout bounds one attempt, waiting for another edge's attempt included.
	roundTimeout = 5 * time.Minute
	// stopWait bounds the wait for attempts that were told to stop. certmagic cannot be
	// called back from an OCSP responder that does not answer; that goroutine ends by
	// itself within 30 s, and changes nothing that anybody uses.
	stopWait = 3 * time.Second
)

// An engine is certmagic, set up to do one thing at a time when it is told to.
type engine struct {
	config *certmagic.Config
	cache  *certmagic.Cache // holds a certificate only while it is looked at
	issuer *certmagic.ACMEIssuer
}

// run obtains and renews until ctx is done.
func (a *acmeSource) run(ctx context.Context) {
	defer close(a.stopped)
	// certmagic opens a listener for challenges where it finds none. The answers are
	// given by the public listeners, wherever those are, so it is shown this one.
	decoy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.log.Error("certificates are not obtained and not renewed until a restart", "err", err)
		<-ctx.Done()
		return
	}
	var parts sync.WaitGroup
	defer waitFor(&parts, stopWait)
	defer decoy.Close()
	// It ends when the listener is closed.
	parts.Go(func() { swallow(decoy) })

	a.engine.Store(a.newEngine(decoy.Addr().(*net.TCPAddr).Port))
	defer a.engine.Store(nil)
	for _, name := range a.cfg.Domains {
		// On demand those that were stored are in use already, and no client has to ask.
		if !a.cfg.OnDemand || a.lookup(name) != nil {
			// It ends with ctx.
			parts.Go(func() { a.manage(ctx, name, nil) })
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case name := <-a.requests:
			// It ends with ctx, or when the name cannot be had.
			parts.Go(func() { a.manage(ctx, name, a.demanded(name)) })
		}
	}
}

// waitFor waits for the end of parts, for d at most.
func waitFor(parts *sync.WaitGroup, d time.Duration) {
	ended := make(chan struct{})
	// It ends with the parts.
	go func() {
		parts.Wait()
		close(ended)
	}()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	}
}

// swallow takes connections and closes them.
func swallow(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_ = conn.Close() // nobody expects anything of it
	}
}

func (a *acmeSource) newEngine(decoyPort int) *engine {
	e := &engine{}
	logger := newZap(a.log)
	e.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return e.config, nil },
		RenewCheckInterval: a.cfg.pace.look, // a certificate is renewed in time for the next look
		Logger:             logger,
	})
	// Its own maintenance would run beside ours, in goroutines that nobody waits for.
	e.cache.Stop()
	e.config = certmagic.New(e.cache, certmagic.Config{
		RenewalWindowRatio: a.cfg.pace.renewRatio,
		KeySource:          certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		// Without HTTPProxy certmagic asks with a client that has no time limit.
		OCSP:    certmagic.OCSPConfig{HTTPProxy: http.ProxyFromEnvironment},
		Storage: a.storage,
		OnEvent: a.event,
		Logger:  logger,
	})
	template := certmagic.ACMEIssuer{
		CA: a.cfg.CA, Email: a.cfg.Email, Agreed: true, TrustedRoots: a.roots,
		DisableHTTPChallenge: !a.cfg.HTTP, DisableTLSALPNChallenge: !a.cfg.TLSALPN,
		ListenHost: "127.0.0.1", AltHTTPPort: decoyPort, AltTLSALPNPort: decoyPort,
		Logger: logger,
	}
	if a.cfg.KeyID != "" {
		template.ExternalAccount = &acme.EAB{KeyID: a.cfg.KeyID, MACKey: a.cfg.MACKey}
	}
	e.issuer = certmagic.NewACMEIssuer(e.config, template)
	e.config.Issuers = []certmagic.Issuer{quietIssuer{e.issuer}}
	return e
}

// event counts what certmagic has achieved, and takes it into use before certmagic has
// asked an OCSP responder, which may not answer. What failed is counted by
// [acmeSource.failed], which also sees what certmagic does not report.
func (a *acmeSource) event(ctx context.Context, event string, data map[string]any) error {
	if event != "cert_obtained" {
		return nil
	}
	name, _ := data["identifier"].(string)
	if certificate, err := stored(ctx, a.storage, a.issuerKey, name); err == nil {
		a.put(name, certificate)
	}
	if renewal, _ := data["renewal"].(bool); renewal {
		a.metrics.renewed.Inc()
		a.log.Info("certificate renewed", "name", name)
	} else {
		a.metrics.obtained.Inc()
		a.log.Info("certificate obtained", "name", name)
	}
	return nil
}

// manage keeps the certificate of one name good until ctx is done. It looks at it every
// now and then: in storage, where another edge may have renewed it, at its OCSP staple
// and at when the authority wants it renewed. A name on demand that cannot be had is
// not managed: manage returns after the first attempt.
func (a *acmeSource) manage(ctx context.Context, name string, d *demand) {
	failures := 0
	if d != nil {
		failures = d.failures
	}
	for {
		a.mu.RLock()
		wake := a.wake // taken first, so that a reload during the round is not missed
		a.mu.RUnlock()
		err := a.round(ctx, name, failures)
		pause := a.cfg.pace.look
		switch {
		case ctx.Err() != nil:
			a.settle(name, d, failures, 0)
			return
		case err != nil:
			failures++
			pause = a.failed(name, failures, err)
		default:
			failures = 0
		}
		if !a.settle(name, d, failures, pause) {
			return
		}
		d = nil
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// failed counts and tells, and gives the time until the next attempt.
func (a *acmeSource) failed(name string, failures int, err error) time.Duration {
	a.metrics.failed.Inc()
	p := a.cfg.pace
	pause := p.longestRetry
	if shift := failures - 1; shift < 16 {
		pause = min(pause, p.firstRetry<<shift)
	}
	// Edges that failed together do not try again together.
	pause += time.Duration(rand.Int64N(int64(pause)/10 + 1))
	shown := "the self-signed one"
	if certificate := a.lookup(name); certificate != nil {
		shown = "the old one, until " + certificate.Leaf.NotAfter.UTC().Format(time.RFC3339)
	}
	a.log.Warn("certificate not obtained or not renewed, will try again", "name", name,
		"in", pause.Round(time.Second), "attempt", failures, "shown", shown, "err", err)
	return pause
}

// round loads the certificate of a name from storage, obtains or renews it if needed,
// and takes what it got into use, also when the rest of it failed.
func (a *acmeSource) round(ctx context.Context, name string, failures int) error {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	// After a failure certmagic tries a test directory first, where there is one.
	ctx = context.WithValue(ctx, certmagic.AttemptsCtxKey, &failures)
	e := a.engine.Load()
	if e == nil {
		return ctx.Err() // run has ended before the round began
	}
	err := e.config.ManageSync(ctx, []string{name})
	if err != nil && a.forgetTorn(ctx, name) {
		err = e.config.ManageSync(ctx, []string{name})
	}
	var newest *certmagic.Certificate
	for _, c := range e.cache.AllMatchingCertificates(name) {
		if newest == nil || c.Leaf.NotAfter.After(newest.Leaf.NotAfter) {
			newest = &c
		}
	}
	e.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: name}})
	if newest != nil {
		a.put(name, &newest.Certificate)
	}
	if err == nil && newest == nil {
		return fmt.Errorf("certificate of %s: neither a certificate nor an error", name)
	}
	return err
}

// forgetTorn makes certmagic order anew what it would complain about for ever: its
// three files of a certificate, of which a power cut left some old and some new. Only
// the description is removed; certificate and key are overwritten by the new ones.
func (a *acmeSource) forgetTorn(ctx context.Context, name string) bool {
	description := certmagic.StorageKeys.SiteMeta(a.issuerKey, name)
	text, err := a.storage.Load(ctx, description)
	if err != nil {
		return false
	}
	if _, err := stored(ctx, a.storage, a.issuerKey, name); !errors.Is(err, errTorn) && json.Valid(text) {
		return false
	}
	a.log.Warn("what is stored of a certificate is damaged, it is ordered anew", "name", name)
	return a.storage.Delete(ctx, description) == nil
}

// A quietIssuer never asks a human at the terminal, which certmagic's own does when
// there is no e-mail address and it is told to do one thing at a time.
type quietIssuer struct{ *certmagic.ACMEIssuer }

// PreCheck is part of [certmagic.PreChecker].
func (i quietIssuer) PreCheck(ctx context.Context, names []string, _ bool) error {
	return i.ACMEIssuer.PreCheck(ctx, names, false)
}

// Issue is part of [certmagic.Issuer].
func (i quietIssuer) Issue(ctx context.Context, request *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	return i.ACMEIssuer.Issue(ctx, request)
}
