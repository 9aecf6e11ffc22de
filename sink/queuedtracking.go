package sink

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// queuedEvery is how often QueuedTracking's tables are looked into.
	queuedEvery = 30 * time.Second
	// queuedAsk is how often Matomo is asked whether the plugin is on, where its tables
	// do not show: each question is put into that queue if it is.
	queuedAsk = 10 * time.Minute
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
	if tables, pending, err := s.queuedTables(ctx); err == nil && tables > 0 {
		// The plugin may be off and have left its tables; what is in them is left to do.
		s.queued.set(QueuedTracking{Known: true, On: true, Pending: &pending})
		return
	}
	found.Pending = nil
	if (!found.Known || time.Since(s.queued.asked) >= queuedAsk) && s.brk.sending() {
		if on, known := s.queuedTracking(ctx); known {
			found.On, found.Known, s.queued.asked = on, true, time.Now()
		}
	}
	s.queued.set(found)
}

// queuedTables counts the plugin's tables, and what is in them; none when the account
// may not read each.
func (s *Sink) queuedTables(ctx context.Context) (tables int, pending int64, err error) {
	if s.db == nil {
		return 0, 0, nil
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
		if classify(err) == faultAccount {
			return 0, 0, nil // what is in it is not known, so nothing is
		}
		if err == nil {
			tables++
			pending += there[0]
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("look into QueuedTracking's tables: %w", err)
	}
	return tables, pending, nil
}

// likeText makes a name of letters, digits and underscores stand for itself in LIKE.
func likeText(name string) string { return strings.ReplaceAll(name, "_", `\_`) }
