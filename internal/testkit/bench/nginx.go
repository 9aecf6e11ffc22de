package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// An nginx is the yardstick of accepting.
type nginx struct {
	*process
	http, https string // host:port
}

// nginxSettings answers every request with an empty image and writes what Sluice
// would keep of it to a log, at once. Connections are never closed for their
// number of requests, as Sluice does not either.
const nginxSettings = `
worker_processes 2;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx-error.log;
events { worker_connections 4096; }
http {
	client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s;
	uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	log_format hit '$msec $remote_addr $request_method $uri "$args" "$http_user_agent" "$http_accept_language" "$http_referer"';
	access_log %[1]s/nginx-access.log hit;
	keepalive_requests 1000000000;
	server {
		listen %[2]s;
		listen %[3]s ssl;
		ssl_certificate %[1]s/nginx-cert.pem;
		ssl_certificate_key %[1]s/nginx-key.pem;
		ssl_protocols TLSv1.2 TLSv1.3;
		location / { empty_gif; }
	}
}
`

func startNginx(ctx context.Context, dir string) (*nginx, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	if err := writeCertificate(filepath.Join(dir, "nginx-cert.pem"), filepath.Join(dir, "nginx-key.pem")); err != nil {
		return nil, err
	}
	n := &nginx{http: ports[0], https: ports[1]}
	settings := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(settings, fmt.Appendf(nil, nginxSettings, dir, n.http, n.https), 0o600); err != nil {
		return nil, err
	}
	n.process, err = start(dir, "nginx", nil, nil, "nginx", "-e", filepath.Join(dir, "nginx-error.log"), "-c", settings)
	if err != nil {
		return nil, err
	}
	const patience = 10 * time.Second
	starting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = n.until(starting, 10*time.Millisecond, func() bool {
		c, err := net.DialTimeout("tcp", n.http, time.Second)
		return err == nil && c.Close() == nil
	})
	if err != nil {
		n.stop()
		return nil, err
	}
	return n, nil
}

// writeCertificate makes a self-signed ECDSA P-256 certificate, the kind that
// sluice makes for itself.
func writeCertificate(certPath, keyPath string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
}
