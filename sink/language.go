package sink

import (
	"regexp"
	"strings"

	"sluice/internal/phpform"
)

// The filters of Matomo's Common::getBrowserLanguage, in its order. Its filter
// for a lone "C" is not among them: it runs after everything was put into lower
// case and never matches.
var (
	quotedPairs     = regexp.MustCompile(`\\[^\n]`)
	languageSpace   = regexp.MustCompile(`[\t\n\v\f\r ]+`)
	languageComment = regexp.MustCompile(`\([^)]*\)`)
	languageQuality = regexp.MustCompile(`;q=[0-9.]+`)
	languageCharset = regexp.MustCompile(`\.[^\n]*`)
	chromeLanguage  = regexp.MustCompile(`(^|,)chrome:[^\n]*`)
	securid         = regexp.MustCompile(`(,)(?:en-securid,)|(?:(^|,)en-securid(,|$))`)
)

var (
	unescapeHTML = strings.NewReplacer("&amp;", "&", "&lt;", "<", "&gt;", ">", "&quot;", `"`, "&#039;", "'", "\x00", "")
	escapeHTML   = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#039;")
)

// normaliseLanguage gives the text that Matomo makes of an Accept-Language
// header. The result is what every version of Matomo stores for the lang
// parameter, also those that take that parameter as it stands.
//
// Matomo decodes HTML entities in the header first. Only the five entities that
// it writes itself are decoded here.
func normaliseLanguage(header string) string {
	if phpform.Empty(header) {
		return ""
	}
	s := escapeHTML.Replace(unescapeHTML.Replace(header))
	s = lowerASCII(strings.ReplaceAll(s, "_", "-"))
	for _, filter := range []*regexp.Regexp{quotedPairs, languageSpace, languageComment, languageQuality, languageCharset} {
		s = filter.ReplaceAllString(s, "")
	}
	if at := chromeLanguage.FindStringIndex(s); at != nil {
		s = s[:at[0]] + s[at[1]:]
	}
	if at := securid.FindStringSubmatchIndex(s); at != nil {
		kept := ""
		if at[2] >= 0 {
			kept = s[at[2]:at[3]]
		}
		s = s[:at[0]] + kept + s[at[1]:]
	}
	return strings.ReplaceAll(s, "sr-sp", "sr-rs")
}

// lowerASCII leaves bytes outside ASCII alone, as PHP's strtolower does.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + ('a' - 'A')
		}
	}
	return string(b)
}
