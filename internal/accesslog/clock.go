package accesslog

import (
	"bytes"
	"strconv"
	"time"
)

// A clock reads times, and remembers the last minute: of a million lines few begin one.
type clock struct {
	prefix [17]byte // 02/Jan/2006:15:04
	zone   [5]byte  // -0700
	minute time.Time
}

const commonTime = "02/Jan/2006:15:04:05 -0700"

// common reads a time as Apache and nginx write it.
func (c *clock) common(b []byte) (time.Time, bool) {
	if len(b) != len(commonTime) || b[17] != ':' || b[20] != ' ' {
		return time.Time{}, false
	}
	seconds, ok := twoDigits(b[18:20])
	if !ok || seconds > 60 {
		return time.Time{}, false
	}
	if c.minute.IsZero() || !bytes.Equal(c.prefix[:], b[:17]) || !bytes.Equal(c.zone[:], b[21:]) {
		t, err := time.Parse("02/Jan/2006:15:04 -0700", string(b[:17])+string(b[20:]))
		if err != nil {
			return time.Time{}, false
		}
		c.minute = t
		copy(c.prefix[:], b)
		copy(c.zone[:], b[21:])
	}
	return c.minute.Add(time.Duration(seconds) * time.Second), true
}

func twoDigits(b []byte) (int, bool) {
	if b[0] < '0' || b[0] > '9' || b[1] < '0' || b[1] > '9' {
		return 0, false
	}
	return int(b[0]-'0')*10 + int(b[1]-'0'), true
}

// epoch reads seconds since 1970, with or without a fraction.
func epoch(b []byte) (time.Time, bool) {
	whole, fraction, _ := bytes.Cut(b, []byte("."))
	seconds, err := strconv.ParseInt(string(whole), 10, 64)
	if err != nil || seconds < 0 || len(fraction) > 9 {
		return time.Time{}, false
	}
	nanoseconds := int64(0)
	for i := range 9 {
		nanoseconds *= 10
		if i < len(fraction) {
			if fraction[i] < '0' || fraction[i] > '9' {
				return time.Time{}, false
			}
			nanoseconds += int64(fraction[i] - '0')
		}
	}
	return time.Unix(seconds, nanoseconds), true
}

// duration reads a length of time, given in units.
func duration(b []byte, unit time.Duration) (time.Duration, bool) {
	v, err := strconv.ParseFloat(string(b), 64)
	if err != nil || v < 0 || v > 1e9 {
		return 0, false
	}
	return time.Duration(v * float64(unit)), true
}
