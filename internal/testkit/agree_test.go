package testkit

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

var matomoURL = flag.String("matomo.url", "", "also run the table of answers against the real, expendable Matomo at this base URL (sites 1 to 4, token "+SuperToken+")")

const (
	agent   = "Mozilla%2F5.0%20%28X11%3B%20Linux%20x86_64%3B%20rv%3A115.0%29%20Gecko%2F20100101%20Firefox%2F115.0"
	page    = "idsite=1&rec=1&url=http%3A%2F%2Fx%2F&ua=" + agent
	formCT  = "application/x-www-form-urlencoded; charset=UTF-8"
	cors    = "cors"
	noStore = "no-store"
)

// A case is one request and what a healthy Matomo answers. The body is <GIF> and
// <INFO> where the bytes are an installation's own.
type agreeCase struct {
	name   string
	method string
	query  string
	kind   string // Content-Type, "" = none
	body   string
	header string // one "Name: value", "" = none
	status int
	want   string // body
	ctype  string // start of the Content-Type
	flags  string // cors, no-store
}

func get(name, query string, status int, want, ctype string) agreeCase {
	return agreeCase{name: name, method: "GET", query: query, status: status, want: want, ctype: ctype, flags: noStore}
}

func bulkCase(name, body string, status int, want string) agreeCase {
	ctype := "application/json"
	if want == "" && status != http.StatusNoContent {
		ctype = "text/html"
	}
	flags := cors
	if want == "" && status == http.StatusInternalServerError {
		flags = ""
	}
	return agreeCase{name: name, method: "POST", kind: "application/json", body: body, status: status, want: want, ctype: ctype, flags: flags}
}

// super makes a bulk body with the superuser's token.
func super(hits ...string) string {
	return `{"token_auth":"` + SuperToken + `","requests":["?` + strings.Join(hits, `","?`) + `"]}`
}

func anonymous(hits ...string) string {
	return `{"requests":["?` + strings.Join(hits, `","?`) + `"]}`
}

func success(tracked, invalid int, indices string) string {
	s := fmt.Sprintf(`{"status":"success","tracked":%d,"invalid":%d`, tracked, invalid)
	if indices != "" {
		s += `,"invalid_indices":` + indices
	}
	return s + "}"
}

func failure(tracked int, indices string) string {
	return strings.Replace(success(tracked, 0, indices), "success", "error", 1)
}

