// Package archivegate says when a day of a site is fully imported, so that Matomo
// archives it when, and only when, what it would count is there.
//
// # Contract
//
// [Gate.Ask] answers [StateComplete] for a day only if, at one moment after the
// question came in, all of this held: the day was over in the site's own timezone by
// more than Config.Skew; every request that was received before its end was stored or
// refused; nothing with an effective time before its end was pending, in doubt or lost
// on the disk; nobody held it; and nothing that had to be known for this was unknown.
// What is not known never counts in favour: an unknown timezone, a list of sites that
// is older than the end of the day, a clock that is off, a replica whose lag nobody
// can tell, each makes the answer [StateUnknown].
//
// An answer holds for its moment. A hit that arrives later with a time of the day
// reopens it, which changes its epoch, is logged and counted.
//
// Only Config.MaxHold, or an asker's own, ends the waiting otherwise; the answer then is
// [StateForced], which says of itself that it is not complete. Before any list of sites
// was ever read there is nothing to let through.
//
// # What a day is
//
// zone.go has the arithmetic. A hit's effective time is decided when it arrives and
// travels with it; the ledger counts by it, in quarters of an hour, of which every
// day of every place since 1991 is made.
//
// # Concurrency and lifetime
//
// [New] reads what an earlier process kept and starts nothing. [Gate.Run] keeps the
// list of sites fresh, notices what reopens a day, and lives until its context is
// done. All other methods may be called from any goroutine at any time, before Run
// too.
package archivegate
