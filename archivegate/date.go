package archivegate

import (
	"fmt"
	"time"
)

// A Date is a day of the calendar, without a place.
type Date struct {
	Year  int
	Month time.Month
	Day   int
}

// ParseDate reads YYYY-MM-DD and nothing else: a day that the calendar does not
// have is an error, not the day after.
func ParseDate(text string) (Date, error) {
	t, err := time.Parse(time.DateOnly, text)
	if err != nil || t.Year() < firstYear {
		return Date{}, fmt.Errorf("%q is no day: want YYYY-MM-DD", text)
	}
	return dateOf(t), nil
}

// firstYear is the first that Matomo knows of (core/Date.php, FIRST_WEBSITE_TIMESTAMP
// lies in 1991).
const firstYear = 1991

// dateOf gives the day that a time's own clock shows.
func dateOf(t time.Time) Date {
	y, m, d := t.Date()
	return Date{y, m, d}
}

// String gives YYYY-MM-DD.
func (d Date) String() string { return fmt.Sprintf("%04d-%02d-%02d", d.Year, d.Month, d.Day) }

// MarshalText is String.
func (d Date) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is [ParseDate].
func (d *Date) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDate(string(text))
	return err
}

// Add gives the day that many days later.
func (d Date) Add(days int) Date { return dateOf(d.utc().AddDate(0, 0, days)) }

// Before reports whether d is earlier than e.
func (d Date) Before(e Date) bool { return d.utc().Before(e.utc()) }

// utc gives the midnight with which the day begins in UTC. It is also the wall
// clock's "00:00" of any other place, as a number.
func (d Date) utc() time.Time { return time.Date(d.Year, d.Month, d.Day, 0, 0, 0, 0, time.UTC) }
