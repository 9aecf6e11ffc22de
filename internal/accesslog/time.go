package accesslog

import (
	"bytes"
	"math"
	"time"
)

// Logs of requests for Matomo are not older than the web's first logs, and clocks that
// are wrong mostly say 1970, or a year that is no year.
const (
	firstYear   = 1995
	lastYear    = 2199
	firstSecond = 788918400  // since 1970, of firstYear
	endSecond   = 7258118400 // of the year after lastYear
)

// A stamp gathers what a line says about one moment, of which formats may log the
// parts apart.
type stamp struct {
	has       stampPart
	sec       int64 // since 1970, if hasEpoch
	nsec      int
	precision time.Duration
	offset    int // of the zone in seconds, if hasZone

	year, month, day, hour, minute, second int
}

type stampPart uint16

const (
	hasEpoch stampPart = 1 << iota
	hasYear
	hasMonth
	hasDay
	hasHour
	hasMinute
	hasSecond
	hasZone
	hasFraction

	hasDate = hasYear | hasMonth | hasDay | hasHour
)

// setEpoch takes seconds since 1970, unless it has them more precisely already.
func (s *stamp) setEpoch(sec int64, nsec int, precision time.Duration) {
	if s.has&hasEpoch != 0 && s.precision <= precision {
		return
	}
	s.has |= hasEpoch
	s.sec = sec
	s.setFraction(nsec, precision)
}

// setFraction takes the part of a second that has passed.
func (s *stamp) setFraction(nsec int, precision time.Duration) {
	if s.has&hasFraction != 0 && s.precision <= precision {
		return
	}
	if precision < time.Second {
		s.has |= hasFraction
	}
	s.nsec, s.precision = nsec, precision
}

// logged says whether there is a whole moment.
func (s *stamp) logged() bool {
	return s.has&hasEpoch != 0 || s.has&hasDate == hasDate
}

// at gives the moment. A time without a zone is one in loc.
func (s *stamp) at(loc *time.Location) (time.Time, time.Duration, error) {
	precision := s.precision
	switch {
	case s.has&(hasEpoch|hasSecond) == 0 && s.has&hasMinute == 0:
		precision = time.Hour
	case s.has&(hasEpoch|hasSecond) == 0:
		precision = time.Minute
	case precision == 0:
		precision = time.Second
	}
	if s.has&hasEpoch != 0 {
		if s.sec < firstSecond || s.sec >= endSecond {
			return time.Time{}, 0, ErrTime
		}
		return time.Unix(s.sec, int64(s.nsec)).UTC(), precision, nil
	}
	if err := s.check(); err != nil {
		return time.Time{}, 0, err
	}
	if s.has&hasZone == 0 {
		if loc == nil {
			return time.Time{}, 0, ErrZone
		}
		return s.in(loc), precision, nil
	}
	return time.Unix(s.seconds(), int64(s.nsec)).UTC(), precision, nil
}

// in gives the moment of a local time, the first of two.
func (s *stamp) in(loc *time.Location) time.Time {
	t := time.Date(s.year, time.Month(s.month), s.day, s.hour, s.minute, s.second, s.nsec, loc)
	_, offset := t.Zone()
	_, before := t.AddDate(0, 0, -1).Zone()
	if before != offset {
		first := t.Add(time.Duration(offset-before) * time.Second)
		if _, o := first.Zone(); o == before {
			t = first
		}
	}
	return t.UTC()
}

// check says whether the parts make a date and a time that there are. A leap second
// becomes the first second of the next minute, as the clocks of servers have it.
func (s *stamp) check() error {
	const leap = 60
	if s.year < firstYear || s.year > lastYear || s.month < 1 || s.month > 12 || s.day < 1 || s.day > daysIn(s.year, s.month) ||
		s.hour > 23 || s.minute > 59 || s.second > leap {
		return ErrTime
	}
	return nil
}

// seconds gives the seconds since 1970 of what check has passed.
func (s *stamp) seconds() int64 {
	days := int64(daysBefore(s.year, s.month) + s.day - 1)
	return days*86400 + int64(s.hour*3600+s.minute*60+s.second-s.offset)
}

var daysBeforeMonth = [13]int{0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365}

func isLeap(year int) bool { return year%4 == 0 && (year%100 != 0 || year%400 == 0) }

func daysIn(year, month int) int {
	if month == 2 && isLeap(year) {
		return 29
	}
	return daysBeforeMonth[month] - daysBeforeMonth[month-1]
}

// daysBefore counts the days from 1970 to the first of a month.
func daysBefore(year, month int) int {
	y := year - 1
	const before1970 = 1969*365 + 1969/4 - 1969/100 + 1969/400
	days := y*365 + y/4 - y/100 + y/400 - before1970 + daysBeforeMonth[month-1]
	if month > 2 && isLeap(year) {
		days++
	}
	return days
}

