package main

import (
	"cmp"
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

// An nginx is a yardstick, or what stands behind both sides.
type nginx struct {
	*process
	http, https string // host:port
}

// nginxSettings answers a hit with an empty image and writes what Sluice would keep
// of it to a log, at once. It has matomo.js as a file and passes index.php on.
// Connections are never closed for their number of requests, as Sluice does not
// either.
const nginxSettings = `
worker_processes 2;
worker_rlimit_nofile 8192;
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
	sendfile on;
	tcp_nopush on;
	types { text/html html; application/javascript js; }
	upstream behind {
		server %[4]s;
		keepalive 256;
		keepalive_requests 1000000000;
	}
	server {
		listen %[2]s;
		listen %[3]s ssl;
		ssl_certificate %[1]s/nginx-cert.pem;
		ssl_certificate_key %[1]s/nginx-key.pem;
		ssl_protocols TLSv1.2 TLSv1.3;
		location / { empty_gif; }
		location = /matomo.js {
			root %[1]s/www;
			gzip_static on;
			open_file_cache max=10;
			add_header Cache-Control "public, max-age=3600";
			access_log off;
		}
		location = /index.php {
			proxy_pass http://behind;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Proto $scheme;
			access_log off;
		}
	}
}
`

// startNginx starts the yardstick. Behind is where it passes requests on to, as
// host:port, "" for nowhere.
func startNginx(ctx context.Context, dir, behind string) (*nginx, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	if err := writeCertificate(filepath.Join(dir, "nginx-cert.pem"), filepath.Join(dir, "nginx-key.pem")); err != nil {
		return nil, err
	}
	return runNginx(ctx, dir, "nginx", ports[0], ports[1], fmt.Sprintf(nginxSettings, dir, ports[0], ports[1], cmp.Or(behind, nowhere)))
}

// backendSettings is a Matomo that answers pages as fast as can be.
const backendSettings = `
worker_processes 1;
daemon off;
pid %[1]s/backend.pid;
error_log %[1]s/backend-error.log;
events { worker_connections 4096; }
http {
	client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s;
	uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	access_log off;
	keepalive_requests 1000000000;
	sendfile on;
	tcp_nopush on;
	types { application/javascript js; }
	default_type "text/html; charset=utf-8";
	open_file_cache max=10;
	server {
		listen %[2]s;
		root %[1]s/www;
	}
}
`

// startBackend starts the server that both pass pages on to.
func startBackend(ctx context.Context, dir string) (*nginx, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	return runNginx(ctx, dir, "backend", ports[0], "", fmt.Sprintf(backendSettings, dir, ports[0]))
}

func runNginx(ctx context.Context, dir, name, http, https, text string) (*nginx, error) {
	n := &nginx{http: http, https: https}
	settings := filepath.Join(dir, name+".conf")
	err := os.WriteFile(settings, []byte(text), 0o600)
	if err != nil {
		return nil, err
	}
	n.process, err = start(dir, name, nil, nil, "nginx", "-e", filepath.Join(dir, name+"-error.log"), "-c", settings)
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
