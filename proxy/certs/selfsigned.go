package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"sluice/internal/durable"
)

const (
	// selfSignedFile holds the certificate and its key, so that the two cannot
	// come apart.
	selfSignedFile = "self-signed.pem"
	// selfSignedLife is long, because clients pin what nobody vouches for.
	selfSignedLife = 10 * 365 * 24 * time.Hour
)

// selfSigned makes a certificate that nobody vouches for, or finds the one made
// before, in a file of dir that only its owner can read. The directory is made if
// missing.
func selfSigned(dir string) (*tls.Certificate, error) {
	file := filepath.Join(dir, selfSignedFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if data, err = newSelfSigned(); err == nil {
			err = errors.Join(os.MkdirAll(dir, 0o700), durable.WriteFile(file, data))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w", err)
	}
	certificate, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate %q: %w", file, err)
	}
	return &certificate, nil
}

// fingerprint is what a human compares.
func fingerprint(c *tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return hex.EncodeToString(sum[:])
}

// newSelfSigned makes a certificate for this machine's names and its key, as PEM.
func newSelfSigned() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Sluice, self-signed"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(selfSignedLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if name, err := os.Hostname(); err == nil && name != "localhost" {
		template.DNSNames = append(template.DNSNames, name)
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyBytes})...), nil
}
