package queue

import (
	"errors"
	"fmt"
)

// Errors of opening.
var (
	// ErrLocked: another process has the queue open.
	ErrLocked = errors.New("the queue is in use by another process")
	// ErrNewerFormat: the data was written by a newer version of Sluice.
	ErrNewerFormat = errors.New("the data was written by a newer version of Sluice")
	// ErrKey: what is kept is encrypted with a key that [Options.Keys] does not have.
	// Everything is left as it was found.
	ErrKey = errors.New("the queue is encrypted with a key that is not there")
	// ErrNoSpace: there is too little free space even to open the queue.
	ErrNoSpace = errors.New("too little free disk space to open the queue")
	// ErrDamaged: the queue cannot be opened as it is, and opening it anyway
	// could destroy data. Everything is left as it was found.
	ErrDamaged = errors.New("the queue is damaged")
)

// Errors of a running queue.
var (
	// ErrFull: free space is below the reserve, or the queue has reached its
	// maximum size. The hit was not stored.
	ErrFull = errors.New("the queue is full")
	// ErrTooLarge: the request set does not fit in one transaction. It was not
	// stored and never will be.
	ErrTooLarge error = tooLargeError{}
	// ErrStopped: the queue was closed or has failed, and nothing is acknowledged.
	// The hits of a commit that failed may be on disk all the same: such an error
	// has a method Uncertain() bool that answers true.
	ErrStopped = errors.New("the queue has stopped")
	// ErrNotFound: no such hit is pending.
	ErrNotFound = errors.New("no such hit")
)

// tooLargeError tells callers that cannot import this package, by its method,
// that the request itself is at fault.
type tooLargeError struct{}

func (tooLargeError) Error() string  { return "the request set is too large for one transaction" }
func (tooLargeError) TooLarge() bool { return true }

// commitError is what the hits of a failed commit get. They may be on disk, so
// they must not reach Matomo on another way.
type commitError struct{ cause error }

func (e commitError) Error() string   { return fmt.Sprintf("%v: %v", ErrStopped, e.cause) }
func (e commitError) Unwrap() []error { return []error{ErrStopped, e.cause} }
func (e commitError) Uncertain() bool { return true }

// errDamaged marks one value that cannot be read; what holds it goes on.
var errDamaged = errors.New("damaged value")

// isForeign reports whether an error says that something is whole, but not for this
// program or not without another key: it is neither repaired nor passed over.
func isForeign(err error) bool { return errors.Is(err, ErrNewerFormat) || errors.Is(err, ErrKey) }
