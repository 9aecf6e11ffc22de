package archivegate

import (
	"strings"
	"time"
)

// A State is the gate's answer for one site and day.
type State string

const (
	StateOpen     State = "open"     // the day is not over there
	StateSealing  State = "sealing"  // it is over; what arrived before its end is being written
	StateDraining State = "draining" // hits of it, or of days before, are not in Matomo yet
	StateReopened State = "reopened" // as draining, after it was complete
	StateComplete State = "complete" // everything is in Matomo
	StateUnknown  State = "unknown"  // something that must be known is not
	StateForced   State = "forced"   // it is not complete, and waiting is over
)

// passes reports whether archiving may begin.
func (s State) passes() bool { return s == StateComplete || s == StateForced }

// An Answer is what the gate says of one site and day. Times are UTC. What is not
// known is null.
type Answer struct {
	V        int    `json:"v"`
	Site     int64  `json:"site"`
	Name     string `json:"name,omitempty"`
	Date     Date   `json:"date"`
	Zone     string `json:"tz"`
	State    State  `json:"state"`
	Complete bool   `json:"complete"`
	// Pass is true if archiving may begin: the day is complete, or its time is over.
	Pass  bool       `json:"pass"`
	Start *time.Time `json:"start_utc"`
	End   *time.Time `json:"end_utc"`
	// Epoch changes whenever something came to the day after it was complete; 0 = it
	// never was.
	Epoch int `json:"epoch"`
	// Since is when the day became complete.
	Since *time.Time `json:"complete_since"`

	// Hits of the day. Of a day that ended more than a week ago the settled ones are no
	// longer counted by day.
	Accepted int64 `json:"accepted"`
	Imported int64 `json:"imported"`
	Invalid  int64 `json:"invalid"`
	Dead     int64 `json:"dead"`
	// Pending is the hits that the day waits for: its own and earlier ones.
	Pending       int64      `json:"pending"`
	OldestPending *time.Time `json:"oldest_pending"` // the quarter of an hour that it falls in
	ETASeconds    *float64   `json:"eta_seconds"`

	Reasons []string `json:"reasons"`
	Edges   []Edge   `json:"edges"`

	vacuous bool // the site has no such day
}

// An Edge is what one edge has to say about a day.
type Edge struct {
	Edge      string   `json:"edge"`
	Reachable bool     `json:"reachable"`
	Sealed    bool     `json:"sealed"`
	Pending   int64    `json:"pending"`
	Uncertain int64    `json:"uncertain"` // of all days
	ClockMS   *float64 `json:"clock_offset_ms"`
}

func (a *Answer) because(reason string) { a.Reasons = append(a.Reasons, reason) }

func (a *Answer) why() string { return strings.Join(a.Reasons, "; ") }

// A Summary is what the gate says of all sites together.
type Summary struct {
	V        int    `json:"v"`
	Site     string `json:"site"` // "all"
	Date     string `json:"date"` // as it was asked for
	State    State  `json:"state"`
	Complete bool   `json:"complete"`
	Pass     bool   `json:"pass"`

	Sites         int        `json:"sites"` // that have such a day
	SitesComplete int        `json:"sites_complete"`
	SitesForced   int        `json:"sites_forced"`
	Pending       int64      `json:"pending"` // that the sites wait for
	ETASeconds    *float64   `json:"eta_seconds"`
	ReadAt        *time.Time `json:"sites_read_at"` // age of the list of sites

	// Reasons hold for all sites. Waiting is the first of the sites that wait.
	Reasons []string `json:"reasons"`
	Waiting []Answer `json:"waiting"`
}

// maxWaiting bounds Summary.Waiting.
const maxWaiting = 50
