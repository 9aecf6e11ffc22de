package assets

import "strings"

// A kind is what a file of Matomo's is, which decides how it is checked and served.
type kind uint8

const (
	none      kind = iota
	tracker        // matomo.js, piwik.js
	script         // js/, js/index.php, js/tracker.php: PHP that serves matomo.js
	source         // js/piwik.js, js/piwik.min.js: what matomo.js is made of
	container      // js/container_*.js
	plugin         // plugins/*/tracker.js and tracker.min.js
	worker         // offline-service-worker.js
	image          // misc/user/*
	preview        // js/container_*_preview.js: never kept
	kinds
)

// kindNames are the labels of metrics and listings.
var kindNames = [kinds]string{"none", "tracker", "script", "source", "container", "plugin", "worker", "image", "preview"}

// maxPath bounds what a listing, a file's metadata and a map's key may have to hold,
// in bytes.
const maxPath = 512

// kindOf says what a path is, below any base path. It takes paths in one spelling
// only: no escapes, no empty or dotted segments, no scripts but the two that serve
// the tracker. Everything else is none.
//
// Directories inside Matomo's own tree hold files of plugins, not the tracker.
func kindOf[T string | []byte](p T) kind {
	if len(p) < 2 || len(p) > maxPath || p[0] != '/' {
		return none
	}
	var before, last, tree T
	depth := 0 // segments below tree
	for start := 1; ; {
		end := start
		for end < len(p) && p[end] != '/' {
			if !plainByte(p[end]) {
				return none
			}
			end++
		}
		before, last = last, p[start:end]
		final := end == len(p)
		switch {
		case len(last) == 0 && (!final || len(tree) > 0 || string(before) != "js"):
			return none
		case len(last) == 0:
			return script
		case last[0] == '.' || !final && hasSuffix(last, ".php"):
			return none
		case len(tree) > 0:
			if depth++; depth == 1 && string(tree) == "misc" && string(last) != "user" {
				return none
			}
		case !final:
			switch string(last) {
			case "plugins", "misc", "libs", "node_modules", "vendor":
				tree = last
			}
		}
		if final {
			break
		}
		start = end + 1
	}
	switch string(tree) {
	case "":
		return kindOfFile(before, last)
	case "plugins":
		if depth == 2 && (string(last) == "tracker.js" || string(last) == "tracker.min.js") {
			return plugin
		}
	case "misc":
		if (depth == 2 || depth == 3) && isImage(last) {
			return image
		}
	}
	return none
}

// kindOfFile judges a file outside of Matomo's own tree by its name and directory.
func kindOfFile[T string | []byte](dir, name T) kind {
	inJS := string(dir) == "js"
	switch string(name) {
	case "matomo.js":
		return tracker
	case "piwik.js":
		if inJS {
			return source
		}
		return tracker
	case "piwik.min.js":
		if inJS {
			return source
		}
	case "index.php", "tracker.php":
		if inJS {
			return script
		}
	case "offline-service-worker.js":
		return worker
	}
	const prefix, suffix, shown = "container_", ".js", "_preview.js"
	if !inJS || len(name) <= len(prefix)+len(suffix) || string(name[:len(prefix)]) != prefix || !hasSuffix(name, suffix) {
		return none
	}
	for i := len(prefix); i < len(name)-len(suffix); i++ {
		if c := name[i]; c == '.' || c == '~' {
			return none
		}
	}
	if hasSuffix(name, shown) {
		return preview
	}
	return container
}

func plainByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-' || c == '~'
}

// hasSuffix compares without regard to case; suffix is in lower case.
func hasSuffix[T string | []byte](s T, suffix string) bool {
	if len(s) < len(suffix) {
		return false
	}
	for i := range len(suffix) {
		c := s[len(s)-len(suffix)+i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != suffix[i] {
			return false
		}
	}
	return true
}

func isImage[T string | []byte](name T) bool {
	return hasSuffix(name, ".png") || hasSuffix(name, ".jpg") || hasSuffix(name, ".jpeg") || hasSuffix(name, ".gif") ||
		hasSuffix(name, ".svg") || hasSuffix(name, ".ico")
}

// contentType is decided by what a file is, never by what the origin says.
func contentType(k kind, path string) string {
	if k != image {
		return "application/javascript; charset=utf-8"
	}
	path = strings.ToLower(path)
	switch path[strings.LastIndexByte(path, '.'):] {
	case ".png":
		return "image/png"
	case ".gif":
		return "image/gif"
	case ".svg":
		return "image/svg+xml"
	case ".ico":
		return "image/x-icon"
	}
	return "image/jpeg"
}

// compressible says whether encodings of a file are worth making.
func compressible(k kind, path string) bool {
	return k != image || hasSuffix(path, ".svg") || hasSuffix(path, ".ico")
}
