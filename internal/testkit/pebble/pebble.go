// Package pebble runs Let's Encrypt's test authority inside a test, with a name
// server that leads every name to this machine.
package pebble

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/challtestsrv"
	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"

	"sluice/internal/testkit"
)

// Options say what the authority is like.
type Options struct {
	HTTPPort, TLSPort int               // where it looks for the answers to its challenges
	Life              time.Duration     // of its certificates; Pebble's default when zero
	Accounts          map[string]string // key id and HMAC key (base64url) of external accounts; one is required when any is given
	OCSP              string            // address of an OCSP responder, for the certificates
}

// A CA is an authority that can be away.
type CA struct {
	t       testing.TB
	ca      *ca.CAImpl
	handler http.Handler
	orders  atomic.Int64
	address string

	mu     sync.Mutex
	server *httptest.Server // guarded by mu; nil while it is away
}

// Start starts an authority that is there.
func Start(t *testing.T, o Options) *CA {
	t.Helper()
	c := StartDown(t, o)
	c.Up()
	return c
}

// StartDown starts an authority that is away until Up.
func StartDown(t *testing.T, o Options) *CA {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	t.Setenv("PEBBLE_AUTHZREUSE", "0")
	quiet := log.New(&testkit.Log{}, "", 0)
	store := db.NewMemoryStore()
	for id, key := range o.Accounts {
		if err := store.AddExternalAccountKeyByID(id, key); err != nil {
			t.Fatal(err)
		}
	}
	life := uint64(o.Life / time.Second)
	c := &CA{t: t, address: fmt.Sprintf("127.0.0.1:%d", testkit.FreePort(t))}
	c.ca = ca.New(quiet, store, o.OCSP, "rsa", 0, 1, map[string]ca.Profile{"default": {Description: "for tests", ValidityPeriod: life}})
	checker := va.New(quiet, o.HTTPPort, o.TLSPort, false, nameServer(t), store)
	front := wfe.New(quiet, store, checker, c.ca, []string{"ca.example"}, false, len(o.Accounts) > 0, 0, 0)
	handler := front.Handler()
	c.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/order-plz") {
			c.orders.Add(1)
		}
		handler.ServeHTTP(w, r)
	})
	t.Cleanup(c.Down)
	return c
}

// nameServer starts a name server where every name is this machine.
func nameServer(t *testing.T) string {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", testkit.FreePort(t))
	names, err := challtestsrv.New(challtestsrv.Config{Log: log.New(&testkit.Log{}, "", 0), DNSAddrs: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	names.SetDefaultDNSIPv6("")
	names.Run()
	t.Cleanup(names.Shutdown)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("tcp", address); err == nil {
			_ = conn.Close() // it was a question whether somebody is there
			return address
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the name server did not start")
		}
	}
}

// Up makes the authority answer, at the address that it always has.
func (c *CA) Up() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		return
	}
	listener, err := net.Listen("tcp", c.address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.server = httptest.NewUnstartedServer(c.handler)
	_ = c.server.Listener.Close() // it gets another one
	c.server.Listener = listener
	c.server.Config.ErrorLog = log.New(&testkit.Log{}, "", 0)
	c.server.StartTLS()
}

// Down makes the authority refuse connections.
func (c *CA) Down() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		c.server.CloseClientConnections()
		c.server.Close()
		c.server = nil
	}
}

// URL is the directory's address.
func (c *CA) URL() string { return "https://" + c.address + "/dir" }

// RootFile writes the root of the authority's own server, which is not the one that
// its certificates come from.
func (c *CA) RootFile() string {
	c.t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	certificate := server.Certificate() // the same for all servers of httptest
	server.Close()
	path := filepath.Join(c.t.TempDir(), "root.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw}), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// Roots trusts what the authority issues.
func (c *CA) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.GetRootCert(0).Cert)
	return pool
}

// Authority gives access to its keys.
func (c *CA) Authority() *ca.CAImpl { return c.ca }

// Orders counts the certificates that were ordered.
func (c *CA) Orders() int { return int(c.orders.Load()) }