func agreeCases() []agreeCase {
	old := fmt.Sprint(time.Now().Add(-48 * time.Hour).Unix())
	order := page + "&idgoal=0&revenue=3&ec_id=agree" + fmt.Sprint(time.Now().UnixNano())
	return append(singleCases(old),
		bulkCase("bulk without token", anonymous(page, page), 200, success(2, 0, "")),
		bulkCase("bulk with superuser", super(page, page), 200, success(2, 0, "[]")),
		bulkCase("canary", super("idsite=1&rec=0"), 200, success(1, 0, "[]")),
		bulkCase("unknown site", super(page, "idsite=9999&rec=1"), 200, success(1, 1, "[1]")),
		bulkCase("sites that are no numbers", super("idsite=1a&rec=1", "idsite=&rec=1", "idsite[]=1&rec=1", "idsite=1.5&rec=1"), 200, success(0, 4, "[0,1,2,3]")),
		bulkCase("sites that PHP takes for 1", super("idsite=01&rec=0", "idsite=+1&rec=0", "idsite=1.0&rec=0", "idsite=1e0&rec=0", "idsite=%201&rec=0"), 200, success(5, 0, "[]")),
		bulkCase("unknown token", strings.Replace(super(page, page+"&cip=1.2.3.4"), SuperToken, "f0000000000000000000000000000001", 1), 200, success(1, 1, "")),
		bulkCase("privilege without token", anonymous(page+"&cip=1.2.3.4", page+"&country=de", page+"&cdt="+old, page+"&cip=0", page+"&cdo=99999", page+"&cdo=99"), 200, success(2, 4, "")),
		bulkCase("privilege by mangled names", anonymous(page+"&%20cip=1.2.3.4", page+"&cip%00x=1.2.3.4"), 200, success(0, 2, "")),
		bulkCase("privilege with superuser", super(page+"&cip=1.2.3.4", page+"&country=de", page+"&cdt="+old), 200, success(3, 0, "[]")),
		bulkCase("privilege with the hit's token", anonymous(page+"&cip=1.2.3.4&token_auth="+SuperToken, page+"&cip=1.2.3.4&token.auth="+SuperToken, page+"&cip=1.2.3.4&token[auth="+SuperToken), 200, success(3, 0, "")),
		agreeCase{name: "token in the URL", method: "POST", kind: "application/json", query: "token_auth=" + SuperToken, body: anonymous(page, page+"&cip=1.2.3.4"), status: 200, want: success(1, 1, "[1]"), ctype: "application/json", flags: cors},
		bulkCase("future and garbage cdt", anonymous(page+"&cdt=2999999999", page+"&cdt=garbage"), 200, success(2, 0, "")),
		bulkCase("bad parameters", super(page+"&cid=12", page+"&idgoal=77", page+"&e_c=%20&e_a=a", page+"&c_n=%20", order, order, page), 200, success(2, 5, "[0,1,2,3,5]")),
		bulkCase("bad parameters of a robot", super("idsite=1&rec=1&ua=Googlebot&cid=1", "idsite=1&rec=0&cid=1"), 200, success(2, 0, "[]")),
		bulkCase("objects and other values", `{"token_auth":"`+SuperToken+`","requests":[{},null,5,true,[],{"idsite":1,"rec":0},{"idsite":"1","rec":0},{"idsite":true},{"idsite":1.0,"rec":0},{"idsite":99}]}`, 200, success(9, 1, "[9]")),
		bulkCase("requests as an object", `{"token_auth":"`+SuperToken+`","requests":{"b":"?idsite=1","a":{"idsite":77}}}`, 200, success(1, 1, "[1]")),
		bulkCase("strings without a query", `{"token_auth":"`+SuperToken+`","requests":["foo","http:///?idsite=1","//?idsite=1","","?","?0","idsite=1","?idsite=9999","http://h/p?idsite=1"]}`, 200, success(1, 1, "[0]")),
		bulkCase("nothing but strings without a query", `{"token_auth":"`+SuperToken+`","requests":["foo"]}`, 200, success(0, 0, "")),
		bulkCase("no requests", `{"token_auth":"`+SuperToken+`","requests":[]}`, 200, success(0, 0, "")),
		bulkCase("requests as text", `{"requests":"x"}`, 200, success(0, 0, "")),
		bulkCase("truncated", super(page)[:60], 200, success(0, 0, "")),
		bulkCase("invalid UTF-8", strings.Replace(super(page), "?", "?a=\xe9&", 1), 200, success(0, 0, "")),
		bulkCase("half a surrogate", strings.Replace(super(page), "?", `?a=\ud83d&`, 1), 200, success(0, 0, "")),
		bulkCase("a whole surrogate pair", strings.Replace(super(page), "?", `?a=\ud83d\ude00&`, 1), 200, success(1, 0, "[]")),
		bulkCase("a newline inside a string", strings.Replace(super(page), "rec=1", "re\nc=0", 1), 200, success(1, 0, "[]")),
		bulkCase("single quotes", strings.ReplaceAll(anonymous(page), `"`, `'`), 200, success(0, 0, "")),
		bulkCase("an array on top", `[{"requests":["?idsite=1"]}]`, 200, success(0, 0, "")),
		bulkCase("text after the JSON", super(page)+"x", 200, success(0, 0, "")),
		bulkCase("upper-case member", strings.Replace(anonymous(page), `{"requests"`, `{"Requests":[],"requests"`, 1), 200, success(1, 0, "")),
		bulkCase("member twice", strings.Replace(anonymous(page), `{"requests"`, `{"requests":["?idsite=1","?idsite=1"],"requests"`, 1), 200, success(1, 0, "")),
		bulkCase("send_image 0", strings.Replace(super(page), `{`, `{"send_image":0,`, 1), 204, ""),
		bulkCase("send_image false", strings.Replace(anonymous(page), `{`, `{"send_image":false,`, 1), 200, success(1, 0, "")),
		bulkCase("unclaimed ca", super(page, page+"&ca=1"), 500, failure(1, "[]")),
		bulkCase("unclaimed ca after an invalid hit", super(page, "idsite=9999", page+"&ca=1"), 500, failure(1, "[]")),
		bulkCase("unclaimed ca without token and image", strings.Replace(anonymous(page+"&ca=1"), `{`, `{"send_image":0,`, 1), 500, failure(0, "")),
		bulkCase("hints that kill PHP", super(page, page+`&uadata=%7B%22platform%22%3A%5B1%5D%7D`), 500, ""),
		bulkCase("hints that are odd", super(page+`&uadata=%7B%22mobile%22%3A%5B1%5D%7D`, page+`&uadata=5`, page+`&uadata=%5B1%5D`, page+`&uadata=%7B%22brands%22%3A5%7D`), 200, success(4, 0, "[]")),
		bulkCase("hints that are numbers", super(page, page+`&uadata=%7B%22platform%22%3A5%7D`), 500, ""),
		bulkCase("a header's hint that is no text", super("idsite=9999&uadata=%7B%22HTTP_SEC_CH_UA%22%3Anull%7D"), 500, ""),
		bulkCase("load times below zero", super(page+"&pf_net=-1", page+"&pf_net=-2"), 200, success(1, 1, "[1]")),
		bulkCase("latitude too large", super(page+"&lat=1e5"), 500, failure(0, "[]")),
		bulkCase("city too long", super(page+"&city="+strings.Repeat("x", 300)), 500, failure(0, "[]")),
		bulkCase("places that do not fit", super(page, page+"&country=toolong"), 500, failure(1, "[]")),
		bulkCase("latitude that is no number", super(page+"&lat=abc"), 500, failure(0, "[]")),
		agreeCase{name: "bulk by form type", method: "POST", kind: formCT, body: anonymous(page), status: 200, want: success(1, 0, ""), ctype: "application/json", flags: cors},
		agreeCase{name: "bulk by GET", method: "GET", body: anonymous(page), query: "idsite=9999", status: 200, want: success(1, 0, ""), ctype: "application/json"},
	)
}

