package hit

// An ImportOrder says how hits of an export are taken in.
type ImportOrder struct {
	// Again takes hits, too, that may be recorded a second time: see [ImportKnown]
	// and [ImportUncertain].
	Again bool
	// DryRun changes nothing and says what an import would do.
	DryRun bool
}

// Imported is what an import has made of one hit.
type Imported uint8

// The hit is pending after the first two and in none of the others because of this
// import.
const (
	// ImportTaken: the hit is pending here, and its id is remembered for ever.
	ImportTaken Imported = iota
	// ImportRequeued: the hit was buried here and is pending again.
	ImportRequeued
	// ImportWaiting: the hit is pending here already.
	ImportWaiting
	// ImportBefore: an import has taken the id before.
	ImportBefore
	// ImportKnown: the hit was accepted here and is done with.
	ImportKnown
	// ImportUncertain: when the hit was exported Matomo may have had it already.
	ImportUncertain
	// ImportMoved: the hit is buried here under another site or at another time, and
	// would be counted as another.
	ImportMoved
	// ImportBadID: no store has ever given such an id.
	ImportBadID
	// ImportTooLarge: no queue could have held the hit.
	ImportTooLarge
)

// Fault reports whether the hit itself is what kept it from being taken.
func (i Imported) Fault() bool { return i >= ImportMoved }

// String gives the word used in JSON and by commands.
func (i Imported) String() string {
	switch i {
	case ImportTaken:
		return "taken"
	case ImportRequeued:
		return "requeued"
	case ImportWaiting:
		return "waiting here"
	case ImportBefore:
		return "imported before"
	case ImportKnown:
		return "done with here"
	case ImportUncertain:
		return "uncertain"
	case ImportMoved:
		return "it is buried here under another site or time"
	case ImportBadID:
		return "no store gives such an id"
	case ImportTooLarge:
		return "it is too large"
	}
	return "unknown"
}
