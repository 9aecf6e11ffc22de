package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A stage is a life under test with fake parts that write down what happens.
type stage struct {
	life
	signals chan os.Signal
	failed  chan struct{}
	end     chan struct{}

	mu     sync.Mutex
	events []string
}

func newStage() *stage {
	s := &stage{signals: make(chan os.Signal, 2), failed: make(chan struct{}), end: make(chan struct{})}
	s.life = life{
		signals: s.signals, failed: s.failed, interval: time.Second,
		ready:    func() { s.note("ready") },
		stopping: func(string) { s.note("stopping") },
		hangup:   func() { s.note("hangup") },
		beat:     func() {},
	}
	return s
}

func (s *stage) note(event string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, event)
}

func (s *stage) seen() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.events, " ")
}

// add adds a part that takes some time to come up and to stop, and then returns err.
func (s *stage) add(name string, up, stop time.Duration, err error) {
	started := make(chan struct{})
	s.parts = append(s.parts, part{name: name, up: started, run: func(ctx context.Context) error {
		s.note(name + "+")
		s.pause(up)
		close(started)
		select {
		case <-ctx.Done():
			s.pause(stop)
		case <-s.end:
		}
		s.note(name + "-")
		return err
	}})
}

// pause lets time pass, unless the process ends.
func (s *stage) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.end:
	}
}

// abandon ends what still runs, as the end of the process does.
func (s *stage) abandon() { close(s.end) }

// run lives in the background and gives what it returned.
func (s *stage) run() <-chan error {
	done := make(chan error, 1)
	go func() { done <- s.live() }()
	return done
}

func TestPartsStartInOrderAndStopInTheOppositeOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.add("a", time.Second, time.Second, nil)
		s.add("b", 0, 3*time.Second, nil)
		s.add("c", time.Second, 0, nil)
		done := s.run()
		time.Sleep(time.Minute)
		s.signals <- syscall.SIGHUP
		synctest.Wait()
		begun := time.Now()
		s.signals <- syscall.SIGTERM
		if err := <-done; err != nil {
			t.Errorf("live = %v after SIGTERM, want nil", err)
		}
		if got, want := s.seen(), "a+ b+ c+ ready hangup stopping c- b- a-"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if took := time.Since(begun); took != 4*time.Second {
			t.Errorf("stopped in %v, want 4s", took)
		}
	})
}

func TestAFailedDiskEndsEverythingAtOnce(t *testing.T) {
	moments := map[string]func(s *stage){
		"while running":  func(s *stage) { time.Sleep(time.Minute) },
		"while starting": func(s *stage) { time.Sleep(500 * time.Millisecond) },
		"while stopping": func(s *stage) {
			time.Sleep(time.Minute)
			s.signals <- syscall.SIGTERM
			time.Sleep(time.Second)
		},
	}
	for name, until := range moments {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				s.add("a", time.Second, time.Hour, nil)
				s.add("b", 0, time.Hour, nil)
				done := s.run()
				until(s)
				begun := time.Now()
				close(s.failed)
				if err := <-done; !errors.Is(err, errFailedDisk) {
					t.Errorf("live = %v, want errFailedDisk", err)
				}
				if took := time.Since(begun); took > 0 {
					t.Errorf("took %v, want no time at all", took)
				}
				if seen := s.seen(); name != "while stopping" && strings.Contains(seen, "stopping") || name == "while starting" && strings.Contains(seen, "ready") {
					t.Errorf("went on as if nothing had happened: %s", seen)
				}
				s.abandon()
			})
		})
	}
}

func TestASecondSignalEndsEverythingAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.add("a", 0, time.Hour, nil)
		done := s.run()
		time.Sleep(time.Minute)
		s.signals <- os.Interrupt
		time.Sleep(time.Second)
		begun := time.Now()
		s.signals <- os.Interrupt
		if err := <-done; !errors.Is(err, errSecondSignal) || time.Since(begun) > 0 {
			t.Errorf("live = %v after %v, want errSecondSignal at once", err, time.Since(begun))
		}
		s.abandon()
	})
}

func TestAPartThatEndsStopsTheOthers(t *testing.T) {
	boom := errors.New("address in use")
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"with an error", boom, "c: address in use"},
		{"without an error", nil, "c: ended by itself"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				s.add("a", 0, time.Second, nil)
				s.add("b", 0, time.Second, errors.New("late trouble"))
				s.parts = append(s.parts, part{name: "c", up: make(chan struct{}), run: func(context.Context) error { return tt.err }})
				err := s.live()
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "b: late trouble") {
					t.Errorf("live = %v, want %q and what happened while stopping", err, tt.want)
				}
				if got, want := s.seen(), "a+ b+ stopping b- a-"; got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		})
	}
}

func TestASignalWhileStartingStopsWhatHasStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.add("a", 0, 0, nil)
		s.add("b", time.Minute, 0, nil)
		s.add("c", 0, 0, nil)
		done := s.run()
		time.Sleep(time.Second)
		s.signals <- syscall.SIGTERM
		if err := <-done; err != nil {
			t.Errorf("live = %v, want nil", err)
		}
		if got, want := s.seen(), "a+ b+ stopping b- a-"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestBeatsGoOnWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		beats := 0
		s.beat = func() { beats++ }
		s.add("a", 0, time.Minute, nil)
		done := s.run()
		time.Sleep(10*time.Second + time.Millisecond)
		s.signals <- syscall.SIGTERM
		<-done
		if beats < 69 {
			t.Errorf("%d beats in 70 s, want one a second", beats)
		}
	})
}

