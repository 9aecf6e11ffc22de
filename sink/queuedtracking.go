package sink

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

const (
	// queuedEvery is how often QueuedTracking's tables are looked into.
	queuedEvery = 30 * time.Second
	// queuedAsk is how often Matomo is asked whether the plugin is on, where nothing is in
	// its tables: each question is put into its queue if it is.
	queuedAsk = 10 * time.Minute
	// queuedRead is how many rows of a table are read, to tell our questions from hits.
	queuedRead = 100
)

// A QueuedTracking is what is known of Matomo's plugin of that name, which keeps hits
// in a queue of its own before they are recorded. Ours pass it by.
type QueuedTracking struct {
	Known   bool
	On      bool
	Pending *int64 // request sets in its queue; nil = it cannot be looked into
}

// queuedWatch keeps what was found last. Its methods may be called from any goroutine,
// but for run.
type queuedWatch struct {
	mu    sync.Mutex
	found QueuedTracking
	asked time.Time
	// shown: the tables are the plugin's queue, or it is off. They may also be left from
	// before it went over to Redis.
	shown bool
}

func (w *queuedWatch) get() QueuedTracking {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.found
}

func (w *queuedWatch) set(found QueuedTracking) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.found = found
}

// QueuedTracking gives what was found last; all of it is unknown before [Sink.Run] has
// looked.
func (s *Sink) QueuedTracking() QueuedTracking { return s.queued.get() }

// watchQueued looks for QueuedTracking until ctx is done.
func (s *Sink) watchQueued(ctx context.Context) {
	for {
		s.lookForQueued(ctx)
		wait := queuedEvery
		if !s.queued.get().Known {
			wait = time.Second
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

func (s *Sink) lookForQueued(ctx context.Context) {
	found := s.queued.get()
	t, err := s.queuedTables(ctx)
	visible := err == nil && t.tables > 0
	if visible && (t.pending > 0 || t.own) {
		s.queued.shown = true
	} else if (!found.Known || time.Since(s.queued.asked) >= queuedAsk) && s.brk.sending() {
		if on, known := s.queuedTracking(ctx); known {
			found.On, found.Known, s.queued.asked = on, true, time.Now()
			if on && visible {
				t, err = s.queuedTables(ctx) // the question is there
				visible = err == nil
			}
			s.queued.shown = visible && (!on || t.pending > 0 || t.own)
		}
	}
	found.Pending = nil
	if visible && s.queued.shown {
		// The plugin may be off and have left its tables; what is in them is left to do.
		found = QueuedTracking{Known: true, On: true, Pending: &t.pending}
	}
	s.queued.set(found)
}

// queuedTables is what the plugin's tables have.
type queuedTables struct {
	tables  int
	pending int64 // request sets, without our questions
	own     bool  // a question of ours
}

// queuedTables looks into the plugin's tables; there are none when the account may not
// read each.
func (s *Sink) queuedTables(ctx context.Context) (found queuedTables, err error) {
	if s.db == nil {
		return found, nil
	}
	var names []string
	err = s.db.query(ctx, func(rows *sql.Rows) error {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		names = append(names, name)
		return nil
	}, "SHOW TABLES LIKE '"+likeText(s.db.prefix+"queuedtracking_list_")+"%'")
	for _, name := range names {
		if err != nil || !plainName(name) {
			continue
		}
		var there []int64
		there, err = s.db.numbers(ctx, "SELECT COALESCE(MAX(idqueuelist)-MIN(idqueuelist)+1,0) FROM `"+name+"`")
		if err == nil && there[0] > 0 && there[0] <= queuedRead {
			there[0] = 0
			err = s.db.query(ctx, func(rows *sql.Rows) error {
				var value []byte
				if err := rows.Scan(&value); err != nil {
					return err
				}
				if s.asksQueued(value) {
					found.own = true
				} else {
					there[0]++
				}
				return nil
			}, "SELECT list_value FROM `"+name+"` LIMIT ?", 2*queuedRead)
		}
		if classify(err) == faultAccount {
			return queuedTables{}, nil // what is in it is not known, so nothing is
		}
		if err == nil {
			found.tables++
			found.pending += there[0]
		}
	}
	if err != nil {
		return queuedTables{}, fmt.Errorf("look into QueuedTracking's tables: %w", err)
	}
	return found, nil
}

// asksQueued reports whether a row of the plugin's queue is a question of ours: text that
// PHP's gzcompress has packed.
func (s *Sink) asksQueued(value []byte) bool {
	r, err := zlib.NewReader(bytes.NewReader(value))
	if err != nil {
		return false
	}
	text, err := io.ReadAll(io.LimitReader(r, 64<<10)) // ours is a few hundred bytes
	return err == nil && bytes.Contains(text, []byte(s.queuedMark()))
}

// queuedMark stands in our questions. It is the same after a restart, and nobody who
// lacks the token can put it into a hit.
func (s *Sink) queuedMark() string {
	sum := sha256.Sum256([]byte("QueuedTracking " + s.cfg.Token))
	return hex.EncodeToString(sum[:8])
}

// likeText makes a name of letters, digits and underscores stand for itself in LIKE.
func likeText(name string) string { return strings.ReplaceAll(name, "_", `\_`) }
