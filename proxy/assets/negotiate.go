package assets

// A wish is one encoding and how much a client wants it, in thousandths.
type wish struct {
	encoding string
	weight   int
}

// choose gives the representation that a client wants most, and the smallest among
// those that it wants equally. accept is its Accept-Encoding. What the client does
// not name it wants less than what it names; identity is given when nothing else is
// acceptable, as web servers do.
func (v *version) choose(accept string) *rep {
	reps := v.encoded.Load()
	if reps == nil || len(accept) == 0 {
		return v.identity
	}
	const unsaid = -1
	weights := [...]wish{{"gzip", unsaid}, {"br", unsaid}, {"zstd", unsaid}, {"", unsaid}}
	rest := unsaid
	for len(accept) > 0 {
		var item string
		item, accept = cut(accept, ',')
		name, parameters := cut(item, ';')
		name = trim(name)
		q := weightOf(parameters)
		switch {
		case name == "*":
			rest = q
		case equalFold(name, "gzip") || equalFold(name, "x-gzip"):
			weights[0].weight = q
		case equalFold(name, "br"):
			weights[1].weight = q
		case equalFold(name, "zstd"):
			weights[2].weight = q
		case equalFold(name, "identity"):
			weights[3].weight = q
		}
	}
	best, most := v.identity, 0
	for _, w := range weights {
		if w.encoding == "" && w.weight > most {
			most = w.weight
		}
	}
	for _, r := range *reps {
		for _, w := range weights {
			if w.encoding != r.encoding {
				continue
			}
			if w.weight == unsaid {
				w.weight = rest
			}
			if w.weight > most || w.weight == most && w.weight > 0 && best == v.identity && len(r.body) < len(best.body) {
				best, most = r, w.weight
			}
		}
	}
	return best
}

// weightOf reads "q=0.5" among parameters, in thousandths; 1000 without one, and 0
// for what is no number.
func weightOf(parameters string) int {
	const all = 1000
	for len(parameters) > 0 {
		var p string
		p, parameters = cut(parameters, ';')
		p = trim(p)
		if len(p) < 2 || p[0] != 'q' && p[0] != 'Q' || p[1] != '=' {
			continue
		}
		p = p[2:]
		if p == "" || p[0] != '0' && p[0] != '1' {
			return 0
		}
		q := int(p[0]-'0') * all
		if len(p) > 1 && p[1] == '.' {
			unit := all / 10
			for _, c := range p[2:] {
				if c < '0' || c > '9' {
					return 0
				}
				q += int(c-'0') * unit
				unit /= 10
			}
		} else if len(p) > 1 {
			return 0
		}
		return min(q, all)
	}
	return all
}

// cut splits at a byte and is not made of strings.Cut because that takes a string.
func cut(s string, at byte) (before, after string) {
	for i := range len(s) {
		if s[i] == at {
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

func trim(s string) string {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// equalFold compares with a word in lower case.
func equalFold(s, lower string) bool { return len(s) == len(lower) && hasSuffix(s, lower) }

// matches says whether a client has what an answer would hold: by If-None-Match, or
// without one by the exact Last-Modified, so that a pinned older version is not taken
// for one that the client has.
func (r *rep) matches(noneMatch, modifiedSince string) bool {
	if noneMatch == "" {
		return modifiedSince != "" && modifiedSince == r.modified
	}
	for len(noneMatch) > 0 {
		var tag string
		tag, noneMatch = cut(noneMatch, ',')
		tag = trim(tag)
		if tag == "*" {
			return true
		}
		if len(tag) > 2 && tag[:2] == "W/" {
			tag = tag[2:]
		}
		if tag == r.etag {
			return true
		}
	}
	return false
}
