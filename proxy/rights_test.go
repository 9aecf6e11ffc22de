package proxy

import (
	"fmt"
	"strings"
	"testing"

	"sluice/internal/hit"
)

// bulkRequest makes a request with a bulk's body, as browsers type it.
func bulkRequest(body string) *request {
	r := newRequest("")
	r.method, r.body, r.contentType = "POST", []byte(body), []byte("application/x-www-form-urlencoded; charset=UTF-8")
	return r
}

// rightsOf shows how hits were stored: - for one of ours, else its token.
func rightsOf(hits []hit.Hit) string {
	out := make([]string, len(hits))
	for i, h := range hits {
		if out[i] = "-"; h.Rights == hit.Theirs {
			out[i] = fmt.Sprintf("%q", h.Token)
		}
	}
	return strings.Join(out, " ")
}

// TestBulkInheritsRights: a bulk's own token hides those of its hits, valid or not,
// and nothing outside of the JSON gives a hit a right.
func TestBulkInheritsRights(t *testing.T) {
	const (
		plain  = `"?idsite=1&rec=1"`
		named  = `"?idsite=1&rec=1&cip=1.1.1.1"`
		own    = `"?idsite=1&rec=1&cip=1.1.1.1&token_auth=own"`
		object = `{"idsite":1,"rec":1,"country":"de","token_auth":"own"}`
		bare   = `{"idsite":1,"rec":1,"country":"de"}`
	)
	tests := []struct {
		name    string
		token   string // the member as it stands in the JSON, or nothing
		hits    string
		query   string
		want    string
		invalid int
	}{
		{"strings and objects under the bulk's token", `"bulk"`, strings.Join([]string{plain, named, own, object, bare}, ","), "", `- "bulk" "bulk" "bulk" "bulk"`, 0},
		{"their own tokens", "", strings.Join([]string{plain, named, own, object, bare}, ","), "", `- "own" "own"`, 2},
		{"an empty token", `""`, own + "," + named, "", `"own"`, 1},
		{"the token 0", `"0"`, own + "," + named, "", `"own"`, 1},
		{"the number 0", `0`, own + "," + named, "", `"own"`, 1},
		{"null", `null`, own + "," + object, "", `"own" "own"`, 0},
		{"a list", `["bulk"]`, own + "," + named, "", `"own"`, 1},
		{"true", `true`, own + "," + named, "", `"own"`, 1},
		{"a number", `12345`, own + "," + bare, "", `"12345" "12345"`, 0},
		{"white space", `" "`, own + "," + bare, "", `" " " "`, 0},
		{"an escaped name and text", `"b\u0075lk"`, own, "", `"bulk"`, 0},
		{"a token in the URL", "", named + "," + plain, "token_auth=url&cip=9.9.9.9", `-`, 1},
		{"a token in the URL and hits with their own", "", own + "," + object, "token_auth=url", `"own" "own"`, 0},
		// PHP fills $_POST from the JSON, since browsers say that it is a form.
		{"a token that PHP reads as a form's", "", named + `],"x":["&token_auth=form&"`, "", ``, 1},
		{"a hit's token is another's form token", "", own + "," + named, "", `"own"`, 1},
		{"an array as a hit's token", "", `"?idsite=1&rec=1&cip=1.1.1.1&token_auth[]=own"`, "", ``, 1},
		{"a number as an object's token", "", `{"idsite":1,"rec":1,"lat":1.5,"token_auth":77}`, "", `"77"`, 0},
		{"the last of two tokens", "", `"?idsite=1&rec=1&cip=1.1.1.1&token_auth=a&token.auth=b"`, "", `"b"`, 0},
		{"a token and nothing that needs one", `"bulk"`, plain + `,{"idsite":1,"rec":1,"token_auth":"own"}`, "", `- -`, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := `{"requests":[` + tt.hits + `]`
			if tt.token != "" {
				body += `,"token_auth":` + tt.token
			}
			r := bulkRequest(body + "}")
			r.query = []byte(tt.query)
			a, hits := serveOne(t, r)
			if got := rightsOf(hits); got != tt.want || a.invalid != tt.invalid || a.status != 200 {
				t.Errorf("stored with %s, %d invalid, status %d; want %s, %d, 200", got, a.invalid, a.status, tt.want, tt.invalid)
			}
		})
	}
}

