package crashtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sys/unix"

	"sluice/internal/hit"
	"sluice/queue"
)

// A job is what a child process is to do; it travels in the environment.
type job struct {
	Role string // roleWork, roleCensus or roleUnsynced
	Dir  string
	Seed uint64

	Reserve    int64
	ShelfBytes int64
	// Keys are the names of the keys, 1 and up; the first encrypts. None: in clear.
	Keys []byte
	// Files is the limit of open files, set before the queue is opened. 0 leaves
	// it.
	Files uint64

	// Base is the number of the first request set.
	Base      uint64
	Appenders int
	Sets      uint64 // request sets to append in all; 0 = until killed
	SetHits   int    // hits of a set; 0 = one to three, by its number
	Pad       int    // most bytes of padding of a set; most sets have much less
	Pause     time.Duration

	Consumers int
	Lease     int // most hits of a lease
	// Strict: consumers journal and settle everything that they lease. Otherwise
	// some of it is given back, left in flight, or settled without a journal.
	Strict bool

	// Imports are made one after the other, beside the appenders.
	Imports []importPlan
	// PutAway: before the importing is over, what can be delivered is, and imports that
	// are complete are drained.
	PutAway bool

	// Liar acknowledges before the commit: a control.
	Liar bool
	// Ready reports every change of what Queue.Ready says.
	Ready bool
	// Abandon ends a census without closing the queue.
	Abandon bool
}

const (
	roleWork       = "work"
	roleCensus     = "census"
	roleUnsynced   = "unsynced" // a bare store without syncing: a control
	roleBare       = "bare"     // a bare store that syncs, without a guard: a control
	roleBareCensus = "bare-census"

	exitOpen   = 3 // the queue could not be opened; says why
	exitFailed = 4 // the queue has failed and the process ended, as it must
	exitSpace  = 5 // the queue could not be opened: queue.ErrNoSpace
	exitFault  = 6 // anything else

	// afterFailure is how long a worker lets its goroutines go on after the queue
	// has failed, so that a late acknowledgement would be seen.
	afterFailure = 300 * time.Millisecond
)

// The lines of a worker, a letter and its arguments. A line that begins something
// is written before the call, one that ends it after the call has returned.
//
//	R                       the queue is open
//	a SET HITS              Append begins
//	A SET                   Append has returned nil
//	f SET                   Append has refused: certainly not stored
//	u SET TEXT              Append has failed: stored or not
//	j TOKEN HITS            Journal begins
//	J TOKEN BATCH           Journal has returned nil
//	s TOKEN BATCH HITS      Settle begins; each hit is followed by its outcome
//	S TOKEN                 Settle has returned nil
//	i IMPORT                BeginImport begins
//	I IMPORT                BeginImport has returned nil
//	m IMPORT SETS           AppendImport begins
//	M IMPORT                AppendImport has returned nil
//	k IMPORT, K IMPORT      CompleteImport, likewise
//	c IMPORT, C IMPORT      CancelImport
//	o IMPORT, O IMPORT      ForgetImport
//	g IMPORT                hits of the import were leased
//	n IMPORT                the import is drained
//	W                       all imports are made
//	F TEXT                  Queue.Failed is closed
//	Y TEXT                  what Queue.Ready says has changed; "ok" for nil
//	T JSON                  figures, when asked for
//	E TEXT                  an error of a consumer
//	X TEXT                  the contract is broken
//	Z                       Close has returned nil
type printer struct {
	mu    sync.Mutex
	token atomic.Uint64
}

func (p *printer) say(format string, args ...any) {
	line := fmt.Appendf(nil, format+"\n", args...)
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := os.Stdout.Write(line); err != nil {
		os.Exit(exitFault) // the parent is gone
	}
}

// hitsOf gives how many hits a set has.
func (j *job) hitsOf(set uint64) int {
	if j.SetHits > 0 {
		return j.SetHits
	}
	return 1 + int(set%3)
}

// hitBits is how many bits of a hit's number say its place in the set.
const hitBits = 8

// params gives a hit's parameters, a pure function of its number and the most
// padding, so that a census can compare every byte.
func params(n uint64, pad int) []byte {
	b := fmt.Appendf(nil, "idsite=%d&rec=1&n=%d", siteOf(n), n)
	if pad == 0 {
		return b
	}
	rng := rand.New(rand.NewPCG(n, 17))
	size := rng.IntN(pad)
	if rng.IntN(4) != 0 {
		size /= 8
	}
	raw := make([]byte, size)
	for i := range raw {
		raw[i] = byte(rng.Uint32())
	}
	return fmt.Appendf(b, "&pad=%d,%s", pad, base64.RawURLEncoding.EncodeToString(raw))
}

