package archivegate

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// A Zone is a site's timezone, as Matomo writes it: a name of the IANA database,
// old aliases included, or "UTC", "UTC+5.5", "UTC-3" with hours in decimals.
type Zone struct {
	name string
	loc  *time.Location
}

// errZone: the text is no timezone that is known here.
var errZone = errors.New("unknown timezone")

// ParseZone reads a timezone. The database is the system's, or else the one that is
// built in.
func ParseZone(name string) (Zone, error) {
	if offset, ok := strings.CutPrefix(name, "UTC"); ok && offset != "" {
		hours, err := strconv.ParseFloat(offset, 64)
		if err != nil || math.Abs(hours) > maxOffset.Hours() || offset[0] != '+' && offset[0] != '-' {
			return Zone{}, fmt.Errorf("%w %q", errZone, name)
		}
		// Matomo reckons with hours in floating point (core/Date.php, addHourTo), for
		// which whole seconds are near enough.
		return Zone{name, time.FixedZone(name, int(math.Round(hours*3600)))}, nil
	}
	// Go takes these two for "UTC" and for wherever this machine is.
	if name == "" || name == "Local" {
		return Zone{}, fmt.Errorf("%w %q", errZone, name)
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return Zone{}, fmt.Errorf("%w %q", errZone, name)
	}
	return Zone{name, loc}, nil
}

// maxOffset is farther from UTC than any clock has ever been set.
const maxOffset = 26 * time.Hour

// Name gives the zone as Matomo writes it.
func (z Zone) Name() string { return z.name }

// On gives the day that it is at t.
func (z Zone) On(t time.Time) Date { return dateOf(t.In(z.loc)) }

// Start gives the first instant that belongs to d or a later day.
//
// That is not the midnight that [time.Date] gives where the clock jumps over
// midnight: west of UTC it would be an hour of the day before. Where the clock is put
// back over midnight it is the first of the two.
func (z Zone) Start(d Date) time.Time {
	wall := d.utc() // what the clock must show, as if it stood in UTC
	for t := wall.Add(-maxOffset); ; {
		// Between two changes of the clock an instant is its time less the offset.
		_, until := t.In(z.loc).ZoneBounds()
		_, offset := t.In(z.loc).Zone()
		at := wall.Add(-time.Duration(offset) * time.Second)
		if at.Before(t) {
			at = t
		}
		if until.IsZero() || at.Before(until) {
			return at.UTC()
		}
		t = until
	}
}

// Day gives the interval of d, the end excluded. It holds every instant that Matomo
// counts to the day, and where Matomo counts an hour to no day, that hour (Matomo
// takes the first 23:59:59 of two). The interval of a day that the place left out is
// empty.
func (z Zone) Day(d Date) (start, end time.Time) { return z.Start(d), z.Start(d.Add(1)) }
