package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

const (
	// standardOutput is the name of no file.
	standardOutput = "-"
	// logMode lets the group read the access log, as of other servers.
	logMode = 0o640
	// maxLogBuffer is how much waits while the disk does not take it, in bytes. What
	// comes beyond is lost and counted.
	maxLogBuffer = 4 << 20
	// logBatch is how much is written at once, if that much comes within logInterval.
	logBatch    = 64 << 10
	logInterval = 200 * time.Millisecond
	// logPatience is how long a stop waits for a file that takes nothing, such as a
	// pipe that nobody reads.
	logPatience = 2 * time.Second
)

// An accessWriter writes the lines of the access log, all in one goroutine. No
// caller of write ever waits for the disk. All methods may be called from any
// goroutine; start and stop once, in this order.
type accessWriter struct {
	// Set by newAccessWriter.
	log     *slog.Logger
	lost    *metrics.Counter // lines
	some    chan struct{}    // lines wait; one is enough, since all of them are taken
	batch   chan struct{}    // a batch waits
	ending  chan struct{}    // closed by stop
	drained chan struct{}    // closed by the goroutine's end

	mu      sync.Mutex
	waiting []byte // guarded by mu

	fileMu sync.Mutex
	path   string    // guarded by fileMu; "" is off
	file   io.Writer // guarded by fileMu; nil when off
	torn   bool      // guarded by fileMu: the file may end within a line
	failed int       // guarded by fileMu: lines lost since writing began to fail
}

func newAccessWriter(log *slog.Logger, lost *metrics.Counter) *accessWriter {
	return &accessWriter{log: log, lost: lost, some: make(chan struct{}, 1), batch: make(chan struct{}, 1),
		ending: make(chan struct{}), drained: make(chan struct{})}
}

// start opens the file and begins to write. The caller must call stop.
func (w *accessWriter) start(a AccessLog) error {
	if err := w.use(a); err != nil {
		return err
	}
	// It ends when stop is called, or with a write of then that never returns.
	go w.run()
	return nil
}

// use makes a's file the one that is written to. With an error the old one stays.
func (w *accessWriter) use(a AccessLog) error {
	path := a.File
	if a.Format == AccessLogOff {
		path = ""
	}
	w.fileMu.Lock()
	defer w.fileMu.Unlock()
	if path == w.path {
		return nil
	}
	return w.openLocked(path)
}

// Reopen opens the access log's file anew, after a rotation has moved it away. With
// an error the old file stays in use. It blocks while the file is opened.
func (s *Server) Reopen() error {
	w := s.access
	w.fileMu.Lock()
	defer w.fileMu.Unlock()
	if w.path == "" {
		return nil
	}
	return w.openLocked(w.path)
}

func (w *accessWriter) openLocked(path string) error {
	var file io.Writer
	switch path {
	case "":
	case standardOutput:
		file = os.Stdout
	default:
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, logMode)
		if err != nil {
			return fmt.Errorf("open the access log: %w", err)
		}
		file = f
	}
	if w.file != nil {
		w.flushLocked()
	}
	w.closeLocked()
	w.path, w.file, w.torn = path, file, false
	return nil
}

func (w *accessWriter) closeLocked() {
	if f, ok := w.file.(*os.File); ok && f != os.Stdout {
		_ = f.Close() // each write has reported its own error
	}
	w.path, w.file = "", nil
}

// write takes one line. The bytes may be used again at once.
func (w *accessWriter) write(line []byte) {
	w.mu.Lock()
	before := len(w.waiting)
	if before+len(line) > maxLogBuffer {
		w.mu.Unlock()
		w.lost.Inc()
		return
	}
	w.waiting = append(w.waiting, line...)
	after := len(w.waiting)
	w.mu.Unlock()
	if before == 0 {
		signal(w.some)
	}
	if before < logBatch && after >= logBatch {
		signal(w.batch)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (w *accessWriter) run() {
	defer close(w.drained)
	timer := time.NewTimer(logInterval)
	for {
		select {
		case <-w.some:
		case <-w.ending:
			return
		}
		timer.Reset(logInterval)
		select {
		case <-w.batch:
		case <-timer.C:
		case <-w.ending:
			return
		}
		w.fileMu.Lock()
		w.flushLocked()
		w.fileMu.Unlock()
	}
}

// stop writes what waits and closes the file. It gives up on a file that takes
// nothing, and what waits for it is lost with the process.
func (w *accessWriter) stop() {
	close(w.ending)
	flushed := make(chan struct{})
	// It ends with the file's last write.
	go func() {
		defer close(flushed)
		<-w.drained
		w.fileMu.Lock()
		defer w.fileMu.Unlock()
		w.flushLocked()
		w.closeLocked()
	}()
	timer := time.NewTimer(logPatience)
	defer timer.Stop()
	select {
	case <-flushed:
	case <-timer.C:
		w.log.Warn("the access log takes nothing; its last lines are given up")
	}
}

// flushLocked writes what waits. A failure loses lines, never a hit.
func (w *accessWriter) flushLocked() {
	w.mu.Lock()
	b := w.waiting
	w.waiting = nil
	w.mu.Unlock()
	if len(b) == 0 || w.file == nil {
		return
	}
	lines := bytes.Count(b, []byte{'\n'})
	whole := b
	if w.torn {
		whole = append([]byte{'\n'}, b...)
	}
	n, err := w.file.Write(whole)
	if err == nil {
		w.torn = false
		if w.failed > 0 {
			w.log.Info("the access log is written again", "lost", w.failed)
			w.failed = 0
		}
		w.keep(b)
		return
	}
	n = max(0, n-(len(whole)-len(b)))
	lost := lines - bytes.Count(b[:n], []byte{'\n'})
	w.torn = w.torn && n == 0 || n > 0 && b[n-1] != '\n'
	w.lost.Add(lost)
	if w.failed == 0 {
		reason := err
		if path, ok := errors.AsType[*os.PathError](err); ok {
			reason = path.Err
		}
		w.log.Warn("the access log cannot be written; lines are lost and counted until it can", "err", reason)
	}
	w.failed += lost
	w.keep(b)
}

// keep gives a written buffer back, if nothing has taken its place and it is no
// larger than what is usual.
func (w *accessWriter) keep(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil && cap(b) <= 4*logBatch {
		w.waiting = b[:0]
	}
}
