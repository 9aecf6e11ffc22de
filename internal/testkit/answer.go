package testkit

import (
	"net/http"
	"strconv"
	"time"
)

// An Answer is what the fake does with one tracking request: what it records and
// what it says about it. The constructors below are every answer that a real
// Matomo, or what stands in front of it, was seen to give; Do may also be written
// in a test. The Name shows in [Request].
type Answer struct {
	Name string
	Do   func(x *Exchange)
}

// Fate says whether a lying answer's hits are recorded all the same.
type Fate uint8

const (
	RolledBack Fate = iota // nothing is recorded
	Committed              // everything valid is recorded
)

// settle does what the fate says.
func (x *Exchange) settle(f Fate) {
	if f == Committed {
		x.Commit()
	}
}

// Honest judges, records and answers as a healthy Matomo in the state that the
// Set methods gave it.
func Honest() Answer {
	return Answer{"honest", func(x *Exchange) {
		if !x.walled() {
			x.honest()
		}
	}}
}

// NothingTracked says 200 with "tracked":0 and records nothing, as with
// record_statistics=0 or a body that is not decodable.
func NothingTracked() Answer {
	return Answer{"nothing tracked", func(x *Exchange) { x.paused() }}
}

// Skip records all hits but those at the given places and says 200 with a sum
// that is too short: MySQL's error 1205, which Matomo passes over in silence.
func Skip(places ...int) Answer {
	return Answer{"skip", func(x *Exchange) { x.Verdict(x.Commit(places...)) }}
}

// SkipHalf is Skip for hits whose action was inserted before the wait for the lock on
// their visit's row ran out. With [Rows] that action stays.
func SkipHalf(places ...int) Answer {
	return Answer{"skip half", func(x *Exchange) { x.Verdict(x.commit(nil, places, nil)) }}
}

// SkipUnheard is Skip and SkipHalf, and the answer is lost.
func SkipUnheard(skip, half []int) Answer {
	return Answer{"skip unheard", func(x *Exchange) {
		x.commit(skip, half, nil)
		x.Reset()
	}}
}

// HangOpen writes, and resets the connection before the commit, or rollback, which
// follows when release is closed: with [Rows] a transaction is open until then.
func HangOpen(release <-chan struct{}, f Fate) Answer {
	return Answer{"hang open", func(x *Exchange) {
		written, ended := make(chan struct{}), make(chan struct{})
		go func() { // ends with release, or with the fake
			defer close(ended)
			x.commit(nil, nil, func() bool {
				close(written)
				select {
				case <-release:
					return f == Committed
				case <-x.m.closed:
					return false
				}
			})
		}()
		select {
		case <-written:
		case <-ended:
		}
		x.Reset()
	}}
}

// ErrorText says 200 with a text that begins with "Error:".
func ErrorText(f Fate) Answer {
	return Answer{"error text", func(x *Exchange) {
		x.settle(f)
		x.Send(http.StatusOK, htmlType, databaseGone)
	}}
}

// databaseGone is what a bulk is answered when the database ends under its transaction.
const databaseGone = "Error:SQLSTATE[HY000]: General error: 2006 MySQL server has gone away"

// NotInstalled says 200 with the text of a Matomo without its settings file.
func NotInstalled() Answer {
	return Answer{"not installed", func(x *Exchange) {
		x.Send(http.StatusOK, htmlType, "As Matomo is not installed yet, this fake cannot process requests.")
	}}
}

// Error500 says 500 with JSON and rolls everything back; tracked is what Matomo
// says it did before the failing hit, which is that hit's place when no invalid
// one came before it.
func Error500(tracked int) Answer {
	return Answer{"500 rolled back", func(x *Exchange) { x.Error(tracked, []int{}) }}
}

// Error500Committed says 500 with JSON after the commit: tracked + invalid is the
// number of hits.
func Error500Committed() Answer {
	return Answer{"500 committed", func(x *Exchange) { x.Error(x.Commit()) }}
}

// Empty500 says 500 with nothing, as when PHP dies. Real ones roll back.
func Empty500(f Fate) Answer {
	return Answer{"500 empty", func(x *Exchange) {
		x.settle(f)
		x.Send(http.StatusInternalServerError, htmlType, "")
	}}
}

// Hang records or not, then says nothing until the client goes away.
func Hang(f Fate) Answer {
	return Answer{"hang", func(x *Exchange) {
		x.settle(f)
		x.Hang()
	}}
}