func singleCases(old string) []agreeCase {
	return []agreeCase{
		get("GET", page, 200, "<GIF>", "image/gif"),
		get("GET without image", page+"&send_image=0", 204, "", "text/html"),
		get("GET with send_image=00", page+"&send_image=00", 200, "<GIF>", "image/gif"),
		get("GET of an unknown site", "idsite=9999&rec=1", 400, "<GIF><INFO>", "image/gif"),
		get("GET of an unknown site without image", "idsite=9999&rec=1&send_image=0", 400, "<INFO>", "text/html"),
		get("GET without rec", "idsite=1", 200, "<GIF>", "image/gif"),
		get("GET with cip", page+"&cip=1.2.3.4", 400, "<GIF><INFO>", "image/gif"),
		get("GET with cip and token", page+"&cip=1.2.3.4&token_auth="+SuperToken, 200, "<GIF>", "image/gif"),
		get("GET with an old cdt", page+"&cdt="+old, 400, "<GIF><INFO>", "image/gif"),
		get("GET with a bad cid", page+"&cid=12&send_image=0", 400, "<INFO>", "text/html"),
		get("GET with unclaimed ca", page+"&ca=1", 400, "<GIF><INFO>", "image/gif"),
		get("GET of a robot", "idsite=1&rec=1&ua=Googlebot", 200, "<GIF>", "image/gif"),
		{name: "GET without parameters", method: "GET", status: 200, want: "<INFO>", ctype: "text/html"},
		{name: "POST without parameters", method: "POST", status: 400, want: "<INFO>", ctype: "text/html", flags: cors},
		{name: "POST of a form", method: "POST", kind: formCT, body: page, status: 200, want: "<GIF>", ctype: "image/gif", flags: cors},
		{name: "POST of URL parameters without image", method: "POST", kind: formCT, query: page + "&send_image=0", status: 204, ctype: "text/html", flags: cors},
		{name: "POST of both, where the URL wins", method: "POST", kind: formCT, query: "idsite=1&rec=0", body: "idsite=9999", status: 200, want: "<GIF>", ctype: "image/gif", flags: cors},
		{name: "POST of text", method: "POST", kind: "text/plain", body: page, status: 400, want: "<INFO>", ctype: "text/html", flags: cors},
		{name: "POST of JSON without requests", method: "POST", kind: "application/json", body: `{"idsite":1}`, status: 400, want: "<INFO>", ctype: "text/html", flags: cors},
		{name: "PUT", method: "PUT", query: page, status: 200, want: "<GIF>", ctype: "image/gif", flags: cors},
		{name: "HEAD", method: "HEAD", query: page, status: 200, ctype: "image/gif", flags: cors},
		{name: "preflight", method: "OPTIONS", header: "Access-Control-Request-Method: POST", status: 204, ctype: "text/html"},
		{name: "OPTIONS that is none", method: "OPTIONS", query: page, status: 200, want: "<GIF>", ctype: "image/gif", flags: cors},
		{name: "a form that looks like a bulk", method: "POST", kind: formCT, body: `a="requests"&` + page, status: 200, want: success(0, 0, ""), ctype: "application/json", flags: cors},
		{name: "requests at the very start", method: "POST", kind: "text/plain", body: `"requests"`, status: 400, want: "<INFO>", ctype: "text/html", flags: cors},
	}
}

