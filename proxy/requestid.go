package proxy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"
)

const (
	requestIDHeader = "X-Request-Id"
	maxRequestID    = 128
	newIDBytes      = 16
)

// idKey is under which a request's context has its id.
type idKey struct{}

// requestID gives the id that a request's context holds, "" without one.
func requestID(ctx context.Context) string {
	id, _ := ctx.Value(idKey{}).(string)
	return id
}

// identified gives a request an id: that of a trusted peer, else a new one.
func (s *Server) identified(r *http.Request) *http.Request {
	id := ""
	if v := r.Header[requestIDHeader]; len(v) == 1 && plainID(v[0]) && s.endpoint.trusts(remoteOf(r)) {
		id = v[0]
	} else {
		var b [newIDBytes]byte
		_, _ = rand.Read(b[:]) // it never fails
		id = hex.EncodeToString(b[:])
	}
	return r.WithContext(context.WithValue(r.Context(), idKey{}, id))
}

// plainID tells an id that fits headers, logs and pages as it is.
func plainID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for _, c := range []byte(id) {
		if !isAlnum(c) && c != '-' && c != '_' && c != '.' && c != ':' && c != '=' && c != '+' && c != '/' && c != '@' {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
