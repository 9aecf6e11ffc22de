package assets

import (
	"bytes"
	"regexp"
)

// Limits of what is kept of one file, in bytes.
const (
	maxScript = 8 << 20
	maxImage  = 10 << 20
)

func sizeLimit(k kind) int64 {
	if k == image {
		return maxImage
	}
	return maxScript
}

// phpError is how PHP's messages begin that stand before what a script meant to
// answer.
var phpError = regexp.MustCompile(`^(PHP )?(Warning|Notice|Deprecated|Fatal error|Parse error|Catchable fatal error): `)

// activeSVG is what makes an image run code or load something.
var activeSVG = regexp.MustCompile(`(?i)<\s*(script|foreignObject|iframe|embed|object)|\son[a-z]+\s*=|javascript\s*:|<!ENTITY`)

// check says why bytes cannot be the file of a kind, in one word for metrics, or "".
// mime is the origin's Content-Type, which is believed only where it makes matters
// worse.
func check(k kind, path, mime string, body []byte) string {
	if len(body) == 0 {
		return "empty"
	}
	if k == image {
		return checkImage(path, body)
	}
	text := bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	switch {
	case len(text) == 0:
		return "empty"
	case text[0] == '<' || isHTML(mime):
		return "html"
	case phpError.Match(text):
		return "php_error"
	case bytes.IndexByte(body, 0) >= 0:
		return "binary"
	case !endsCleanly(text):
		return "torn"
	}
	switch k {
	case tracker, script, source:
		// The footer of the tracker; plugins' code stands before it.
		if !bytes.Contains(text, []byte("@license-end")) {
			return "torn"
		}
	case container:
		if !bytes.Contains(text, []byte("MatomoTagManager")) {
			return "no_container"
		}
	}
	return ""
}

func isHTML(mime string) bool {
	return bytes.HasPrefix(bytes.ToLower([]byte(mime)), []byte("text/html"))
}

// endsCleanly tells JavaScript that ends where a statement or a comment may end.
func endsCleanly(text []byte) bool {
	switch text[len(text)-1] {
	case ';', '}', ')', ']':
		return true
	case '/':
		return bytes.HasSuffix(text, []byte("*/"))
	}
	return false
}

// checkImage compares with what files of the type begin with.
func checkImage(path string, body []byte) string {
	begins := func(magic string) bool { return bytes.HasPrefix(body, []byte(magic)) }
	ok := false
	switch {
	case hasSuffix(path, ".png"):
		ok = begins("\x89PNG\r\n\x1a\n") && bytes.Contains(body[max(0, len(body)-16):], []byte("IEND"))
	case hasSuffix(path, ".gif"):
		ok = begins("GIF87a") || begins("GIF89a")
	case hasSuffix(path, ".ico"):
		// Favicons are often images of another type under this name.
		ok = begins("\x00\x00\x01\x00") || begins("\x89PNG\r\n\x1a\n")
	case hasSuffix(path, ".svg"):
		text := bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
		if activeSVG.Match(text) {
			return "active_svg"
		}
		ok = (bytes.HasPrefix(text, []byte("<?xml")) || bytes.HasPrefix(text, []byte("<!--")) || bytes.HasPrefix(text, []byte("<svg")) ||
			bytes.HasPrefix(text, []byte("<!DOCTYPE svg"))) && bytes.Contains(text, []byte("<svg")) && bytes.HasSuffix(text, []byte(">"))
	default:
		ok = begins("\xff\xd8\xff")
	}
	if !ok {
		return "magic"
	}
	return ""
}