func siteOf(n uint64) int64 { return int64(n>>hitBits%5) + 1 }

// numberOf reads a hit's number and checks its bytes.
func numberOf(p []byte) (uint64, error) {
	_, rest, _ := strings.Cut(string(p), "&n=")
	digits, rest, _ := strings.Cut(rest, "&pad=")
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("hit without a number: %.80q", p)
	}
	size, _, _ := strings.Cut(rest, ",")
	pad, _ := strconv.Atoi(size)
	if string(params(n, pad)) != string(p) {
		return n, fmt.Errorf("hit %d has other bytes than were sent: %.80q", n, p)
	}
	return n, nil
}

func (j *job) setAt(set uint64, at int64) *hit.RequestSet {
	s := &hit.RequestSet{ReceivedAt: at, Environment: hit.Environment{ClientIP: "192.0.2.7", UserAgent: "crashtest"}}
	for i := range j.hitsOf(set) {
		n := set<<hitBits | uint64(i)
		s.Hits = append(s.Hits, hit.Hit{Params: params(n, j.Pad), Site: siteOf(n), At: at / int64(time.Second)})
	}
	return s
}

func (j *job) open() (*queue.Queue, error) {
	if j.Files > 0 {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: j.Files, Max: j.Files}); err != nil {
			return nil, err
		}
	}
	raw := make([][]byte, len(j.Keys))
	for i, name := range j.Keys {
		raw[i] = bytes.Repeat([]byte{name}, queue.KeyLen)
	}
	keys, err := queue.NewKeys(raw...)
	if err != nil {
		return nil, err
	}
	return queue.Open(queue.Options{
		Dir: j.Dir, Reserve: j.Reserve, ShelfBytes: j.ShelfBytes, Keys: keys, Metrics: metrics.NewSet(),
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
}

// openOrExit opens the queue for a child whose only business it is.
func (j *job) openOrExit() *queue.Queue {
	q, err := j.open()
	if err == nil {
		return q
	}
	fmt.Fprintln(os.Stderr, "open:", err)
	if errors.Is(err, queue.ErrNoSpace) {
		os.Exit(exitSpace)
	}
	os.Exit(exitOpen)
	return nil
}

// A worker is the child that a test kills.
type worker struct {
	job
	printer
	q    *queue.Queue
	next atomic.Uint64 // sets begun

	ctx    context.Context // of the appenders
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the appenders

	closing atomic.Bool

	leaseMu sync.Mutex
	order   order // guarded by leaseMu

	joins   atomic.Uint64   // odd while an import is being completed
	drained map[string]bool // imports that were told of; of the importer
}

func (w *worker) main() {
	w.lockThread()
	w.q = w.openOrExit()
	w.drained = map[string]bool{}
	w.order = order{live: w.q.Stats().Generation, last: map[uint64]hit.ID{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.say("R")
	for range w.Appenders {
		w.wg.Go(w.appendAll) // ended by quiet, or by their number
	}
	for i := range w.Consumers {
		go w.consume(uint64(i)) // ended with the process
	}
	if w.Ready {
		go w.watchReady() // ended with the process
	}
	go w.obey() // ended with the process
	if len(w.Imports) > 0 {
		w.importAll()
	}
	<-w.q.Failed()
	w.say("F %v", w.q.Err())
	<-time.After(afterFailure)
	os.Exit(exitFailed)
}

// obey carries out what the parent writes to the standard input.
func (w *worker) obey() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "quiet": // no more appending
			w.cancel()
			w.wg.Wait()
			w.say("quiet")
		case "drain": // settle everything from now on
			w.Strict = true
			go w.consume(100)
		case "consume": // as a sink might, some of it without a journal
			for i := range uint64(20) {
				go w.consume(200 + i) // ended with the process
			}
		case "stats":
			w.stats()
		case "close":
			w.closing.Store(true)
			w.cancel()
			if err := w.q.Close(); err != nil {
				fmt.Fprintln(os.Stderr, "close:", err)
				os.Exit(exitFault)
			}
			w.say("Z")
			os.Exit(0)
		}
	}
}

func (w *worker) stats() {
	b, err := json.Marshal(w.q.Stats())
	if err != nil {
		w.say("X stats: %v", err)
		return
	}
	w.say("T %s", b)
}

