package testkit_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"sluice/internal/testkit"
)

// TestLockout repeats what a Matomo 5.0.2 was seen to do with wrong tokens.
func TestLockout(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	base := m.Serve(t)
	const address = "127.0.0.1"
	canary := func(token string) string {
		return `"?idsite=1\u0026rec=0\u0026cip=192.0.2.1\u0026token_auth=` + token + `"`
	}
	wrong := func(n int) string { return fmt.Sprintf("%032x", 0xbad+n) }

	// One request books one failure, names what it refuses to a token in the form, and
	// lends that token to none of its hits.
	var list []string
	for i := range 10 {
		list = append(list, canary(wrong(i)))
	}
	list = append(list, canary(testkit.SuperToken), canary(testkit.AdminToken), canary(""))
	body := `{"requests":[` + strings.Join(list, ",") + `],"bulk":"&token_auth=` + testkit.SuperToken + `&"}`
	if got := postAs(t, base, "application/x-www-form-urlencoded", body); got != `200 {"status":"success","tracked":2,"invalid":11,"invalid_indices":[0,1,2,3,4,5,6,7,8,9,12]}` {
		t.Errorf("a group of tokens: %s", got)
	}
	if got := postAs(t, base, "application/json", body); got != `200 {"status":"success","tracked":2,"invalid":11}` {
		t.Errorf("the same as JSON: %s", got)
	}
	if n := m.Failures(address); n != 2 {
		t.Errorf("%d failures, want one a request", n)
	}
	// A token that nothing asks for is not looked at.
	if got := postAs(t, base, "application/json", `{"requests":["?idsite=1&rec=0&token_auth=x"]}`); m.Failures(address) != 2 {
		t.Errorf("a token that is not needed is booked: %s", got)
	}
	for i := range 25 {
		postAs(t, base, "application/json", `{"requests":[`+canary(wrong(i))+`]}`)
	}
	if n := m.Failures(address); n != 21 {
		t.Errorf("%d failures, want 21: a locked-out address books none", n)
	}
	for what, want := range map[string]string{
		canary(testkit.SuperToken): `200 {"status":"success","tracked":0,"invalid":1}`,
		canary(testkit.AdminToken): `200 {"status":"success","tracked":1,"invalid":0}`,
		`"?idsite=1&rec=0"`:        `200 {"status":"success","tracked":1,"invalid":0}`,
	} {
		if got := postAs(t, base, "application/json", `{"requests":[`+what+`]}`); got != want {
			t.Errorf("%s from a locked-out address: %s, want %s", what, got, want)
		}
		if got := postAs(t, base, "application/json", `{"token_auth":"`+testkit.AdminToken+`","requests":[`+what+`]}`); got != `500 {"status":"error","tracked":0,"invalid":0}` {
			t.Errorf("%s under a token from a locked-out address: %s", what, got)
		}
	}
}

// postAs posts a body of a type and gives status and body of the answer.
func postAs(t *testing.T, base, kind, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/matomo.php?queuedtracking=0", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", res.StatusCode, b)
}
