package sink

import (
	"fmt"
	"testing"
	"time"

	"sluice/internal/hit"
)

func TestBystanders(t *testing.T) {
	now := time.Unix(1000, 0)
	lane := func(lone int, who ...string) (*lanes, *lane) {
		l := newLanes()
		for _, w := range who {
			it := laneItem(1, group{})
			var ip, params string
			fmt.Sscanf(w, "%s %s", &ip, &params)
			it.Environment, it.Params = &hit.Environment{ClientIP: ip}, []byte(params)
			if params == "object" {
				it.Form, it.Params = hit.Object, []byte("{}")
			}
			it.doubt = params == "doubt"
			l.add(it, now, now.Unix())
		}
		ln := l.bySite[1]
		ln.items[0].lone = lone
		return l, ln
	}
	tests := []struct {
		name string
		lone int
		who  []string
		want string // places in the lane, from 1
	}{
		{"nobody behind", 9, []string{"1.1.1.1"}, ""},
		{"a stranger", 1, []string{"1.1.1.1", "2.2.2.2"}, "1/2 "},
		{"a stranger behind relatives", 1, []string{"1.1.1.1", "1.1.9.9", "2.2.2.2"}, "1/3 "},
		{"a relative by address, too early", 2, []string{"1.1.1.1", "1.1.9.9"}, ""},
		{"relatives by address, after some patience", 3, []string{"1.1.1.1", "1.1.9.9", "1.1.1.1"}, "1/2 1/3 "},
		{"a relative by id", 1, []string{"1.1.1.1 _id=a", "2.2.2.2 uid=a"}, ""},
		{"a relative of somebody in front", 1, []string{"1.1.1.1", "1.1.2.2 _id=a", "2.2.2.2 _id=a"}, ""},
		{"more strangers after more failures", 3, []string{"1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4", "5.5.5.5"}, "1/2 1/3 1/4 "},
		{"objects are never strangers to each other", 1, []string{"1.1.1.1 object", "2.2.2.2 object"}, ""},
		{"nobody behind a hit in doubt", 9, []string{"1.1.1.1", "2.2.2.2 doubt", "3.3.3.3"}, ""},
		{"IPv6 networks", 1, []string{"2001:db8::1", "2001:db8:ffff::2", "2001:db9::1"}, "1/3 "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, ln := lane(tt.lone, tt.who...)
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
