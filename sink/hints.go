package sink

import (
	"encoding/json"
	"strings"
)

// harmlessHints reports whether a uadata text has the form that browsers send: an
// object of strings, in which brands and fullVersionList are lists of objects of
// strings. Matomo's device detection dies of other types under some names, and
// with it the whole request, so whatever is unusual travels alone. A text that is
// no JSON object is read as no hints at all and does no harm.
func harmlessHints(uadata string) bool {
	var members map[string]json.RawMessage
	if json.Unmarshal([]byte(uadata), &members) != nil {
		// PHP also takes literals in capitals, so what merely looks like an object
		// is not harmless.
		return !strings.HasPrefix(strings.TrimLeft(uadata, " \t\r\n"), "{")
	}
	for name, value := range members {
		if len(value) == 0 || value[0] == '"' {
			continue
		}
		if strings.Contains(name, "&") {
			return false // Matomo decodes entities in names
		}
		switch strings.ReplaceAll(strings.ToLower(name), "_", "-") {
		case "brands", "fullversionlist":
			var list []map[string]string
			if json.Unmarshal(value, &list) != nil {
				return false
			}
		case "mobile", "wow64":
			if value[0] == '{' || value[0] == '[' {
				return false
			}
		default:
			return false
		}
	}
	return true
}
