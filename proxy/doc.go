// Package proxy is the public face of the edge: it takes tracking requests as
// Matomo would, has their hits stored, and answers with the bytes that a healthy
// Matomo would send. Everything else it forwards to Matomo.
//
// # Contract
//
// A hit is answered with 2xx only after [Appender.Append] has returned nil, or
// when Matomo would not have recorded it either (an opt-out cookie, a prefetch,
// no rec=1). A hit that was stored is never answered with anything but 2xx. What
// cannot be stored is passed straight to Matomo if [Config.PassThrough] allows
// it, and answered 503 otherwise.
//
// With [Config.CollapseRetries] a hit is stored once that matomo.js sends a second
// time because it did not get the answer (collapse.go). The second is answered
// with 2xx only when the first is stored.
//
// Requests are read as PHP and Matomo read them: parameters by internal/phpform,
// client bulk by PHP's rules for JSON, headers as PHP's $_SERVER has them. Where
// two equal header lines came, they are joined with ", " (Cookie with "; "), as
// nginx from 1.23 on, Apache and PHP's own server hand them to PHP.
//
// A hit that uses a privileged parameter is refused when it brought no token,
// and marked [hit.Theirs] when it did; it is never marked [hit.Ours], whatever
// the spelling of the name or the type of the value.
//
// With [Config.MaskAddress] the visitor's address is masked before a hit is
// stored, in the environment and in the parameter cip, and no log line has it.
// Requests that are forwarded carry the whole address.
//
// What is forwarded reaches [Config.Upstream] and nothing else, below its base path,
// without headers by which a peer that is not in [Config.Trusted] could say who or
// where it is. A request that could have reached Matomo is sent a second time only if
// it is a GET or HEAD without a body.
//
// # Two ways in
//
// A connection is first read by a small strict loop (fast.go), which answers the
// plain tracking requests that make up nearly all traffic. At the first request
// that is anything else, the connection and every byte read from it goes to
// net/http for the rest of its life. Both ways build the same request value and
// run the same code behind it, so the answers are the same.
//
// # Where requests end
//
// A request that readers of HTTP could end in different places is refused with 400 and
// its connection closed, also where net/http takes it (framing.go). A request with
// Transfer-Encoding or Upgrade is the last of its connection.
//
// # Concurrency and lifetime
//
// [Server.Run] is called once; it owns one goroutine for each connection and
// waits for all of them. All other methods may be called from any goroutine.
package proxy
