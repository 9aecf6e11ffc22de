package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// A salvo is what the open loop saw.
type salvo struct {
	// latency is from the moment at which a hit was to be sent to the end of its
	// answer; late is the part of it before the hit was written. Both have one entry
	// for each hit, in no order.
	latency, late []time.Duration
	notOK         int
}

// A shot is one hit of the schedule.
type shot struct {
	number int
	due    time.Time
}

// fire sends count hits at [openRate], with exponential gaps as many independent
// visitors make them, over [openConnections] connections. A hit that finds all
// connections busy waits, and that counts as latency.
func fire(ctx context.Context, address string, list []sample, count int, seed uint64) (*salvo, error) {
	wire := requests(list)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var gunners []*gunner
	for range openConnections {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		defer conn.Close()                                      // every answer is read by then
		defer context.AfterFunc(ctx, func() { conn.Close() })() // ends a read that hangs
		gunners = append(gunners, &gunner{conn: conn, r: bufio.NewReader(conn), seen: salvo{
			latency: make([]time.Duration, 0, count/openConnections*2), late: make([]time.Duration, 0, count/openConnections*2)}})
	}
	shots := make(chan shot, count) // a hit's time does not depend on those before it
	var wg sync.WaitGroup
	for _, g := range gunners {
		wg.Go(func() { // ends with shots, or with its connection
			if err := g.serve(shots, wire); err != nil {
				cancel(err)
			}
		})
	}
	schedule(ctx, shots, count, rand.New(rand.NewPCG(seed, 0)))
	close(shots)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("send hits: %w", err)
	}
	all := &salvo{}
	for _, g := range gunners {
		all.latency = append(all.latency, g.seen.latency...)
		all.late = append(all.late, g.seen.late...)
		all.notOK += g.seen.notOK
	}
	if len(all.latency) != count {
		return nil, fmt.Errorf("%d hits were sent, %d answered", count, len(all.latency))
	}
	return all, nil
}

// schedule puts each hit into shots when it is due. It sleeps in the kernel: the
// timers of the Go runtime may be a millisecond late on an idle thread.
func schedule(ctx context.Context, shots chan<- shot, count int, rng *rand.Rand) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const gap = float64(time.Second) / openRate
	due := time.Now()
	for i := range count {
		if ctx.Err() != nil {
			return
		}
		if wait := time.Until(due); wait > 0 {
			span := syscall.NsecToTimespec(int64(wait))
			_ = syscall.Nanosleep(&span, nil) // a signal may cut it short: one hit is early
		}
		shots <- shot{i, due}
		due = due.Add(time.Duration(rng.ExpFloat64() * gap))
	}
}

// A gunner sends hits over one connection. It belongs to one goroutine.
type gunner struct {
	conn net.Conn
	r    *bufio.Reader
	seen salvo
}

func (g *gunner) serve(shots <-chan shot, requests [][]byte) error {
	for s := range shots {
		late := time.Since(s.due)
		if _, err := g.conn.Write(requests[s.number%len(requests)]); err != nil {
			return err
		}
		status, err := readAnswer(g.r)
		if err != nil {
			return err
		}
		g.seen.latency = append(g.seen.latency, time.Since(s.due))
		g.seen.late = append(g.seen.late, late)
		if status < 200 || status > 299 {
			g.seen.notOK++
		}
	}
	return nil
}

// readAnswer reads one answer of HTTP/1.1, whose length stands in its head, and
// gives its status.
func readAnswer(r *bufio.Reader) (status int, err error) {
	length := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if status == 0 {
			if status, err = parseStatus(line); err != nil {
				return 0, err
			}
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, err
			}
		}
	}
	_, err = r.Discard(length)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return status, err
}

func parseStatus(line []byte) (int, error) {
	const version = "HTTP/1.1 "
	if len(line) < len(version)+3 || string(line[:len(version)]) != version {
		return 0, errors.New("not an answer of HTTP/1.1")
	}
	return strconv.Atoi(string(line[len(version) : len(version)+3]))
}