// CommitLater records when release is closed, whether the client is still there
// or not, as PHP does; then it answers. The fake's Close also ends the wait, and
// nothing is recorded then.
func CommitLater(release <-chan struct{}) Answer {
	return Answer{"commit later", func(x *Exchange) {
		select {
		case <-release:
			x.Verdict(x.Commit())
		case <-x.m.closed:
			x.Reset()
		}
	}}
}

// Reset records or not, then resets the connection without an answer.
func Reset(f Fate) Answer {
	return Answer{"reset", func(x *Exchange) {
		x.settle(f)
		x.Reset()
	}}
}

// QueuedGIF answers a bulk with an image, as the QueuedTracking plugin does.
func QueuedGIF(f Fate) Answer {
	return Answer{"image for a bulk", func(x *Exchange) {
		x.settle(f)
		x.image(http.StatusOK, false)
	}}
}

// NoContent says 204 to a request that did not ask for that.
func NoContent(f Fate) Answer {
	return Answer{"204", func(x *Exchange) {
		x.settle(f)
		x.Send(http.StatusNoContent, htmlType, "")
	}}
}

// Redirect sends the client to location with the given status.
func Redirect(status int, location string) Answer {
	return Answer{strconv.Itoa(status), func(x *Exchange) {
		x.Header().Set("Location", location)
		x.html(status)
	}}
}

// LoginPage says 200 with HTML: somebody's login form, or a captive proxy.
func LoginPage() Answer {
	return Answer{"login page", func(x *Exchange) {
		x.Send(http.StatusOK, htmlType, "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><form method=\"post\"></form></body></html>\n")
	}}
}

// Revoked answers as if the token had just been revoked and every hit needed it:
// 200, "tracked":0, all invalid, no invalid_indices. To revoke a token with all
// consequences use [Matomo.SetToken].
func Revoked() Answer {
	return Answer{"token revoked", func(x *Exchange) {
		if !x.Bulk {
			x.image(http.StatusOK, true)
			return
		}
		x.json(http.StatusOK, "success", 0, make([]int, x.Hits), false)
	}}
}

// AuthRequired says 400 with JSON, as bulk_requests_require_authentication does
// for a whole bulk with one unknown site.
func AuthRequired() Answer {
	return Answer{"400 with JSON", func(x *Exchange) { x.json(http.StatusBadRequest, "error", 0, []int{}, false) }}
}

// Blocked answers as a Matomo that locked the client's address out.
func Blocked() Answer {
	return Answer{"blocked", func(x *Exchange) {
		x.super = false
		x.Error(0, []int{})
	}}
}

// InfoPage says 400 with the information page: the body did not reach PHP, or
// BulkTracking is off.
func InfoPage() Answer {
	return Answer{"information page", func(x *Exchange) {
		x.Send(http.StatusBadRequest, htmlType, string(x.m.cfg.InfoPage))
	}}
}

// Status gives a web server's or a proxy's page for status: 403 of a firewall,
// 413, 429, 502, 503, 504 and so on. A retryAfter above 0 becomes the header, in
// whole seconds.
func Status(status int, retryAfter time.Duration, f Fate) Answer {
	return Answer{strconv.Itoa(status), func(x *Exchange) {
		x.settle(f)
		if retryAfter > 0 {
			x.Header().Set("Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
		}
		x.html(status)
	}}
}

// WithDate gives answer a Date header that is off by d, while Matomo's own clock
// is right. For a clock that is wrong use [Matomo.SetClock].
func WithDate(d time.Duration, answer Answer) Answer {
	return Answer{answer.Name + ", wrong date", func(x *Exchange) {
		x.Header().Set("Date", x.now.Add(d).UTC().Format(http.TimeFormat))
		answer.Do(x)
	}}
}

// After lets d pass before answer; the client's going away does not end it.
func After(d time.Duration, answer Answer) Answer {
	return Answer{answer.Name + ", late", func(x *Exchange) {
		x.work(d)
		answer.Do(x)
	}}
}

// walled answers 403 for a request with a hit that the firewall does not like.
func (x *Exchange) walled() bool {
	for _, h := range x.hits {
		if h.Outcome == Recorded && x.m.poisonOf(h) == walled {
			x.html(http.StatusForbidden)
			return true
		}
	}
	return false
}
