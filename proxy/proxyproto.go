package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pires/go-proxyproto"
)

const (
	// leastProxyHeader is the length of the shortest header, "PROXY UNKNOWN" with its
	// line end: so many bytes can be read without reading into what follows.
	leastProxyHeader = 15
	// maxProxyLine is the length of the longest header of version 1.
	maxProxyLine = 107
	// proxyFixed is the part of a header of version 2 that says how long the rest is.
	proxyFixed = 16
	// maxProxyRest bounds that rest, in bytes. The format allows 64 KiB; addresses and
	// what balancers add to them take some hundred.
	maxProxyRest = 4 << 10
)

// Where a header of version 2 has its parts, and the command and the family of a
// connection that a proxy passes on without saying whose it is.
const (
	proxyCommandAt   = 12
	proxyFamilyAt    = 13
	proxyLengthAt    = 14
	proxyCommand     = 0x21
	proxyUnspecified = 0
)

var (
	errProxyHeader     = errors.New("not a header of the PROXY protocol")
	errProxyHeaderLong = errors.New("the header of the PROXY protocol is too long")
	errProxyDatagram   = errors.New("the header of the PROXY protocol is for datagrams")
)

// takeProxyHeader reads the header with which a peer of Tunables.ProxyProtocol must
// begin a connection. From then on the address in it is the connection's peer. It
// answers false when there is no such header within the time for headers; then the
// caller closes the connection. A peer that hangs up without a word is a health check
// and is not counted.
func (s *Server) takeProxyHeader(c *countedConn) bool {
	err := c.SetReadDeadline(time.Now().Add(s.limits().HeaderTimeout))
	var from net.Addr
	if err == nil {
		from, err = readProxyHeader(c)
	}
	if err == nil {
		err = c.SetReadDeadline(time.Time{})
	}
	if err == nil {
		c.claimed = from
		return true
	}
	if err != io.EOF {
		s.metrics.badInput("proxy_protocol")
		s.detail.Debug("connection without a good header of the PROXY protocol", "err", err)
	}
	return false
}

// readProxyHeader reads a header of the PROXY protocol, version 1 or 2, and not a byte
// more: what follows may be TLS or HTTP. A header of version 1 is read byte by byte for
// that, which costs some fifty system calls for each connection. From is nil when the
// header names nobody, so that the peer speaks for itself. The error is io.EOF only when
// there was not a byte.
func readProxyHeader(r io.Reader) (from net.Addr, err error) {
	b, err := proxyHeaderBytes(r)
	if err != nil {
		return nil, err
	}
	if len(b) >= proxyFixed && b[0] == proxyproto.SIGV2[0] && b[proxyCommandAt] == proxyCommand && b[proxyFamilyAt] == proxyUnspecified {
		return nil, nil
	}
	whole := bytes.NewReader(b)
	// The buffer holds all of it, since the library wants no header in pieces.
	header, err := proxyproto.Read(bufio.NewReaderSize(whole, len(b)))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the header of the PROXY protocol: %w", err)
	case header.Command.IsLocal() || header.TransportProtocol.IsUnix():
		return nil, nil
	}
	source, _, ok := header.TCPAddrs()
	if !ok {
		return nil, errProxyDatagram
	}
	return source, nil
}

// proxyHeaderBytes reads the bytes of a header by its length alone.
func proxyHeaderBytes(r io.Reader) ([]byte, error) {
	b := make([]byte, leastProxyHeader, maxProxyLine)
	if n, err := io.ReadFull(r, b); err != nil {
		if n == 0 && !isTimeout(err) {
			return nil, io.EOF // however it was closed
		}
		return nil, unexpected(err)
	}
	switch {
	case bytes.HasPrefix(b, proxyproto.SIGV2):
		b = b[:proxyFixed]
		if _, err := io.ReadFull(r, b[leastProxyHeader:]); err != nil {
			return nil, unexpected(err)
		}
		rest := int(binary.BigEndian.Uint16(b[proxyLengthAt:]))
		if rest > maxProxyRest {
			return nil, errProxyHeaderLong
		}
		b = append(b, make([]byte, rest)...)
		if _, err := io.ReadFull(r, b[proxyFixed:]); err != nil {
			return nil, unexpected(err)
		}
		return b, nil
	case bytes.HasPrefix(b, proxyproto.SIGV1):
		for b[len(b)-1] != '\n' {
			if len(b) == maxProxyLine {
				return nil, errProxyHeaderLong
			}
			b = b[:len(b)+1]
			if _, err := io.ReadFull(r, b[len(b)-1:]); err != nil {
				return nil, unexpected(err)
			}
		}
		return b, nil
	}
	return nil, errProxyHeader
}

// unexpected tells the end within a header from the end of a silent connection.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