// A commonTime reads "02/Jan/2006:15:04:05 -0700" and keeps the last one, since a
// busy log has the same second many times.
type commonTime struct {
	text [len(commonLayout)]byte
	sec  int64
}

const commonLayout = "02/Jan/2006:15:04:05 -0700"

// read gives the seconds since 1970 of a text of commonLayout's length.
func (c *commonTime) read(s []byte) (int64, error) {
	if string(s) == string(c.text[:]) {
		return c.sec, nil
	}
	var t stamp
	if n, err := t.read(commonParts, s); err != nil || n != len(commonLayout) {
		return 0, ErrTime
	}
	if err := t.check(); err != nil {
		return 0, err
	}
	copy(c.text[:], s)
	c.sec = t.seconds()
	return c.sec, nil
}

// A layout is a sequence of parts of a time: of strftime's letters the ones that read
// handles, with texts in between.
type layout []layoutPart

type layoutPart struct {
	op   byte // 0 for a text
	text string
}

// Letters of layouts that strftime does not have.
const (
	opEpoch      = 's'
	opEpochMilli = 1
	opEpochMicro = 2
	opMilli      = 3 // three digits of a fraction
	opMicro      = 6
	opSecondsDot = 7 // since 1970, with a fraction
	opISO        = 8 // as RFC 3339 has it, or nearly
)

var (
	commonParts = layout{{op: 'd'}, {text: "/"}, {op: 'b'}, {text: "/"}, {op: 'Y'}, {text: ":"}, {op: 'H'}, {text: ":"}, {op: 'M'}, {text: ":"}, {op: 'S'}, {text: " "}, {op: 'z'}}
	isoParts    = layout{{op: opISO}}
)

// read reads a time that s begins with, and says how long it is.
func (t *stamp) read(l layout, s []byte) (int, error) {
	pos := 0
	for i := range l {
		p := &l[i]
		if p.op == 0 {
			if !bytes.HasPrefix(s[pos:], []byte(p.text)) {
				return pos, ErrTime
			}
			pos += len(p.text)
			continue
		}
		n, ok := t.readPart(p.op, s[pos:])
		if !ok {
			return pos, ErrTime
		}
		pos += n
	}
	return pos, nil
}

func (t *stamp) readPart(op byte, s []byte) (n int, ok bool) {
	switch op {
	case 'Y':
		return t.part(&t.year, hasYear, s, 4)
	case 'm':
		return t.part(&t.month, hasMonth, s, 2)
	case 'd':
		return t.part(&t.day, hasDay, s, 2)
	case 'e':
		if len(s) > 1 && s[0] == ' ' {
			n, ok = t.part(&t.day, hasDay, s[1:], 1)
			return n + 1, ok
		}
		return t.part(&t.day, hasDay, s, 2)
	case 'H':
		return t.part(&t.hour, hasHour, s, 2)
	case 'M':
		return t.part(&t.minute, hasMinute, s, 2)
	case 'S':
		return t.part(&t.second, hasSecond, s, 2)
	case 'b':
		t.has |= hasMonth
		t.month = monthOf(s)
		return 3, t.month > 0
	case 'z':
		return t.readZone(s)
	case opISO:
		return t.readISO(s)
	case opMilli:
		return t.readFraction(s, 3)
	case opMicro:
		return t.readFraction(s, 6)
	}
	return t.readEpoch(op, s)
}

// part reads digits of a fixed number.
func (t *stamp) part(to *int, what stampPart, s []byte, digits int) (int, bool) {
	if len(s) < digits {
		return 0, false
	}
	n, ok := number(s[:digits])
	*to = int(n)
	t.has |= what
	return digits, ok
}

const monthNames = "JanFebMarAprMayJunJulAugSepOctNovDec"

// monthOf gives 0 for what is no month.
func monthOf(s []byte) int {
	if len(s) < 3 {
		return 0
	}
	for m := range 12 {
		if string(s[:3]) == monthNames[3*m:3*m+3] {
			return m + 1
		}
	}
	return 0
}

// readZone reads "Z", "+hhmm" or "+hh:mm".
func (t *stamp) readZone(s []byte) (int, bool) {
	if len(s) > 0 && s[0] == 'Z' {
		t.has |= hasZone
		return 1, true
	}
	if len(s) < 5 || (s[0] != '+' && s[0] != '-') {
		return 0, false
	}
	minutes, size := s[3:5], 5
	if s[3] == ':' {
		if len(s) < 6 {
			return 0, false
		}
		minutes, size = s[4:6], 6
	}
	h, ok := number(s[1:3])
	m, ok2 := number(minutes)
	const farthest = 14 // hours, east of Greenwich
	if !ok || !ok2 || h > farthest || m > 59 {
		return 0, false
	}
	t.has |= hasZone
	t.offset = int(h*3600 + m*60)
	if s[0] == '-' {
		t.offset = -t.offset
	}
	return size, true
}