func TestAnswersAsMatomo(t *testing.T) {
	bases := map[string]string{"fake": NewMatomo(MatomoConfig{}).Serve(t)}
	if *matomoURL != "" {
		bases["real"] = *matomoURL
	}
	for side, base := range bases {
		for _, tt := range agreeCases() {
			t.Run(side+"/"+tt.name, func(t *testing.T) { tt.check(t, base) })
		}
	}
}

func (tt agreeCase) check(t *testing.T, base string) {
	url := base + "/matomo.php"
	if tt.query != "" {
		url += "?" + tt.query
	}
	req, err := http.NewRequestWithContext(t.Context(), tt.method, url, strings.NewReader(tt.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", "")
	if tt.kind != "" {
		req.Header.Set("Content-Type", tt.kind)
	}
	if name, value, ok := strings.Cut(tt.header, ": "); ok {
		req.Header.Set(name, value)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Replace(string(raw), gif, "<GIF>", 1)
	if i := strings.Index(body, "This resource is part of Matomo"); i >= 0 {
		body = body[:i] + "<INFO>"
	}
	if res.StatusCode != tt.status || body != tt.want {
		t.Errorf("got %d %q, want %d %q", res.StatusCode, body, tt.status, tt.want)
	}
	if got := res.Header.Get("Content-Type"); !strings.HasPrefix(got, tt.ctype) {
		t.Errorf("Content-Type = %q, want %q", got, tt.ctype)
	}
	if got, want := res.Header.Get("Cache-Control") == "no-store", tt.flags == noStore; got != want {
		t.Errorf("Cache-Control says no-store: %v, want %v", got, want)
	}
	if got, want := res.Header.Get("Access-Control-Allow-Credentials") == "true", tt.flags == cors; got != want {
		t.Errorf("credentials allowed: %v, want %v", got, want)
	}
}
