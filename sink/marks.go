package sink

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"hash/maphash"
	"html"
	"net/netip"
	"strings"
	"unicode/utf8"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

// A visitorMarks is what Matomo could recognise a hit's visitor by, as hashes. Two hits of
// one site conflict when they share a mark. More marks in common than Matomo would
// see cost speed, fewer would cost order: texts that Matomo may read alike are made
// alike first.
type visitorMarks struct {
	// all holds visitor ids, then addresses, then marks that tie hits together only
	// while they are pending, since they lead to no visit.
	all            []uint64
	ids, addresses uint8
	// unknown: the hit cannot be read as Matomo will read it, so it conflicts with
	// every hit of its site.
	unknown bool
}

// The kinds of marks.
const (
	markID byte = iota
	markUser
	markAddress
	markOrder
	markLate
	markOwn
)

// markSeed makes marks of this process its own: nobody outside can aim at a
// collision, and one would only cost speed.
var markSeed = maphash.MakeSeed()

func hashMark(kind byte, text string) uint64 {
	var h maphash.Hash
	h.SetSeed(markSeed)
	h.WriteByte(kind)   // no error: it is a hash
	h.WriteString(text) // as above
	return h.Sum64()
}

// lateMark is common to all hits of a site that are far from their time of arrival.
var lateMark = hashMark(markLate, "")

// findMarks gives the marks of a hit. mask is how many bytes of an address Matomo
// leaves out when it recognises visitors, 0 to 4.
func findMarks(it *item, mask uint8) visitorMarks {
	var m visitorMarks
	if it.malformed {
		return m // it is never sent
	}
	text, certain := readerOf(&it.Hit)
	uid, cid, id, order := text("uid"), text("cid"), text("_id"), text("ec_id")
	ids := make([]uint64, 0, 5)
	// Which of them counts is a matter of Matomo's settings and of each hit
	// (core/Tracker/Request.php, getVisitorId).
	if uid != "" {
		user := effective(uid)
		ids = append(ids, hashMark(markID, userID(user)), hashMark(markUser, narrow(user)))
	}
	for _, candidate := range [...]string{cid, id, it.Environment.VisitorCookie} {
		if len(candidate) >= visitorIDLen {
			ids = append(ids, hashMark(markID, binaryID(candidate)))
		}
	}
	m.all = distinct(ids, 0)
	m.ids = uint8(len(m.all))
	m.all = append(m.all, hashMark(markAddress, maskedAddress(it.Environment.ClientIP, mask)))
	if cip := text("cip"); it.Rights == hit.Theirs && cip != "" {
		m.all = append(m.all, hashMark(markAddress, maskedAddress(cip, mask)))
	}
	m.all = distinct(m.all, int(m.ids))
	m.addresses = uint8(len(m.all)) - m.ids
	if order != "" {
		// Order ids are unique in a site, and MySQL compares them without case.
		m.all = append(m.all, hashMark(markOrder, strings.ToLower(strings.TrimSpace(effective(order)))))
	}
	m.unknown = !certain()
	return m
}

// distinct removes repeated marks behind the first from.
func distinct(list []uint64, from int) []uint64 {
	out := list[:from]
	for _, m := range list[from:] {
		seen := false
		for _, o := range out[from:] {
			seen = seen || o == m
		}
		if !seen {
			out = append(out, m)
		}
	}
	return out
}

// visitorIDLen is how many characters a visitor's id has (Tracker::LENGTH_HEX_ID_STRING).
const visitorIDLen = 16

// userID gives the visitor's id that Matomo makes of a user's, which is as [effective]
// gives it.
func userID(user string) string {
	sum := sha1.Sum([]byte(escapeHTML.Replace(user)))
	return hex.EncodeToString(sum[:visitorIDLen/2])
}

// binaryID gives an id's first characters as PHP's pack("H*") reads them: without
// case, and a character that is no digit counts as zero.
func binaryID(id string) string {
	b := []byte(id[:visitorIDLen])
	for i, c := range b {
		switch {
		case c >= '0' && c <= '9' || c >= 'a' && c <= 'f':
		case c >= 'A' && c <= 'F':
			b[i] = c | 0x20
		default:
			b[i] = '0'
		}
	}
	return string(b)
}

// effective gives a text as Matomo uses it after core/Common.php's
// sanitizeInputValue, before the escaping. Entities are decoded until none is left,
// since PHP knows fewer of them: texts that it reads alike come out alike.
func effective(s string) string {
	if !utf8.ValidString(s) {
		latin := make([]rune, len(s))
		for i := range len(s) {
			latin[i] = rune(s[i])
		}
		s = string(latin)
	}
	if strings.ContainsAny(s, "\r\n\x00") {
		s = strings.NewReplacer("\r", "", "\n", "", "\x00", "").Replace(s)
	}
	for range 4 {
		decoded := html.UnescapeString(s)
		if decoded == s {
			break
		}
		s = strings.ReplaceAll(decoded, "\x00", "")
	}
	return s
}

// narrow replaces what a database without utf8mb4 cannot hold, as Matomo does then.
func narrow(s string) string {
	return strings.Map(func(r rune) rune {
		if r > 0xffff {
			return utf8.RuneError
		}
		return r
	}, s)
}

// maskedAddress gives an address in one form, with as many bytes left out as
// Matomo leaves out (matomo/network, IPv4 and IPv6, anonymize). What is no address
// counts as 0.0.0.0, as in Matomo.
func maskedAddress(text string, mask uint8) string {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" || mask >= maxAddressMask {
		return ""
	}
	addr = addr.Unmap()
	bits := 32 - 8*int(mask)
	if addr.Is6() {
		bits = [...]int{128, 64, 48, 24}[mask]
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return ""
	}
	raw, _ := prefix.Addr().MarshalBinary() // it cannot fail
	return string(raw)
}

// readerOf gives how a hit's parameters of type string are read, and whether all
// that was read is certain.
func readerOf(h *hit.Hit) (text func(name string) string, certain func() bool) {
	if h.Form != hit.Object {
		f := phpform.Parse(h.Params)
		return f.String, func() bool { return true }
	}
	members := map[string]json.RawMessage{}
	sure := json.Unmarshal(h.Params, &members) == nil
	object := objectReader(members)
	return func(name string) string {
		value := bytes.TrimSpace(object[name])
		if len(value) > 0 && (value[0] == '-' || value[0] >= '0' && value[0] <= '9') && !plainInteger(value) {
			sure = false // PHP writes numbers in its own way
		}
		return object.text(name)
	}, func() bool { return sure }
}

// plainInteger reports whether PHP writes a JSON number as it stands there.
func plainInteger(number []byte) bool {
	digits := bytes.TrimPrefix(number, []byte("-"))
	if len(digits) == 0 || len(digits) > 18 || digits[0] == '0' && len(number) > 1 {
		return false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
