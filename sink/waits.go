package sink

import "time"

// waits are how long a sink waits before it tries or asks again. They are one value,
// since what they mean lies in their ratios: tests that do nothing but wait for them
// shorten all alike.
type waits struct {
	// minBackoff and maxBackoff bound the wait before a round of probes that is to
	// close the breaker; it doubles with every failure.
	minBackoff, maxBackoff time.Duration
	// closeGap is the time between the rounds that close it, and shortGap when no probe
	// ever confirmed the fall: a connection that broke, a PHP process that died.
	closeGap, shortGap time.Duration

	// firstLook is how soon the database is first asked about hits in doubt that are
	// not due; each further wait is twice as long.
	firstLook time.Duration
	// firstAgain and lastAgain bound the wait between two questions about hits that are
	// due, when the database could not say.
	firstAgain, lastAgain time.Duration
	// baselineRest is how long baselines are not read after one could not be.
	baselineRest time.Duration
	// airPatience is how long a flight waits of which no hit may be sent, since others
	// that could be mistaken for them are in flight or in doubt.
	airPatience time.Duration

	// A suspect is tried again after suspectDelay when another hit has gone through
	// meanwhile, else after twice as long each time.
	suspectDelay, maxSuspectDelay time.Duration
	// proofAge is how long another hit's success speaks against a suspect. It is
	// short, so that an outage that begins in between is not taken for poison.
	proofAge time.Duration
}

// realWaits are the waits of every sink that is not in a test of this package.
func realWaits() waits {
	return waits{
		minBackoff: time.Second, maxBackoff: time.Minute,
		closeGap: 2 * time.Second, shortGap: 500 * time.Millisecond,
		firstLook:  time.Second,
		firstAgain: time.Second, lastAgain: time.Minute,
		baselineRest: 5 * time.Second, airPatience: 250 * time.Millisecond,
		suspectDelay: time.Second, maxSuspectDelay: time.Minute, proofAge: 3 * time.Second,
	}
}
