package hit

import (
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
)

func TestAnIDHasOneText(t *testing.T) {
	for _, tt := range []struct {
		id   ID
		want string
	}{
		{ID{}, "0000000000000000-0-0"},
		{ID{0x5f3a9c1e2b7d4a60, 1042, 7}, "5f3a9c1e2b7d4a60-1042-7"},
		{ID{math.MaxUint64, math.MaxUint64, math.MaxUint32}, "ffffffffffffffff-18446744073709551615-4294967295"},
	} {
		if got := tt.id.String(); got != tt.want {
			t.Errorf("String of %+v = %q, want %q", tt.id, got, tt.want)
		}
		if got, err := ParseID(tt.want); err != nil || got != tt.id {
			t.Errorf("ParseID(%q) = %+v, %v, want %+v", tt.want, got, err, tt.id)
		}
	}
}

func TestWhatIsNoIDIsRefused(t *testing.T) {
	for _, s := range []string{
		"", "-", "--", "5f3a9c1e2b7d4a60-1042", "5f3a9c1e2b7d4a60-1042-7-", "5f3a9c1e2b7d4a6-1042-7", "5F3A9C1E2B7D4A60-1042-7",
		"5f3a9c1e2b7d4a60-01-7", "5f3a9c1e2b7d4a60-1-07", "5f3a9c1e2b7d4a60-+1-7", "5f3a9c1e2b7d4a60-1-4294967296",
		"5f3a9c1e2b7d4a60-18446744073709551616-1", "5f3a9c1e2b7d4a6g-1-1", " 5f3a9c1e2b7d4a60-1-1", "5f3a9c1e2b7d4a60-1_0-1",
	} {
		if id, err := ParseID(s); !errors.Is(err, ErrBadID) {
			t.Errorf("ParseID(%q) = %+v, %v, want ErrBadID", s, id, err)
		}
	}
}

func TestIDsOfOneGenerationAreOrderedByArrival(t *testing.T) {
	order := []ID{{1, 1, 9}, {1, 2, 0}, {1, 2, 1}, {2, 1, 0}}
	for i, a := range order {
		for j, b := range order {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := a.Compare(b); got != want {
				t.Errorf("%v.Compare(%v) = %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestOutcomesHaveTheirWords(t *testing.T) {
	for o, want := range map[Outcome]string{Delivered: "delivered", Invalid: "invalid", Dead: "dead", 9: "unknown"} {
		if got := o.String(); got != want {
			t.Errorf("Outcome(%d) = %q, want %q", o, got, want)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("5f3a9c1e2b7d4a60-1042-7")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseID(s); err == nil && id.String() != s {
			t.Errorf("ParseID(%q) = %v", s, id)
		}
	})
}

func TestLogsShowTheTextOfAnID(t *testing.T) {
	var out strings.Builder
	id := ID{Generation: 0x5f3a9c1e2b7d4a60, Block: 1042, Index: 7}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "hit", id)
	if want := `"hit":"5f3a9c1e2b7d4a60-1042-7"`; !strings.Contains(out.String(), want) {
		t.Errorf("got %s, want it to contain %s", out.String(), want)
	}
}