// TestBulkThatMustHaveAToken repeats what a Matomo with
// bulk_requests_require_authentication=1 was seen to answer.
func TestBulkThatMustHaveAToken(t *testing.T) {
	const good, unknown = `"?idsite=1&rec=1"`, `"?idsite=99999&rec=1"`
	tests := []struct {
		name, body string
		status     int
		want       string
	}{
		{"no token", `{"requests":[` + good + `]}`, 500, ""},
		{"no token and no body wanted", `{"requests":[` + good + `],"send_image":0}`, 500, ""},
		{"a hit's own token", `{"requests":["?idsite=1&rec=1&token_auth=own"]}`, 500, ""},
		{"the token 0", `{"token_auth":"0","requests":[` + good + `]}`, 500, ""},
		{"no token and nothing but null", `{"requests":[null]}`, 500, ""},
		{"no token and nothing to look at", `{"requests":["foo"]}`, 200, ""},
		{"no token and broken JSON", `{"requests":[` + good, 200, ""},
		{"a token", `{"token_auth":"bulk","requests":[` + good + `,{"idsite":1,"rec":1,"token_auth":"own"},"foo"]}`, 200, `"bulk" "bulk"`},
		{"a token and an unknown site", `{"token_auth":"bulk","requests":[` + good + "," + unknown + `]}`, 400, ""},
		{"a token, an unknown site and no body wanted", `{"token_auth":"bulk","requests":[` + unknown + `],"send_image":0}`, 400, ""},
		{"a token and no site", `{"token_auth":"bulk","requests":[` + good + `,"?rec=1"]}`, 400, ""},
		{"a token and an empty hit", `{"token_auth":"bulk","requests":[` + good + `,{}]}`, 400, ""},
		{"a token and null", `{"token_auth":"bulk","requests":[` + good + `,null]}`, 400, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, q := newEndpoint(func(c *Config) { c.BulkRequiresAuth = true })
			a := e.serve(t.Context(), bulkRequest(tt.body), new(scratch))
			var hits []hit.Hit
			for _, set := range q.take() {
				hits = append(hits, set.Hits...)
			}
			if got := rightsOf(hits); a.status != tt.status || got != tt.want {
				t.Errorf("status %d, stored with %s; want %d, %s", a.status, got, tt.status, tt.want)
			}
			if body := string(a.appendBody(nil)); tt.status >= 400 && body != `{"status":"error","tracked":0,"invalid":0}` {
				t.Errorf("body %q", body)
			}
		})
	}
	t.Run("a single hit", func(t *testing.T) {
		e, q := newEndpoint(func(c *Config) { c.BulkRequiresAuth = true })
		e.serve(t.Context(), newRequest("idsite=1&rec=1"), new(scratch))
		if sets := q.take(); len(sets) != 1 || rightsOf(sets[0].Hits) != "-" {
			t.Errorf("stored %+v, want one hit of ours", sets)
		}
	})
}

// TestOpenTracking: where nobody needs a token, hits without one are kept, and are
// none of ours all the same.
func TestOpenTracking(t *testing.T) {
	for name, r := range map[string]*request{
		`""`:        newRequest("idsite=1&rec=1&cip=1.1.1.1"),
		`"own"`:     newRequest("idsite=1&rec=1&country=de&token_auth=own"),
		`"" "" "b"`: bulkRequest(`{"requests":["?idsite=1&rec=1&cip=1.1.1.1",{"idsite":1,"rec":1,"lat":1.5},"?idsite=1&rec=1&cip=1.1.1.1&token_auth=b"]}`),
		"-":         newRequest("idsite=1&rec=1"),
	} {
		e, q := newEndpoint(func(c *Config) { c.OpenTracking = true })
		e.serve(t.Context(), r, new(scratch))
		var hits []hit.Hit
		for _, set := range q.take() {
			hits = append(hits, set.Hits...)
		}
		if got := rightsOf(hits); got != name {
			t.Errorf("stored with %s, want %s", got, name)
		}
	}
}