var isoDateParts = layout{{op: 'Y'}, {text: "-"}, {op: 'm'}, {text: "-"}, {op: 'd'}}
var isoTimeParts = layout{{op: 'H'}, {text: ":"}, {op: 'M'}, {text: ":"}, {op: 'S'}}

// readISO reads "2006-01-02T15:04:05", which may have a space in place of the T, a
// fraction and a zone.
func (t *stamp) readISO(s []byte) (int, bool) {
	n, err := t.read(isoDateParts, s)
	if err != nil || n >= len(s) || (s[n] != 'T' && s[n] != ' ') {
		return 0, false
	}
	n++
	m, err := t.read(isoTimeParts, s[n:])
	if err != nil {
		return 0, false
	}
	n += m
	if n < len(s) && (s[n] == '.' || s[n] == ',') {
		digits := countDigits(s[n+1:])
		if digits == 0 {
			return 0, false
		}
		t.readFraction(s[n+1:], digits)
		n += 1 + digits
	}
	if m, ok := t.readZone(s[n:]); ok {
		n += m
	}
	return n, true
}

func countDigits(s []byte) int {
	for i, c := range s {
		if !isDigit(c) {
			return i
		}
	}
	return len(s)
}

// readFraction reads digits behind a decimal point. The tenth and those behind it
// count for nothing.
func (t *stamp) readFraction(s []byte, digits int) (int, bool) {
	nsec, unit := 0, int(time.Second)
	if len(s) < digits {
		return 0, false
	}
	for _, c := range s[:digits] {
		if !isDigit(c) {
			return 0, false
		}
		if unit > 1 {
			unit /= 10
			nsec += int(c-'0') * unit
		}
	}
	t.setFraction(nsec, time.Duration(unit))
	return digits, true
}

// readEpoch reads seconds, milliseconds or microseconds since 1970.
func (t *stamp) readEpoch(op byte, s []byte) (int, bool) {
	digits := countDigits(s)
	n, ok := number(s[:digits])
	if !ok {
		return 0, false
	}
	switch op {
	case opEpochMilli:
		t.setEpoch(n/1000, int(n%1000)*1e6, time.Millisecond)
	case opEpochMicro:
		t.setEpoch(n/1e6, int(n%1e6)*1e3, time.Microsecond)
	case opEpoch:
		t.setEpoch(n, 0, time.Second)
	default:
		var fraction stamp
		more := 0
		if digits < len(s) && s[digits] == '.' {
			if more = countDigits(s[digits+1:]); more == 0 {
				return 0, false
			}
			fraction.readFraction(s[digits+1:], more)
			more++
		}
		if fraction.precision == 0 {
			fraction.precision = time.Second
		}
		t.setEpoch(n, fraction.nsec, fraction.precision)
		digits += more
	}
	return digits, true
}

// duration reads a decimal number of units. A hyphen and "-1" are none.
func duration(s []byte, unit time.Duration) (time.Duration, time.Duration, bool) {
	whole := countDigits(s)
	n, ok := number(s[:whole])
	if !ok || n >= math.MaxInt64/int64(unit) {
		return 0, 0, false
	}
	d, precision := time.Duration(n)*unit, unit
	if whole < len(s) {
		if s[whole] != '.' || countDigits(s[whole+1:]) != len(s)-whole-1 {
			return 0, 0, false
		}
		for _, c := range s[whole+1:] {
			if precision < 10 {
				break
			}
			precision /= 10
			d += time.Duration(c-'0') * precision
		}
	}
	return d, precision, true
}

// settle gives a record its time. The longest that a request can have taken is a day:
// a longer time is no duration.
func (r *Record) settle(start, end *stamp, took, precision time.Duration, loc *time.Location) error {
	const longest = 24 * time.Hour
	s := start
	if !start.logged() {
		s = end
	}
	if !s.logged() {
		return ErrTime
	}
	var err error
	if r.Time, r.Precision, err = s.at(loc); err != nil {
		return err
	}
	r.Start = s == start
	if s == end && precision > 0 && took <= longest {
		// An end of whole seconds was somewhen in its second: the middle is the least wrong,
		// and leaves a quick request in the second in which it came.
		r.Time, r.Start = r.Time.Add(r.Precision/time.Second*(time.Second/2)-took), true
		r.Precision = max(r.Precision, precision)
	}
	return nil
}
