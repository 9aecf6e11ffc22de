package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// A part is something that runs until it is told to stop. Parts are started in
// order and stopped in the opposite order, one after the other.
type part struct {
	name string
	// run blocks until its context is done and then returns nil; any other return
	// ends the process.
	run func(context.Context) error
	// up is closed when the part does its work, so that the next one can begin.
	// Nil is at once.
	up <-chan struct{}
}

// A life is what the parts live through.
type life struct {
	parts    []part
	signals  <-chan os.Signal
	failed   <-chan struct{} // closed when nothing may be accepted or written any more
	ready    func()          // all parts are up
	stopping func(why string)
	hangup   func()        // SIGHUP came
	beat     func()        // called every interval: this goroutine is alive
	interval time.Duration // 0 = no beat
}

// Ends of a life that are not a failure of a part.
var (
	errFailedDisk   = errors.New("stopped at once: the disk failed")
	errSecondSignal = errors.New("stopped at once: a second signal came")
)

// ended is the return of one part.
type ended struct {
	index int
	err   error
}

// live starts the parts, waits for a reason to stop, stops them and returns nil
// after a signal, or what went wrong. When it returns [errFailedDisk] or
// [errSecondSignal] the parts are still running: the process must end.
func (l *life) live() error {
	r := &running{life: l, ends: make(chan ended, len(l.parts)), done: make([]bool, len(l.parts))}
	stop, err := r.start()
	if stop == nil && err == nil {
		l.ready()
		stop, err = r.wait(nil)
	}
	if errors.Is(err, errFailedDisk) || errors.Is(err, errSecondSignal) {
		return err
	}
	why := "a part ended"
	if stop != nil {
		why = stop.String()
	}
	l.stopping(why)
	return errors.Join(err, r.stop())
}

// A running is the state of [life.live]; one goroutine owns it.
type running struct {
	*life
	ends    chan ended // one result a part, so that no part waits to end
	cancels []context.CancelFunc
	done    []bool
	beats   <-chan time.Time
}

// start brings up one part after the other. It returns early with a signal or an
// error.
func (r *running) start() (os.Signal, error) {
	if r.interval > 0 {
		r.beats = time.Tick(r.interval)
	}
	for i, p := range r.parts {
		ctx, cancel := context.WithCancel(context.Background())
		r.cancels = append(r.cancels, cancel)
		// Ended by its cancel function, at the latest by the end of the process.
		go func() { r.ends <- ended{i, p.run(ctx)} }()
		if p.up == nil {
			continue
		}
		if signal, err := r.wait(p.up); signal != nil || err != nil {
			return signal, err
		}
	}
	return nil, nil
}

// wait returns when up is closed, a signal asks to stop, a part has ended, or the
// disk has failed.
func (r *running) wait(up <-chan struct{}) (os.Signal, error) {
	for {
		// A failed disk comes before everything else that may have happened, too.
		select {
		case <-r.failed:
			return nil, errFailedDisk
		default:
		}
		select {
		case <-up:
			return nil, nil
		case <-r.failed:
		case e := <-r.ends:
			r.done[e.index] = true
			if e.err == nil {
				e.err = errors.New("ended by itself")
			}
			return nil, fmt.Errorf("%s: %w", r.parts[e.index].name, e.err)
		case <-r.beats:
			r.beat()
		case signal := <-r.signals:
			if signal == syscall.SIGHUP {
				r.hangup()
				continue
			}
			return signal, nil
		}
	}
}

// stop ends the parts that still run, the last started first.
func (r *running) stop() error {
	var errs []error
	for i := len(r.cancels) - 1; i >= 0; i-- {
		r.cancels[i]()
		for !r.done[i] {
			select {
			case e := <-r.ends:
				r.done[e.index] = true
				if e.err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", r.parts[e.index].name, e.err))
				}
			case <-r.failed:
				return errors.Join(append(errs, errFailedDisk)...)
			case <-r.beats:
				r.beat()
			case signal := <-r.signals:
				if signal == syscall.SIGHUP {
					r.hangup()
					continue
				}
				return errors.Join(append(errs, errSecondSignal)...)
			}
		}
	}
	return errors.Join(errs...)
}
