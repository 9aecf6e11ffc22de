package sink

// A Reason says in one word why nothing is sent. The list is closed.
type Reason string

// The reasons.
const (
	ReasonNone        Reason = ""
	ReasonStarting    Reason = "starting"    // the first canary has not answered yet
	ReasonDown        Reason = "down"        // Matomo or its database does not answer, or not as it should
	ReasonReadOnly    Reason = "read-only"   // the database takes no writes
	ReasonUpgrade     Reason = "upgrade"     // Matomo's schema is being changed
	ReasonMaintenance Reason = "maintenance" // Matomo records nothing (record_statistics=0)
	ReasonAuth        Reason = "auth"        // no token, or Matomo does not accept it
	ReasonOverload    Reason = "overload"    // Matomo or its database asked for a pause
	ReasonConfig      Reason = "config"      // what answers is not a Matomo that is set up
	ReasonManual      Reason = "manual"      // an operator paused the drain
)

// Reasons lists all reasons that can show in a state.
func Reasons() []Reason {
	return []Reason{ReasonNone, ReasonStarting, ReasonDown, ReasonReadOnly, ReasonUpgrade, ReasonMaintenance,
		ReasonAuth, ReasonOverload, ReasonConfig, ReasonManual}
}

// sticky reports whether a reason is a state of Matomo's or of ours that an outage
// in between does not end: it goes on being shown until hits flow again, or another
// sticky one takes its place.
func (r Reason) sticky() bool {
	switch r {
	case ReasonUpgrade, ReasonMaintenance, ReasonAuth, ReasonConfig:
		return true
	}
	return false
}

// The words for which hits are buried. The list is closed.
const (
	BuriedPoison    = "poison"    // Matomo fails on the hit, again and again
	BuriedRefused   = "refused"   // something in front of Matomo refuses the hit
	BuriedTooLarge  = "too-large" // the hit alone is larger than Matomo's server takes
	BuriedPartial   = "partial"   // Matomo skipped the hit, perhaps leaving parts of it
	BuriedMalformed = "malformed" // the stored text is not one JSON object, so it was never sent
)

// BuriedReasons lists all words for which a hit is buried.
func BuriedReasons() []string {
	return []string{BuriedPoison, BuriedRefused, BuriedTooLarge, BuriedPartial, BuriedMalformed}
}
