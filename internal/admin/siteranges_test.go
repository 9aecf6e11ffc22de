package admin

import "testing"

func TestSiteRanges(t *testing.T) {
	for _, tt := range []struct {
		text   string
		has    []int64
		hasNot []int64
	}{
		{"", []int64{0, 1, 1 << 62}, nil},
		{"4", []int64{4}, []int64{0, 3, 5}},
		{"1,4,7-9", []int64{1, 4, 7, 8, 9}, []int64{0, 2, 6, 10}},
		{"2-9223372036854775807", []int64{2, 1<<63 - 1}, []int64{1}},
	} {
		s, err := ParseSiteRanges(tt.text)
		if err != nil || s.String() != tt.text {
			t.Errorf("%q: got %q, %v", tt.text, s, err)
		}
		for _, site := range tt.has {
			if !s.Has(site) {
				t.Errorf("%q has not %d", tt.text, site)
			}
		}
		for _, site := range tt.hasNot {
			if s.Has(site) {
				t.Errorf("%q has %d", tt.text, site)
			}
		}
	}
	for _, text := range []string{",", "0", "a", "1,", "1-", "-1", "9-7", "1-2-3", "+1", "9223372036854775808", "all"} {
		if s, err := ParseSiteRanges(text); err == nil {
			t.Errorf("%q: got %q", text, s)
		}
	}
}
