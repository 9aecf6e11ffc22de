// Package sink drains hits into Matomo by bulk requests and reads from each
// answer what became of every hit.
//
// # Contract
//
// [Sink.Run] takes hits from a [Source] in the order of arrival and settles each
// of them exactly once: delivered, invalid, or dead. Success is read from the
// status and the body together, never from the status alone; judge in
// verdict.go is the whole table.
//
//   - Hits of one site are delivered in the order of arrival, and at most one
//     request with hits of a site is in flight. Requests with hits of different
//     sites run in parallel, and one request may mix sites. There is one
//     exception: while a hit fails alone and no other site has hits that could
//     show whether Matomo works, later hits of its own site are tried. Those that
//     share neither visitor nor address with a hit before them come first; only
//     where there are none, and after three failures, what stands right behind.
//     Order among hits of one visitor then suffers only if Matomo recovers between
//     two requests that follow each other at once: see Sink.try.
//   - Before a request leaves, its hits are journalled. A request whose outcome
//     is not known stays in the journal until it can no longer be running, and
//     then a reconciler decides: see unknown.go.
//   - A hit is buried only after it has failed alone twice, while the canary
//     passed, and while another hit went through in between and just before.
//     Nothing is buried for a broken token, a wrong upstream, an outage or an
//     upgrade. Where nothing else goes through, a hit that fails alone stays at
//     the head of its site and is tried again from time to time.
//   - Hits that travel with our token never carry a client's token, and a hit
//     that brought its own token never travels with ours.
//   - A hit waits until Matomo's clock has passed its time, because Matomo
//     replaces times ahead of its clock.
//
// # What it cannot see
//
// Matomo names the hits that it refused only to a superuser's token. With the
// token of a write or admin user every hit therefore travels alone, which is
// slow. Without a MySQL account a read-only database shows only by hits that
// fail.
//
// # Concurrency and lifetime
//
// New starts nothing. Run is called once; it owns the lanes and starts and waits
// for everything else. All other exported methods may be called from any
// goroutine, before, during and after Run.
package sink
