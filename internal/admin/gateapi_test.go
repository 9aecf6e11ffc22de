package admin

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A gateDouble is a gate that answers with what it was asked.
type gateDouble struct{ asked []string }

func (g *gateDouble) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	g.asked = append(g.asked, r.Method+" "+r.URL.String()+" "+string(body))
	_, _ = io.WriteString(w, g.asked[len(g.asked)-1])
}

// TestWhoMayAskTheGate: questions are for those who may read, orders for those in
// control, and nothing that is refused reaches the gate.
func TestWhoMayAskTheGate(t *testing.T) {
	const complete = GatePath + "complete?site=all"
	tests := []struct {
		name         string
		token        string // configured
		method, path string
		header       string
		want         int
	}{
		{"questions are open without a token configured", "", "GET", complete, "", 200},
		{"so is their head", "", "HEAD", complete, "", 200},
		{"the list of holds is a question", "", "GET", GatePath + "holds", "", 200},
		{"questions ask for the token when there is one", token, "GET", complete, "", 401},
		{"so does their head", token, "HEAD", complete, "", 401},
		{"questions take the token", token, "GET", complete, bearer + token, 200},
		{"questions take the control key", token, "GET", complete, bearer + control, 200},
		{"a wrong token is refused", token, "GET", complete, bearer + token + "x", 401},
		{"orders ask for control without a token configured", "", "POST", GatePath + "holds", "", 401},
		{"orders ask for control when there is a token", token, "POST", GatePath + "holds", "", 401},
		{"an empty token is no control", "", "POST", GatePath + "holds", bearer, 401},
		{"orders take the control key", "", "POST", GatePath + "holds", bearer + control, 200},
		{"orders take the token", token, "POST", GatePath + "lock", bearer + token, 200},
		{"a release asks for control", "", "DELETE", GatePath + "holds/logs", "", 401},
		{"a release takes the control key", "", "DELETE", GatePath + "holds/logs?who=anna", bearer + control, 200},
		{"a rebuild asks for control", "", "POST", GatePath + "rebuild", "", 401},
		{"there are no other methods", "", "PUT", GatePath + "holds", bearer + control, 405},
		{"nor these", "", "PATCH", GatePath + "holds/logs", bearer + control, 405},
		{"an order from another page is refused", "", "POST", GatePath + "holds", "Sec-Fetch-Site: cross-site", 403},
		{"a foreign name is refused", "", "GET", complete, "Host: rebound.example", 403},
		{"what is beside the gate is not the gate's", "", "GET", "/gate/v2/complete", "", 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			gate := &gateDouble{}
			s := newServer(t, newWorld(), Config{Token: tt.token})
			s.parts.Gate = gate
			got := ask(s, tt.method, tt.path, `{"name":"logs"}`, tt.header)
			if got.Code != tt.want {
				t.Errorf("%s %s answers %d, want %d: %s", tt.method, tt.path, got.Code, tt.want, got.Body)
			}
			want := tt.method + " " + tt.path + ` {"name":"logs"}`
			if tt.want == 200 && (len(gate.asked) != 1 || gate.asked[0] != want) {
				t.Errorf("the gate was asked %q, want %q", gate.asked, want)
			}
			if tt.want != 200 && len(gate.asked) != 0 {
				t.Errorf("the gate was asked %q, want nothing", gate.asked)
			}
			if got.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("headers are %v", got.Header())
			}
			if tt.want == 401 && got.Header().Get("WWW-Authenticate") == "" {
				t.Error("a 401 without WWW-Authenticate")
			}
		})
	}
}

// TestWithoutAGate nothing of it is there.
func TestWithoutAGate(t *testing.T) {
	s := newServer(t, newWorld(), Config{})
	for _, method := range []string{"GET", "POST", "DELETE"} {
		if got := ask(s, method, GatePath+"holds", "", bearer+control); got.Code != 404 {
			t.Errorf("%s answers %d, want 404", method, got.Code)
		}
	}
}

func TestNewClientAt(t *testing.T) {
	for base, want := range map[string]string{
		"http://edge-1:8444":          "http://edge-1:8444",
		"http://edge-1:8444/":         "http://edge-1:8444",
		"HTTP://edge-1":               "http://edge-1",
		"https://edge-1.example":      "https://edge-1.example",
		"https://[2001:db8::1]:8444/": "https://[2001:db8::1]:8444",
		"http://proxy/sluice/":        "http://proxy/sluice",
	} {
		if c, err := NewClientAt(base, "key", nil); err != nil || c.base != want || c.key != "key" {
			t.Errorf("%s: got %+v, %v, want the base %s", base, c, err, want)
		}
	}
	for _, base := range []string{
		"", "edge-1", "edge-1:8444", "//edge-1:8444", "http:edge-1:8444", "http://", "http:///gate", "ftp://edge-1", "unix:///run/sluice",
		"http://user:hunter2@edge-1:8444", "http://user@edge-1", "http://edge-1?token=hunter2", "http://edge-1/#hunter2",
		"http://edge-1:port", "http://edge 1:8444", "http://[::1:8444", "http://edge-1/%zz", "\x00",
	} {
		c, err := NewClientAt(base, "", nil)
		if err == nil {
			t.Errorf("%q is taken for %s", base, c.base)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the error %q tells a secret", base, err)
		}
	}
}

