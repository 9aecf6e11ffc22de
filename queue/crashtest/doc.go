// Package crashtest proves on real files what package queue promises when
// processes die, power fails and disks fail or fill up. It holds tests only.
//
// # How a test works
//
// The queue runs in a child process: the test binary itself in the role of a
// worker, which appends, makes imports, leases, journals and settles with many
// goroutines and writes to a pipe what it begins and what it was promised. The
// parent keeps a ledger of these lines and ends the child, or takes its disk away.
// Then another child, the census, opens the queue and lists everything in it, and
// the ledger judges: what was acknowledged is there, what was durably settled is
// not, what was in flight is marked as uncertain, nothing is there that nobody
// sent, and of imports exactly those lines are known whose hits are stored.
//
// # Controls
//
// A test that cannot fail proves nothing. Where it is possible a test has a
// control: the same fault on something that breaks the promise on purpose, such
// as a worker that acknowledges before the commit, a store without syncing, or a
// disk that forgets flushes. A control that loses nothing fails the suite.
//
// # What is needed
//
// Most tests need root, loop devices and FUSE. Where these are missing a test is
// skipped with a line that begins "SKIPPED:"; such a run proves only what the
// tests that did run prove. The flag -long multiplies the rounds.
//
// # Concurrency and lifetime
//
// Tests run one after the other or side by side; each has its own directories,
// mounts and loop devices, which its cleanup removes also after a failure.
package crashtest
