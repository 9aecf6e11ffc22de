package sink

import (
	"testing"
	"time"
)

// TestBystanders: a suspect that no other lane can clear takes what stands behind
// it, once it has failed often enough.
func TestBystanders(t *testing.T) {
	now := time.Unix(1000, 0)
	tests := []struct {
		name   string
		lone   int
		behind []string
		want   string // places in the lane, from 1
	}{
		{"nobody behind", 9, nil, ""},
		{"too early", 2, []string{"", ""}, ""},
		{"after some patience", 3, []string{"", "", "", "", ""}, "1/2 1/3 1/4 "},
		{"nobody behind a hit in doubt", 9, []string{"", "doubt", ""}, "1/2 "},
		{"nobody whose time has not come", 9, []string{"future", ""}, ""},
		{"nobody who cannot be sent", 9, []string{"", "malformed"}, "1/2 "},
		{"nobody who is settled", 9, []string{"settled", ""}, "1/3 "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLanes()
			for _, what := range append([]string{""}, tt.behind...) {
				it := laneItem(1, group{})
				it.doubt, it.malformed = what == "doubt", what == "malformed"
				if what == "future" {
					it.At = 1030
				}
				l.add(it, now, now.Unix())
				it.settled = what == "settled"
			}
			ln := allLanes(l)[0]
			ln.items[0].lone = tt.lone
			if got := sitesOf(l.bystanders(ln, now.Unix())); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestBystandersForGrows(t *testing.T) {
	last := 0
	for lone := range 2000 {
		n := bystandersFor(lone)
		if n < max(1, last) || n > maxBystanders {
			t.Fatalf("%d bystanders after %d failures, %d before", n, lone, last)
		}
		last = n
	}
	if last != maxBystanders {
		t.Errorf("%d bystanders in the end, want %d", last, maxBystanders)
	}
}

func TestBackoff(t *testing.T) {
	for failures, want := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 5: 32 * time.Second, 6: time.Minute, 1000: time.Minute} {
		for range 100 {
			if got := backoff(time.Second, time.Minute, failures); got < want*3/4 || got > want*5/4 {
				t.Errorf("after %d failures %v, want %v within a quarter", failures, got, want)
			}
		}
	}
}
