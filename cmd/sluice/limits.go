package main

import (
	"log/slog"
	"math"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Limits that the process sets itself.
const (
	// memoryLimit keeps what Go holds, and so the anonymous memory of the process,
	// below 256 MiB: garbage is collected earlier instead. Live data is far below it,
	// so the collector is never driven to run all the time.
	memoryLimit = 208 << 20
	// wantedFiles is enough for any allowed number of connections.
	wantedFiles = 1 << 20
	// ownFiles is what the queue and the rest need besides connections: a failure to
	// open a file there would stop everything.
	ownFiles = 512
)

// limitMemory sets Go's soft limit, unless the environment sets one.
func limitMemory(env []string) {
	if lookup(env, "GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}

// raiseFiles raises the limit on open files as far as the system lets it and returns
// how many there may be.
func raiseFiles(log *slog.Logger) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		log.Warn("the limit on open files is not known; connections are capped low", "err", err)
		return 2 * ownFiles
	}
	for _, wanted := range []unix.Rlimit{
		{Cur: max(limit.Cur, wantedFiles), Max: max(limit.Max, wantedFiles)}, // with the right to raise the hard limit
		{Cur: limit.Max, Max: limit.Max},
	} {
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &wanted) == nil {
			return int(min(wanted.Cur, math.MaxInt32))
		}
	}
	return int(min(limit.Cur, math.MaxInt32))
}

// capConnections gives how many connections the listener may hold, so that what
// else needs files always finds them: each connection may bring a second one to
// Matomo.
func capConnections(wanted, files int) int {
	return max(min(wanted, (files-ownFiles)/2), 1)
}
