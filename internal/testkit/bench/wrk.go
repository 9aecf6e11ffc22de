package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// A load is what one run of wrk saw.
type load struct {
	Requests      int64
	Took          time.Duration
	P50, P99      time.Duration
	NotOK         int64 // answers that are neither 2xx nor 3xx
	SocketFaults  int64 // connections refused, cut, or timed out
	CPUPerRequest time.Duration
}

func (l load) perSecond() float64 { return float64(l.Requests) / l.Took.Seconds() }

// wrkTail sends the requests in turn, in the order of the list, and ends with one
// line for [parseLoad].
const wrkTail = `
local next = 0
function request()
	next = next % #requests + 1
	return requests[next]
end
function done(summary, latency)
	local e = summary.errors
	print(string.format("bench requests=%d us=%d p50=%d p99=%d notok=%d socket=%d", summary.requests, summary.duration,
		latency:percentile(50), latency:percentile(99), e.status, e.connect + e.read + e.write + e.timeout))
end
`

// writeScript writes the Lua script that makes wrk send the requests.
func writeScript(path string, list [][]byte) error {
	var b bytes.Buffer
	b.WriteString("local requests = {\n")
	for i := range list {
		b.WriteByte('"')
		for _, c := range list[i] {
			if c < ' ' || c == '"' || c == '\\' || c > '~' {
				fmt.Fprintf(&b, `\%03d`, c)
				continue
			}
			b.WriteByte(c)
		}
		b.WriteString("\",\n")
	}
	b.WriteString("}\n" + wrkTail)
	return os.WriteFile(path, b.Bytes(), 0o600)
}

// runWrk loads the server with the given process id for so long, from one thread
// of wrk, over connections that stay open. wrk takes whole seconds only.
func runWrk(ctx context.Context, script, url string, connections, pid int, long time.Duration) (load, error) {
	before := cpuTime(pid)
	cmd := exec.CommandContext(ctx, "wrk", "-t1", fmt.Sprintf("-c%d", connections),
		fmt.Sprintf("-d%ds", int(long.Seconds())), "--timeout", "10s", "-s", script, url)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return load{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	l, err := parseLoad(string(out))
	if err != nil {
		return load{}, fmt.Errorf("%w in what wrk said:\n%s", err, out)
	}
	l.CPUPerRequest = (cpuTime(pid) - before) / time.Duration(l.Requests)
	return l, nil
}

// parseLoad reads the last line of the script.
func parseLoad(text string) (load, error) {
	i := strings.LastIndex(text, "bench requests=")
	if i < 0 {
		return load{}, errors.New("no result")
	}
	var l load
	var took, p50, p99 int64 // microseconds
	_, err := fmt.Sscanf(text[i:], "bench requests=%d us=%d p50=%d p99=%d notok=%d socket=%d",
		&l.Requests, &took, &p50, &p99, &l.NotOK, &l.SocketFaults)
	if err != nil {
		return load{}, fmt.Errorf("bad result: %w", err)
	}
	if l.Requests == 0 || took == 0 {
		return load{}, errors.New("not a single answer")
	}
	l.Took, l.P50, l.P99 = time.Duration(took)*time.Microsecond, time.Duration(p50)*time.Microsecond, time.Duration(p99)*time.Microsecond
	return l, nil
}
