// Package certs gives the public listener its certificates: one that it makes
// itself, one from files, or those that an ACME authority issues.
//
// # Contract
//
// A [Keeper] always has something to show: a certificate that nobody vouches for
// stands in while an authority has issued none, and the last good one stays in use
// when a new one cannot be had, also after it has expired. [Open] reads the disk and
// asks nobody; what needs the network happens in [Keeper.Run], with growing pauses
// between attempts. No certificate is ever asked for but those of configured names.
//
// # Concurrency and lifetime
//
// [Keeper.Run] is called once; it owns all goroutines and waits for them. All other
// methods may be called from any goroutine, before, during and after Run. Keepers share
// nothing, but for what certmagic itself keeps for the process: the answers to the
// challenges that are under way, by name, and a limit on new orders for each account.
package certs
