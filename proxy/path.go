package proxy

import (
	"path"
	"strings"
)

// What a path leads to.
type place uint8

const (
	elsewhere place = iota // not the tracker
	tracker                // matomo.php or piwik.php: always the tracker
	script                 // js/, js/index.php or js/tracker.php: the tracker when called with data
)

// placeOf says where a path leads, below any base path. The first segment that
// ends in ".php" is the script that runs, and what follows is its PATH_INFO.
//
// The path must be clean (see [cleanPath]). Directories named js inside Matomo's
// own tree are files of plugins, not the tracker.
func placeOf[T string | []byte](p T) place {
	var before T // the segment before the current one
	ownTree := false
	for start := 1; start <= len(p); {
		end := start
		for end < len(p) && p[end] != '/' {
			end++
		}
		segment := p[start:end]
		switch string(segment) {
		case "matomo.php", "piwik.php":
			return tracker
		case "index.php", "tracker.php":
			if !ownTree && string(before) == "js" {
				return script
			}
			return elsewhere
		case "js":
			if !ownTree && end == len(p)-1 {
				return script
			}
		case "plugins", "misc", "libs", "node_modules", "vendor":
			ownTree = true
		}
		if hasPHPSuffix(segment) {
			return elsewhere
		}
		before = segment
		start = end + 1
	}
	return elsewhere
}

func hasPHPSuffix[T string | []byte](s T) bool {
	return len(s) >= 4 && string(s[len(s)-4:]) == ".php"
}

// tracks says whether a request at a place reaches the tracker: js/ serves the
// JavaScript file when it is called without data.
func (p place) tracks(method string, query []byte) bool {
	switch p {
	case tracker:
		return true
	case script:
		return method == "POST" || len(query) > 0 && string(query) != "0"
	}
	return false
}

// cleanPath gives the path as web servers hand it to PHP: repeated slashes and
// dot segments are resolved, a slash at the end stays.
func cleanPath(p string) string {
	if !strings.Contains(p, "//") && !strings.Contains(p, "/.") {
		return p
	}
	clean := path.Clean("/" + p)
	if clean != "/" && (strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || strings.HasSuffix(p, "/..")) {
		clean += "/"
	}
	return clean
}