// TestClientAsksTheGate over the server, with its key, and gives the answer as it is.
func TestClientAsksTheGate(t *testing.T) {
	s := newServer(t, newWorld(), Config{Token: token})
	s.parts.Gate = &gateDouble{}
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	c, err := NewClientAt(server.URL+"/", token, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		method, path string
		order        any
		want         string
	}{
		{"GET", "complete?site=1&date=2026-03-16", nil, "GET /gate/v1/complete?site=1&date=2026-03-16 "},
		{"POST", "holds", struct {
			Name string `json:"name"`
		}{"<logs>"}, `POST /gate/v1/holds {"name":"\u003clogs\u003e"}`},
		{"DELETE", "holds/logs?who=anna%40db1", nil, "DELETE /gate/v1/holds/logs?who=anna%40db1 "},
	} {
		body, yes, err := c.Gate(t.Context(), tt.method, tt.path, tt.order)
		if err != nil || !yes || string(body) != tt.want {
			t.Errorf("got %q, %v, %v, want %q and yes", body, yes, err, tt.want)
		}
	}
	if _, _, err := c.Gate(t.Context(), "POST", "holds", make(chan int)); err == nil {
		t.Error("an order that is no JSON is sent")
	}
}

// TestAnswersOfTheGate: 200 is yes and 503 is not yet, and both are answers. Everything
// else is an error that tells what the gate said.
func TestAnswersOfTheGate(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		answer bool
		yes    bool
		said   string // of the error
	}{
		{"yes", 200, `{"state":"complete"}`, true, true, ""},
		{"not yet", 503, `{"state":"draining"}`, true, false, ""},
		{"no good question", 400, `{"error":"no day","try":"this"}`, false, false, "no day"},
		{"no such site", 404, `{"error":"no such site: 9"}`, false, false, "no such site: 9"},
		{"no gate there", 404, "404 page not found\n", false, false, "answered 404"},
		{"no right", 401, `{"error":"this needs the admin token"}`, false, false, "this needs the admin token"},
		{"busy", 409, `{"error":"a recount is under way already"}`, false, false, "a recount is under way already"},
		{"a fault", 500, "", false, false, "answered 500"},
		{"another yes", 204, "", false, false, "answered 204"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})
			body, yes, err := c.Gate(t.Context(), "GET", "complete?site=all", nil)
			if (err == nil) != tt.answer || yes != tt.yes || tt.answer && string(body) != tt.body {
				t.Errorf("got %q, %v, %v, want an answer %v and yes %v", body, yes, err, tt.answer, tt.yes)
			}
			if err == nil {
				return
			}
			refused, ok := errors.AsType[*RefusedError](err)
			if !ok || refused.Code != tt.status || err.Error() != tt.said || len(body) != 0 {
				t.Errorf("got %v with %q, want a RefusedError of %d that says %q", err, body, tt.status, tt.said)
			}
			if tt.status == 400 && refused.Problem.Try != "this" {
				t.Errorf("got %+v, want what to try", refused.Problem)
			}
		})
	}
}

// clientOf makes a client of a listener that is no Sluice.
func clientOf(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	c, err := NewClientAt(server.URL, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestAnswersOfTheGateAreWhole or an error: a list that is short would be taken for all.
func TestAnswersOfTheGateAreWhole(t *testing.T) {
	for _, tt := range []struct {
		name  string
		serve http.HandlerFunc
	}{
		{"cut off in the middle", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "1,2,3")
			panic(http.ErrAbortHandler)
		}},
		{"longer than what is read", func(w http.ResponseWriter, _ *http.Request) {
			line := []byte(strings.Repeat("x", 1023) + "\n")
			for range maxAnswer/1024 + 1 {
				_, _ = w.Write(line)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body, yes, err := clientOf(t, tt.serve).Gate(t.Context(), "GET", "sites", nil)
			if err == nil || yes {
				t.Errorf("got %d bytes, yes %v, %v, want an error", len(body), yes, err)
			}
		})
	}
	whole := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", maxAnswer)) })
	if body, yes, err := whole.Gate(t.Context(), "GET", "sites", nil); err != nil || !yes || len(body) != maxAnswer {
		t.Errorf("got %d bytes, yes %v, %v, want %d", len(body), yes, err, maxAnswer)
	}
}

func TestGateThatDoesNotRun(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + l.Addr().String()
	l.Close()
	c, err := NewClientAt(base, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, yes, err := c.Gate(t.Context(), "GET", "complete?site=all", nil); !errors.Is(err, ErrNotRunning) || yes || body != nil {
		t.Errorf("got %q, %v, %v, want ErrNotRunning", body, yes, err)
	}
}
