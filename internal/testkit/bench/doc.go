// Command bench measures Sluice against the targets of its design, on this
// machine and in one run, and prints one table. It is a tool of the project and
// no part of what ships.
//
// # Contract
//
// It runs real processes on loopback, in a folder of its own that it removes: the
// sluice command, nginx, wrk, and the counting Matomo of testkit, which is this
// program again with -role matomo. It ends every process that it started, by its
// number, and takes no longer than -limit.
//
// Speeds of accepting are ratios to nginx in the same round: nginx answers
// empty_gif and writes an access log of the same fields, unbuffered and not
// synced. For matomo.js nginx has the same bytes as a file (sendfile, gzip_static),
// sluice its copy; for pages both pass on to one further nginx over connections that
// they keep. Both use TLS 1.3 and an ECDSA P-256 certificate then. Rounds alternate, and the figure is the median of their ratios, so that
// a neighbour on the machine disturbs both sides alike. Absolute figures stand in
// the last column and mean something on this machine only.
//
// The exit code is 0 also when targets are missed; it is 1 when something could
// not be measured or was wrong: an answer that is not 2xx, a hit too few, a sum
// that does not come out.
//
// # Use
//
//	go run ./internal/testkit/bench                     all parts, about five minutes
//	go run ./internal/testkit/bench -quick              all parts, about a minute and a half
//	go run ./internal/testkit/bench -only accept-http   some parts
//	go run ./internal/testkit/bench -only files,pages,idle -rounds 5
//	go run ./internal/testkit/bench -profile DIR        CPU profiles of sluice, by part
//	go run ./internal/testkit/bench -only import -import-lines 10000000 -limit 1h
//
// The parts accept-*, files-* and pages-* need nginx and wrk. The part idle holds
// 10,000 connections over TLS and needs a limit of 15,000 open files for itself and as
// many for sluice; it raises what it may.
package main