func TestMountOfADirectory(t *testing.T) {
	const table = `22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:27 / /tmp rw,nosuid - tmpfs tmpfs rw,size=1k
31 22 8:1 / /var/lib/sluice rw,noatime shared:2 - xfs /dev/sda1 rw,nobarrier
32 22 8:2 / /var/lib/with\040space rw - ext4 /dev/sdb1 rw,barrier=0
33 22 0:40 / /net rw - nfs4 server:/x rw
34 22 0:41 / /net/fuse rw - fuse.sshfs x rw
35 22 0:42 / /over rw - overlay overlay rw
36 30 0:43 / /tmp ro - ext4 /dev/sdc rw
broken line
`
	tests := []struct{ dir, kind, doubt string }{
		{"/home/x", "ext4", ""},
		{"/var/lib/sluice", "xfs", "nobarrier"},
		{"/var/lib/sluice/queue", "xfs", "nobarrier"},
		{"/var/lib/sluice2", "ext4", ""},
		{"/var/lib/with space/x", "ext4", "barrier=0"},
		{"/net/x", "nfs4", "not a local disk"},
		{"/net/fuse/x", "fuse.sshfs", "not a local disk"},
		{"/over", "overlay", "container"},
		{"/tmp/x", "ext4", "read-only"}, // the mount that lies above
	}
	for _, tt := range tests {
		m, err := findMount(strings.NewReader(table), tt.dir)
		if err != nil || m.kind != tt.kind {
			t.Errorf("%s is on %+v, %v, want %s", tt.dir, m, err, tt.kind)
		}
		if got := m.doubt(); !strings.Contains(got, tt.doubt) || (got == "") != (tt.doubt == "") {
			t.Errorf("%s: doubt %q, want %q", tt.dir, got, tt.doubt)
		}
	}
	if _, err := findMount(strings.NewReader(""), "/"); err == nil {
		t.Error("an empty table gives no error")
	}
}

func TestConnectionsLeaveFilesForTheQueue(t *testing.T) {
	tests := []struct{ wanted, files, want int }{
		{1000, 1 << 20, 1000}, {16384, 20000, 16384}, {30000, 20000, 18976}, {16384, 4096, 3072}, {16384, 1024, 256}, {16, 100, 1},
	}
	for _, tt := range tests {
		if got := capConnections(tt.wanted, tt.files, 256); got != tt.want {
			t.Errorf("%d connections with %d files: got %d, want %d", tt.wanted, tt.files, got, tt.want)
		}
	}
}

func TestMemoryGrowsWithConnections(t *testing.T) {
	for _, tt := range []struct{ connections, mib int }{{0, 208}, {1000, 208}, {11240, 408}} {
		if got := memoryFor(tt.connections); got != int64(tt.mib)<<20 {
			t.Errorf("%d connections: got %d, want %d MiB", tt.connections, got, tt.mib)
		}
	}
}

func TestWords(t *testing.T) {
	day := 24 * time.Hour
	tests := []struct{ got, want string }{
		{number(0), "0"}, {number(-1234567), "-1,234,567"}, {number(999), "999"}, {number(1000), "1,000"},
		{size(0), "0 B"}, {size(-3 << 30), "-3.0 GiB"}, {size(999), "999 B"}, {size(1023), "1.0 KiB"}, {size(138 << 20), "138 MiB"}, {size(41<<30 + 200<<20), "41.2 GiB"},
		{span(-1), "0 s"}, {span(1100 * time.Microsecond), "1.1 ms"}, {span(340 * time.Millisecond), "340 ms"}, {span(57 * time.Minute), "57 min"},
		{span(101 * time.Minute), "1 h 41 min"}, {span(3*day + 20*time.Hour), "3 d 20 h"},
		{rate(0), "0/s"}, {rate(1.34), "1.3/s"}, {rate(1234.5), "1,235/s"},
		{room(400 * 24 * 3600), "more than a year"}, {printable("a\x1b[31mb\u202ec"), "a?[31mb?c"},
		{shortFingerprint("9f2c00000041"), "9f:2c:…:41"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
	p := &process{now: func() time.Time { return time.Date(2026, 3, 17, 0, 47, 0, 0, time.UTC) }, zone: time.FixedZone("", 3600)}
	if got := p.clock(time.Date(2026, 3, 16, 23, 50, 4, 0, time.UTC)); got != "00:50:04" {
		t.Errorf("a time of today is %q", got)
	}
	if got := p.clock(time.Date(2026, 3, 16, 22, 50, 4, 0, time.UTC)); got != "2026-03-16 23:50:04" {
		t.Errorf("a time of yesterday is %q", got)
	}
}

func TestColorIsForTerminalsOnly(t *testing.T) {
	p := &process{stdout: os.Stdin}
	for choice, want := range map[string]bool{"always": true, "never": false, "auto": false} {
		if got := colorWanted(choice, p); got != want {
			t.Errorf("%s gives %v", choice, got)
		}
	}
	o := &printer{color: true}
	if got := o.mark(toneBad); got != "\x1b[31mXX\x1b[0m" {
		t.Errorf("got %q", got)
	}
	if slices.Contains(marks[:], "") {
		t.Error("a tone has no mark")
	}
}
