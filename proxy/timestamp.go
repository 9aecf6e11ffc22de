package proxy

import (
	"strconv"
	"strings"
	"time"
)

// oldestTime is how far back a custom time may lie; Matomo ignores older ones
// (core/Tracker/Request.php, isTimestampValid).
const oldestTime = 20 * 365 * 86400

// A hitTime is what Matomo would make of a hit's cdt and cdo.
type hitTime struct {
	at      int64 // Unix seconds: when Matomo will say the hit happened
	old     bool  // the custom time is so old that it needs a token
	unknown bool  // cdt is a text that only PHP may understand; the arrival time is taken
}

// resolveTime follows getCustomTimestamp of core/Tracker/Request.php: a custom
// time that lies in the future or too far back is ignored, one of at least age
// needs a token. The arrival is in Unix seconds.
func resolveTime(cdt, cdo value, arrival int64, age time.Duration) hitTime {
	t := hitTime{at: arrival}
	if cdt.kind == missing && cdo.kind == missing {
		return t
	}
	custom, given := 0.0, false
	offset := cdo.int(0)
	if s := strings.ReplaceAll(cdt.text(), "\x00", ""); s != "" && s != "0" {
		custom, given = phpNumber(s)
		if !given {
			var when time.Time
			if when, given = parseTimeText(s, time.Unix(arrival, 0)); !given {
				t.unknown = true
				return t
			}
			custom = float64(when.Unix())
		}
	} else if offset != 0 {
		custom, given = float64(arrival), true
	}
	if !given {
		return t
	}
	if offset < 0 {
		custom += float64(offset)
	} else {
		custom -= float64(offset)
	}
	now := float64(arrival)
	if custom > now || custom <= now-oldestTime {
		return t
	}
	t.old = now-custom >= age.Seconds()
	t.at = int64(custom)
	return t
}

// parseTimeText reads the texts that PHP's strtotime reads in UTC and that
// clients of the Tracking API use: dates with or without a time and an offset,
// "@" and Unix seconds, "now", and sums of "+2 days" or "1 hour ago". It answers
// false for everything else, of which PHP may understand more.
func parseTimeText(s string, now time.Time) (time.Time, bool) {
	s = strings.ToLower(strings.Trim(s, " \t"))
	if len(s) > maxTimeText {
		return time.Time{}, false
	}
	switch s {
	case "now":
		return now.UTC(), true
	case "today", "midnight":
		return now.UTC().Truncate(24 * time.Hour), true
	case "noon":
		return now.UTC().Truncate(24 * time.Hour).Add(12 * time.Hour), true
	case "yesterday":
		return now.UTC().Truncate(24*time.Hour).AddDate(0, 0, -1), true
	}
	if rest, ok := strings.CutPrefix(s, "@"); ok {
		seconds, err := strconv.ParseInt(rest, 10, 64)
		return time.Unix(seconds, 0), err == nil && rest[0] != '+'
	}
	if t, ok := parseDate(s); ok {
		return t, true
	}
	if t, ok := parseLayouts(s, now.UTC()); ok {
		return t, true
	}
	return parseRelative(s, now.UTC())
}

// maxTimeText is far more than any date needs.
const maxTimeText = 100

// parseDate reads Y-m-d, or Y-m-d[ T]H:i[:s[.f]] with Z, UTC, GMT or an offset.
// As in PHP the days 29 to 31 run over into the next month.
func parseDate(s string) (time.Time, bool) {
	c := cursor{rest: s, ok: true}
	year := c.digits(4, 4)
	c.expect('-')
	month := c.digits(1, 2)
	c.expect('-')
	day := c.digits(1, 2)
	if !c.ok || month < 1 || month > 12 || day < 1 || day > 31 {
		return time.Time{}, false
	}
	var hour, minute, second, offset int
	if c.rest != "" {
		if !c.skip('t') {
			c.expect(' ')
			c.spaces()
		}
		hour = c.digits(1, 2)
		c.expect(':')
		minute = c.digits(1, 2)
		if c.skip(':') {
			second = c.digits(1, 2)
			if c.skip('.') {
				c.digits(1, 9)
			}
		}
		offset = c.zone()
	}
	if !c.ok || c.rest != "" || hour > 24 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	return time.Date(year, time.Month(month), day, hour, minute, second-offset, 0, time.UTC), true
}

// layouts are further ways of writing a time that PHP reads: the American and the
// German one, with slashes, without any separator, with a month's name, and those
// of mails and of HTTP. Go's parser reads names in any case.
var layouts = [...]string{
	"1/2/2006", "1/2/2006 15:04", "1/2/2006 15:04:05",
	"2006/1/2", "2006/1/2 15:04", "2006/1/2 15:04:05",
	"2.1.2006", "2.1.2006 15:04", "2.1.2006 15:04:05",
	"20060102t150405", "20060102t15:04:05",
	"2 January 2006", "2 January 2006 15:04", "2 January 2006 15:04:05", "2 Jan 2006", "2 Jan 2006 15:04", "2 Jan 2006 15:04:05",
	"January 2 2006", "January 2, 2006", "January 2, 2006 15:04", "January 2, 2006 15:04:05", "Jan 2 2006", "Jan 2, 2006", "Jan 2, 2006 15:04", "Jan 2, 2006 15:04:05",
}

