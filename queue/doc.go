// Package queue keeps accepted hits on the local disk until a sink has settled
// them.
//
// # Contract
//
// A request set is durable once [Queue.Append] has returned nil: synced to disk,
// whole. A durable hit is handed out by [Queue.Lease] in the order of arrival,
// once a process, and again after a restart until [Queue.Settle] has been
// committed for it. A hit that was journalled ([Queue.Journal]) and neither
// settled nor given back when the process ended comes back marked as uncertain.
// Nothing is settled that was not leased, and nothing is settled twice.
//
// The sum "accepted = delivered + invalid + dead + pending" holds after every
// committed transaction. [Stats.Difference] checks it against a second,
// independent count: the running number of hits that every block carries.
//
// # On disk
//
// docs/format.md has the bytes. A [Queue] owns one directory:
//
//	LOCK          held (flock) by the one process that has the queue open
//	store.json    format version, generation, and the keys that are needed
//	BALLAST       room that is given up when the disk is nearly full
//	live/         a stream: a row of shelves, and its high-water file
//	dead/         dead letters
//	salvage/      copies of what Badger may destroy while it recovers
//	quarantine/   what could not be read, kept for a human
//
// A stream is a row of shelves. A shelf is a small Badger database that is
// written until it is large or old and then never again; when all its blocks are
// settled its directory is removed. No compaction ever runs and nothing is ever
// deleted inside a shelf (see docs/design.md, "Shelves").
//
// Each transaction of a stream is one group commit: the blocks of hits that
// arrived together, and one delta that says what else changed: hits settled,
// journal entries, counters. The state of a stream is the last snapshot plus the
// deltas after it, and [state.apply] is the only code that changes it, in live
// running as in recovery.
//
// # Failing
//
// The first error of a commit, a flush or a sync ends acceptance for good:
// [Queue.Failed] is closed, every later call returns [ErrStopped], and the
// process must end. Going on after such an error loses data that Badger believes
// to be written.
//
// # Concurrency
//
// All methods may be called from any goroutine. [Open] starts goroutines that
// [Queue.Close] ends and waits for.
package queue
