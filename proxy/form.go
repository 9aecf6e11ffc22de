package proxy

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"

	"sluice/internal/phpform"
)

// A bodyType says what PHP makes of a request's body.
type bodyType uint8

const (
	opaqueBody    bodyType = iota // no variables
	formBody                      // application/x-www-form-urlencoded
	multipartBody                 // multipart/form-data, which leaves php://input empty
)

// bodyTypeOf follows PHP: only POST fills $_POST, the type ends at the first
// semicolon, comma or space, and multipart without a boundary is left alone.
func bodyTypeOf(method string, contentType []byte) bodyType {
	if method != "POST" {
		return opaqueBody
	}
	name, rest := contentType, []byte(nil)
	if i := bytes.IndexAny(contentType, ";, "); i >= 0 {
		name, rest = contentType[:i], contentType[i:]
	}
	switch {
	case is(name, "application/x-www-form-urlencoded"):
		return formBody
	case is(name, "multipart/form-data"):
		_, rest, found := bytes.Cut(bytes.ToLower(rest), []byte("boundary"))
		if found && bytes.IndexByte(rest, '=') >= 0 {
			return multipartBody
		}
	}
	return opaqueBody
}

// isBulk says whether Matomo takes a body for a bulk: it names "requests" in
// quotes anywhere but at its very beginning (plugins/BulkTracking/Tracker/Requests.php).
func isBulk(body []byte) bool {
	return bytes.Index(body, []byte(`"requests"`)) > 0 || bytes.Index(body, []byte(`'requests'`)) > 0
}

// parameters gives the raw query whose variables are PHP's $_GET + $_POST.
func (r *request) parameters() []byte {
	query, _, _ := bytes.Cut(r.query, []byte("#")) // as nginx and Apache do
	if len(r.body) == 0 {
		return query
	}
	switch bodyTypeOf(r.method, r.contentType) {
	case formBody:
		if len(query) == 0 && plainForm(r.body) {
			return r.body
		}
		return phpform.Merge(query, r.body)
	case multipartBody:
		return phpform.Merge(query, multipartQuery(r.contentType, r.body))
	}
	return query
}

// plainForm says whether PHP reads a form body as it would read the same bytes as
// a query: empty pairs count in a body only, and a NUL ends a query only. It
// saves the common hit the merging.
func plainForm(body []byte) bool {
	if body[0] == '&' || body[len(body)-1] == '&' || bytes.IndexByte(body, 0) >= 0 {
		return false
	}
	return bytes.Count(body, []byte("&")) < phpform.MaxVars && !bytes.Contains(body, []byte("&&"))
}

const (
	// maxParts is PHP's default for the parts of a body: max_input_vars and
	// max_file_uploads.
	maxParts = phpform.MaxVars + 20
	// maxBoundary is what RFC 2046 allows.
	maxBoundary = 70
)

// multipartQuery writes the fields of a multipart body as a query. Files are no
// variables. What comes before damage counts, as in PHP.
func multipartQuery(contentType, body []byte) []byte {
	_, parameters, err := mime.ParseMediaType(string(contentType))
	boundary := parameters["boundary"]
	if err != nil || boundary == "" || len(boundary) > maxBoundary {
		return nil
	}
	var query []byte
	reader := multipart.NewReader(bytes.NewReader(body), boundary)
	for range maxParts {
		part, err := reader.NextRawPart()
		if err != nil {
			break
		}
		if part.FileName() != "" || part.Header.Get("Content-Disposition") == "" {
			continue
		}
		if part.FormName() == "" {
			break // PHP gives up here
		}
		content, err := io.ReadAll(part)
		if err != nil {
			// The body ends within this part: PHP takes what is there.
			content = bytes.TrimSuffix(content, []byte("\r\n"))
		}
		if len(query) > 0 {
			query = append(query, '&')
		}
		query = phpform.AppendEscaped(query, part.FormName())
		query = phpform.AppendEscaped(append(query, '='), content)
	}
	return query
}