func (w *worker) appendAll() {
	for w.ctx.Err() == nil {
		n := w.next.Add(1)
		if w.Sets > 0 && n > w.Sets {
			return
		}
		set := w.Base + n
		w.say("a %d %d", set, w.hitsOf(set))
		if w.Liar {
			w.say("A %d", set)
		}
		err := w.q.Append(w.ctx, w.setAt(set, time.Now().UnixNano()))
		pause := w.Pause
		switch {
		case err == nil && !w.Liar:
			w.say("A %d", set)
		case err == nil:
		case errors.Is(err, queue.ErrFull), errors.Is(err, context.Canceled):
			w.say("f %d", set)
			pause = 20 * time.Millisecond
		default:
			w.say("u %d %v", set, err)
			pause = 5 * time.Millisecond // and it tries again, which must be in vain
		}
		if pause > 0 {
			<-time.After(pause)
		}
	}
}

// watchReady reports what Ready says when it changes.
func (w *worker) watchReady() {
	said := ""
	for range time.Tick(50 * time.Millisecond) {
		text := "ok"
		if err := w.q.Ready(); err != nil {
			text, _, _ = strings.Cut(err.Error(), ":")
		}
		if text != said {
			w.say("Y %s", text)
			said = text
		}
	}
}

// lease leases under a lock, so that the order across all consumers is seen.
func (w *worker) lease() ([]hit.Pending, error) {
	w.leaseMu.Lock()
	defer w.leaseMu.Unlock()
	hits, err := w.q.Lease(context.Background(), w.Lease)
	w.checkOrder(hits)
	return hits, err
}

func (w *worker) consume(number uint64) {
	rng := rand.New(rand.NewPCG(w.Seed, 1000+number))
	for {
		hits, err := w.lease()
		if err != nil {
			w.complain("lease", err)
			return
		}
		if err := w.handle(rng, hits); err != nil {
			w.complain("handle", err)
			return
		}
	}
}

// complain tells of an error of a consumer, unless the end explains it.
func (w *worker) complain(what string, err error) {
	if !errors.Is(err, queue.ErrStopped) && !w.closing.Load() {
		w.say("E %s: %v", what, err)
	}
}

// handle deals with a lease in one of the ways in which a sink might.
func (w *worker) handle(rng *rand.Rand, hits []hit.Pending) error {
	kind := rng.IntN(100)
	if w.Strict {
		kind = 0
	}
	if kind >= 95 {
		// The doubt about a batch of an earlier life is cleared up. What is in it
		// and not settled now is certain again.
		if b := hits[0].Uncertain; b != 0 && b != queue.DoubtLost {
			var part []hit.Pending
			for _, h := range hits {
				if h.Uncertain == b {
					part = append(part, h)
				}
			}
			return w.settle(rng, b, part)
		}
	}
	if kind >= 85 {
		return w.settle(rng, 0, hits)
	}
	batch, err := w.journal(hits)
	if err != nil {
		return err
	}
	switch {
	case kind < 65:
		return w.settle(rng, batch, hits)
	case kind < 75:
		return w.settle(rng, batch, hits[:rng.IntN(len(hits))+1])
	case kind < 80:
		return w.settle(rng, batch, nil)
	}
	return nil // in flight for as long as the process lives
}

func (w *worker) journal(hits []hit.Pending) (uint64, error) {
	var ids []hit.ID
	var list strings.Builder
	for i := range hits {
		ids = append(ids, hits[i].ID)
		n, err := numberOf(hits[i].Params)
		if err != nil {
			w.say("X %v", err)
		}
		fmt.Fprintf(&list, "%d,", n)
	}
	token := w.token.Add(1)
	w.say("j %d %s", token, list.String())
	batch, err := w.q.Journal(ids, nil)
	if err != nil {
		return 0, fmt.Errorf("journal: %w", err)
	}
	w.say("J %d %d", token, batch)
	return batch, nil
}

func (w *worker) settle(rng *rand.Rand, batch uint64, hits []hit.Pending) error {
	var list strings.Builder
	var settlements []hit.Settlement
	for i := range hits {
		s := hit.Settlement{ID: hits[i].ID}
		switch rng.IntN(40) {
		case 0:
			s.As = hit.Invalid
		case 1:
			s.As, s.Reason, s.Status, s.Answer = hit.Dead, "poison", 500, []byte("no")
		}
		n, err := numberOf(hits[i].Params)
		if err != nil {
			w.say("X %v", err)
		}
		fmt.Fprintf(&list, "%d%c,", n, "vid"[s.As])
		settlements = append(settlements, s)
	}
	token := w.token.Add(1)
	w.say("s %d %d %s", token, batch, list.String())
	if err := w.q.Settle(batch, settlements); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	w.say("S %d", token)
	return nil
}
