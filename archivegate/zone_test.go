package archivegate

import (
	"errors"
	"testing"
	"time"
	_ "time/tzdata"
)

func mustZone(t testing.TB, name string) Zone {
	t.Helper()
	z, err := ParseZone(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func mustDate(t testing.TB, text string) Date {
	t.Helper()
	d, err := ParseDate(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// The intervals are Matomo's, as its own conversion gives them, but for the hour that
// Matomo counts to no day.
func TestDay(t *testing.T) {
	tests := []struct{ name, zone, date, start, end string }{
		{"UTC", "UTC", "2026-03-16", "2026-03-16T00:00:00Z", "2026-03-17T00:00:00Z"},
		{"half an hour off", "UTC+5.5", "2026-03-16", "2026-03-15T18:30:00Z", "2026-03-16T18:30:00Z"},
		{"three quarters off", "UTC+12.75", "2026-03-16", "2026-03-15T11:15:00Z", "2026-03-16T11:15:00Z"},
		{"behind", "UTC-9.5", "2026-03-16", "2026-03-16T09:30:00Z", "2026-03-17T09:30:00Z"},
		{"an old alias", "Asia/Calcutta", "2026-03-16", "2026-03-15T18:30:00Z", "2026-03-16T18:30:00Z"},
		{"another old alias", "US/Eastern", "2026-01-16", "2026-01-16T05:00:00Z", "2026-01-17T05:00:00Z"},
		{"23 hours", "Europe/Berlin", "2024-03-31", "2024-03-30T23:00:00Z", "2024-03-31T22:00:00Z"},
		{"25 hours", "Europe/Berlin", "2024-10-27", "2024-10-26T22:00:00Z", "2024-10-27T23:00:00Z"},
		{"24 and a half hours", "Australia/Lord_Howe", "2024-04-07", "2024-04-06T13:00:00Z", "2024-04-07T13:30:00Z"},
		{"no midnight, west", "America/Santiago", "2024-09-08", "2024-09-08T04:00:00Z", "2024-09-09T03:00:00Z"},
		{"the day before it", "America/Santiago", "2024-09-07", "2024-09-07T04:00:00Z", "2024-09-08T04:00:00Z"},
		{"no midnight in Brazil", "America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"},
		{"no midnight in Cuba", "America/Havana", "2024-03-10", "2024-03-10T05:00:00Z", "2024-03-11T04:00:00Z"},
		{"no midnight in Paraguay", "America/Asuncion", "2024-10-06", "2024-10-06T04:00:00Z", "2024-10-07T03:00:00Z"},
		{"no midnight, east", "Africa/Cairo", "2024-04-26", "2024-04-25T22:00:00Z", "2024-04-26T21:00:00Z"},
		{"no midnight in Lebanon", "Asia/Beirut", "2024-03-31", "2024-03-30T22:00:00Z", "2024-03-31T21:00:00Z"},
		{"23:xx twice", "America/Santiago", "2024-04-06", "2024-04-06T03:00:00Z", "2024-04-07T04:00:00Z"},
		{"00:00 twice", "America/Havana", "2024-11-03", "2024-11-03T04:00:00Z", "2024-11-04T05:00:00Z"},
		{"midnight crossed twice", "America/St_Johns", "2010-11-07", "2010-11-07T02:30:00Z", "2010-11-08T03:30:00Z"},
		{"a day left out", "Pacific/Apia", "2011-12-30", "2011-12-30T10:00:00Z", "2011-12-30T10:00:00Z"},
		{"before it", "Pacific/Apia", "2011-12-29", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"},
		{"after it", "Pacific/Apia", "2011-12-31", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"},
		{"far ahead", "Pacific/Kiritimati", "2026-03-16", "2026-03-15T10:00:00Z", "2026-03-16T10:00:00Z"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start, end := mustZone(t, tt.zone).Day(mustDate(t, tt.date))
			if got := start.Format(time.RFC3339); got != tt.start {
				t.Errorf("start %s, want %s", got, tt.start)
			}
			if got := end.Format(time.RFC3339); got != tt.end {
				t.Errorf("end %s, want %s", got, tt.end)
			}
		})
	}
}

// Every instant of forty years stands in the day that its place's clock shows, or in
// a later one where the clock was put back over midnight; days follow each other
// without holes; and no day begins off a quarter of an hour since 1991 but where the
// place itself was off by then.
func TestDaysFollowEachOther(t *testing.T) {
	zones := []string{
		"UTC", "Europe/Berlin", "America/New_York", "America/Santiago", "America/St_Johns", "Africa/Cairo", "Asia/Kathmandu",
		"Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Chatham", "Pacific/Kiritimati", "America/Havana", "Asia/Tehran", "Africa/Casablanca",
	}
	for _, name := range zones {
		z := mustZone(t, name)
		last := z.Start(Date{1995, 1, 1})
		for d := (Date{1995, 1, 1}); d.Year < 2035; d = d.Add(1) {
			start, end := z.Day(d)
			if start != last || end.Before(start) {
				t.Fatalf("%s %s: %s to %s, the day before ends %s", name, d, start, end, last)
			}
			last = end
			if start.Unix()%900 != 0 && name != "America/St_Johns" { // 00:01 until 2011
				t.Errorf("%s %s begins %s", name, d, start)
			}
			if start.Equal(end) {
				continue
			}
			if on := z.On(start); on != d {
				t.Fatalf("%s: %s begins when it is %s", name, d, on)
			}
			if on := z.On(start.Add(-time.Second)); !on.Before(d) {
				t.Fatalf("%s: it is %s already a second before it begins", name, on)
			}
			for at := start; at.Before(end); at = at.Add(15 * time.Minute) {
				if on := z.On(at); d.Before(on) {
					t.Fatalf("%s: at %s it is %s, and %s is not over", name, at, on, d)
				}
			}
		}
	}
}

func TestZonesThatAreNone(t *testing.T) {
	for _, name := range []string{"", "Local", "Mars/Olympus", "UTC5", "UTC+", "UTC+x", "UTC+5:30", "UTC+99", "UTC+NaN", "UTC-Inf", "../etc/passwd", "/etc/localtime", "utc+1 "} {
		if z, err := ParseZone(name); !errors.Is(err, errZone) {
			t.Errorf("ParseZone(%q) = %v, %v; want an unknown timezone", name, z, err)
		}
	}
}

func TestDatesThatAreNone(t *testing.T) {
	for _, text := range []string{"", "2026-02-30", "2026-13-01", "2026-1-1", "26-01-01", "2026-01-01 ", "2026-01-01T00:00:00Z", "1990-12-31", "today", "0000-00-00"} {
		if d, err := ParseDate(text); err == nil {
			t.Errorf("ParseDate(%q) = %v, want an error", text, d)
		}
	}
}
