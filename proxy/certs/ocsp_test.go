package certs

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"sluice/internal/testkit/pebble"
)

func TestGoodNewsOfTheResponderIsStapled(t *testing.T) {
	p := freePorts(t)
	var authority atomic.Pointer[pebble.CA]
	responder := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ca := authority.Load().Authority()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		request, err := ocsp.ParseRequest(body)
		if err != nil {
			t.Error(err)
			return
		}
		issuer := ca.GetIntermediateCert(0).Cert
		now := time.Now()
		answer, err := ocsp.CreateResponse(issuer, issuer, ocsp.Response{
			Status: ocsp.Good, SerialNumber: request.SerialNumber, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour),
		}, ca.GetIntermediateKey(0))
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(answer) // whoever asked is gone if this fails
	}))
	defer responder.Close()
	ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https, OCSP: responder.URL})
	authority.Store(ca)
	e := start(t, t.TempDir(), p, from(ca, "ocsp.example"))
	e.trusted(ca, "ocsp.example")
	var state tls.ConnectionState
	e.eventually("a staple is seen", func() bool {
		var err error
		if state, err = e.shake("ocsp.example", ca.Roots()); err != nil {
			t.Fatal(err)
		}
		return len(state.OCSPResponse) > 0
	})
	if r, err := ocsp.ParseResponse(state.OCSPResponse, nil); err != nil || r.Status != ocsp.Good {
		t.Errorf("got %v %v", r, err)
	}
}

func TestAResponderThatHangsHoldsNothingUp(t *testing.T) {
	p := freePorts(t)
	asked, done := make(chan struct{}), make(chan struct{})
	var once sync.Once
	responder := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		once.Do(func() { close(asked) })
		<-done
	}))
	defer responder.Close()
	defer close(done)
	ca := pebble.Start(t, pebble.Options{HTTPPort: p.http, TLSPort: p.https, OCSP: responder.URL})
	dir := t.TempDir()
	e := start(t, dir, p, from(ca, "hangs.example"))
	<-asked
	if _, err := e.shake("hangs.example", ca.Roots()); err != nil {
		t.Errorf("a new certificate waits for its staple: %v", err)
	}
	began := time.Now()
	e.stop()
	if took := time.Since(began); took > 2*stopWait {
		t.Errorf("the stop took %v, want %v at most", took, stopWait)
	}
	e = start(t, dir, p, from(ca, "hangs.example"))
	if _, err := e.shake("hangs.example", ca.Roots()); err != nil {
		t.Errorf("a stored certificate waits for its staple: %v", err)
	}
}
