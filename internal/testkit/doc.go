// Package testkit is the outside world for tests: a Matomo that runs in the
// process and can lie in every known way, a private MariaDB, a TCP proxy that
// loses answers, and small helpers.
//
// Contract: nothing here is imported by code that ships. [Matomo] answers and
// counts as a real Matomo 5 does, as far as a client can see; the table in
// agree_test.go is checked against the fake in every run and against a real one
// on request (go test ./internal/testkit -matomo.url=http://HOST). It does not
// compute visits: a hit is recorded, excluded, invalid, or lost, and that is all.
//
// Concurrency: every exported method may be called from any goroutine, also
// while requests are being served.
//
// Lifetime: everything that is started belongs to the testing.TB it was started
// with and ends in its Cleanup. The package keeps no state of its own. MariaDB and
// tmpfs need Linux.
package testkit
