package admin

import (
	"bytes"
	"encoding/gob"
	"net/http"
	"testing"
)

// TestBrokenRequestsOfAnImport: of a body that is cut or is none, nothing is taken.
func TestBrokenRequestsOfAnImport(t *testing.T) {
	s := newServer(t, newWorld(), Config{})
	s.parts.LogImports = struct{ LogImports }{} // whoever calls it panics
	encoded := func(requests ...LoggedRequest) string {
		var b bytes.Buffer
		e := gob.NewEncoder(&b)
		for i := range requests {
			if err := e.Encode(&requests[i]); err != nil {
				t.Fatal(err)
			}
		}
		return b.String()
	}
	one := LoggedRequest{At: 1, Line: []byte("0123456789"), Target: []byte("/matomo.php?x=\xff")}
	good := encoded(one, one)
	for name, body := range map[string]string{
		"cut": good[:len(good)-1], "not gob": "{}\n", "another type": "\x03\x04\x00\x02",
		"too long": encoded(one, LoggedRequest{Target: make([]byte, MaxImport)}),
	} {
		for _, path := range []string{logImportsPath + "/check", logImportsPath + "/0000000000000001/requests"} {
			if got := ask(s, http.MethodPost, path, body, bearer+control); got.Code != http.StatusBadRequest {
				t.Errorf("%s, %s: %d %s", path, name, got.Code, got.Body)
			}
		}
	}
}