// mailLayout is that of mails and HTTP, without the zone behind it.
const mailLayout = "Mon, 2 Jan 2006 15:04:05"

// parseLayouts reads one of the layouts, or a time of the day alone.
func parseLayouts(s string, now time.Time) (time.Time, bool) {
	for _, layout := range layouts {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	if i := strings.LastIndexByte(s, ' '); i >= 0 {
		zone := cursor{rest: s[i+1:], ok: true}
		offset := zone.zone()
		// PHP moves a date on to the weekday that is named with it.
		t, err := time.Parse(mailLayout, s[:i])
		if err == nil && zone.ok && zone.rest == "" && strings.HasPrefix(s, strings.ToLower(t.Weekday().String()[:3])) {
			return t.Add(-time.Duration(offset) * time.Second), true
		}
	}
	for _, layout := range [...]string{"15:04", "15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil {
			return now.Truncate(24 * time.Hour).Add(time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second), true
		}
	}
	return time.Time{}, false
}

// A cursor reads from the front of a text. After the first miss ok is false.
type cursor struct {
	rest string
	ok   bool
}

func (c *cursor) digits(least, most int) (n int) {
	i := 0
	for i < len(c.rest) && i < most && '0' <= c.rest[i] && c.rest[i] <= '9' {
		n = n*10 + int(c.rest[i]-'0')
		i++
	}
	if i < least {
		c.ok = false
	}
	c.rest = c.rest[i:]
	return n
}

func (c *cursor) skip(b byte) bool {
	if c.rest == "" || c.rest[0] != b {
		return false
	}
	c.rest = c.rest[1:]
	return true
}

func (c *cursor) expect(b byte) {
	if !c.skip(b) {
		c.ok = false
	}
}

func (c *cursor) spaces() { c.rest = strings.TrimLeft(c.rest, " ") }

// maxZoneHours is where PHP stops to call it an offset.
const maxZoneHours = 14

// zone reads what follows a time: nothing, Z, UTC, GMT, or an offset of four
// digits with or without a colon. It gives seconds east of Greenwich.
func (c *cursor) zone() int {
	c.spaces()
	switch c.rest {
	case "", "z", "utc", "gmt":
		c.rest = ""
		return 0
	}
	sign := 1
	if !c.skip('+') {
		c.expect('-')
		sign = -1
	}
	hours := c.digits(2, 2)
	c.skip(':')
	minutes := c.digits(2, 2)
	if hours > maxZoneHours || minutes > 59 {
		c.ok = false
	}
	return sign * (hours*3600 + minutes*60)
}

// parseRelative reads an optional "now" and then one or more numbers, each with
// or without a sign and with a unit, and "ago", which turns all that stands
// before it.
func parseRelative(s string, now time.Time) (time.Time, bool) {
	c := cursor{rest: s, ok: true}
	if rest, ok := strings.CutPrefix(s, "now"); ok && rest != "" && !isLetter(rest[0]) {
		c.rest = rest
	}
	var months, days, seconds int
	terms := 0
	for {
		c.rest = strings.TrimLeft(c.rest, " \t")
		if c.rest == "" {
			break
		}
		if terms > 0 && c.rest == "ago" {
			months, days, seconds = -months, -days, -seconds
			c.rest = ""
			break
		}
		sign := 1
		if c.skip('-') {
			sign = -1
		} else {
			c.skip('+')
		}
		c.rest = strings.TrimLeft(c.rest, " \t")
		n := sign * c.digits(1, maxRelativeDigits)
		c.rest = strings.TrimLeft(c.rest, " \t")
		end := 0
		for end < len(c.rest) && isLetter(c.rest[end]) {
			end++
		}
		unit := c.rest[:end]
		c.rest = c.rest[end:]
		if !c.ok {
			return time.Time{}, false
		}
		switch strings.TrimSuffix(unit, "s") {
		case "sec", "second":
			seconds += n
		case "min", "minute":
			seconds += 60 * n
		case "hour":
			seconds += 3600 * n
		case "day":
			days += n
		case "week":
			days += 7 * n
		case "fortnight":
			days += 14 * n
		case "month":
			months += n
		case "year":
			months += 12 * n
		default:
			return time.Time{}, false
		}
		terms++
	}
	if terms == 0 {
		return time.Time{}, false
	}
	return now.AddDate(0, months, days).Add(time.Duration(seconds) * time.Second), true
}

// maxRelativeDigits keeps the sum of a text's terms within 64 bits of
// nanoseconds.
const maxRelativeDigits = 6

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || c >= 0x80 }
