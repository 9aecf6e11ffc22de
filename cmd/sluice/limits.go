package main

import (
	"context"
	"log/slog"
	"math"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// Limits that the process sets itself.
const (
	// memoryLimit keeps what Go holds, and so the anonymous memory of the process,
	// below 256 MiB: garbage is collected earlier instead. Live data is far below it.
	memoryLimit = 208 << 20
	// commonConnections fit into that. Each further one may take as much again as it
	// holds while it waits over TLS: were the limit below what is live, the collector
	// would run all the time.
	commonConnections = 1000
	connectionMemory  = 20 << 10
	// importMemory is what an import of logs may have besides its memory for sorting. Most
	// of that lives until the end, and twice as much would be taken without a limit.
	importMemory = 64 << 20
	// memoryInterval is short beside the time in which so many connections come that
	// the limit matters.
	memoryInterval = time.Second
	// wantedFiles is enough for any allowed number of connections.
	wantedFiles = 1 << 20
	// ownFiles is what the queue and the rest need besides connections: a failure to
	// open a file there would stop everything.
	ownFiles = 512
)

// limitMemory sets Go's soft limit in bytes, unless the environment sets one.
func limitMemory(env []string, limit int64) {
	if lookup(env, "GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
	}
}

// memoryFor gives Go's soft limit with so many connections, in bytes.
func memoryFor(connections int) int64 {
	return memoryLimit + int64(max(0, connections-commonConnections))*connectionMemory
}

// followConnections moves Go's soft limit with the number of connections until ctx is
// done, unless the environment sets one.
func (e *edge) followConnections(ctx context.Context) error {
	if lookup(e.env, "GOMEMLIMIT") != "" {
		<-ctx.Done()
		return nil
	}
	clock := time.NewTicker(memoryInterval)
	defer clock.Stop()
	for last := int64(memoryLimit); ; {
		if limit := memoryFor(e.proxy.Connections()); limit != last {
			debug.SetMemoryLimit(limit)
			last = limit
		}
		select {
		case <-clock.C:
		case <-ctx.Done():
			return nil
		}
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
// Matomo, up to upstream on either of the two ways there.
func capConnections(wanted, files, upstream int) int {
	left := files - ownFiles
	return max(min(wanted, max(left/2, left-2*upstream)), 1)
}
