package admin

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// SiteRanges says which sites are wanted. Empty it means all.
type SiteRanges []SiteRange

// A SiteRange is a site, or several in a row.
type SiteRange struct{ First, Last int64 }

// ParseSiteRanges reads numbers and ranges of them with commas between, as "1,4,7-9", or
// nothing.
func ParseSiteRanges(text string) (SiteRanges, error) {
	var s SiteRanges
	if text == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			last = first
		}
		a, errA := strconv.ParseUint(first, 10, 63)
		b, errB := strconv.ParseUint(last, 10, 63)
		if errA != nil || errB != nil || a == 0 || b < a {
			return nil, fmt.Errorf("%q: want numbers of sites, as 1,4,7-9", part)
		}
		s = append(s, SiteRange{int64(a), int64(b)})
	}
	return s, nil
}

// UnmarshalText adds what [ParseSiteRanges] reads of a flag, which may be given again.
func (s *SiteRanges) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		return errors.New("want numbers of sites, as 1,4,7-9")
	}
	more, err := ParseSiteRanges(string(text))
	*s = append(*s, more...)
	return err
}

// String gives what [ParseSiteRanges] reads.
func (s SiteRanges) String() string {
	parts := make([]string, len(s))
	for i, r := range s {
		parts[i] = strconv.FormatInt(r.First, 10)
		if r.Last != r.First {
			parts[i] += "-" + strconv.FormatInt(r.Last, 10)
		}
	}
	return strings.Join(parts, ",")
}

// Has says whether a site is wanted.
func (s SiteRanges) Has(site int64) bool {
	return len(s) == 0 || slices.ContainsFunc(s, func(r SiteRange) bool { return r.First <= site && site <= r.Last })
}
