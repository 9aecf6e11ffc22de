// Package systemd is what Sluice and the service manager say to each other: how the
// service is doing, over the datagram socket that systemd names in the environment,
// and the listening sockets that it keeps open for the service.
//
// A [Notifier] without a socket does nothing, so that callers need not care whether
// systemd started them. All its methods may be called from any goroutine; none blocks
// and none returns an error, since a service that cannot report must serve all the
// same.
package systemd

import (
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Notifier sends to one socket.
type Notifier struct {
	conn     *net.UnixConn // nil: nobody listens
	watchdog time.Duration // 0: no watchdog
}

// NewNotifier connects to the socket that env, in the form of os.Environ, names.
// pid is this process: a watchdog that was asked of another one is not ours.
func NewNotifier(env []string, pid int) *Notifier {
	n := &Notifier{}
	var path, owner string
	var interval int64
	for _, line := range env {
		switch name, value, _ := strings.Cut(line, "="); name {
		case "NOTIFY_SOCKET":
			path = value
		case "WATCHDOG_USEC":
			interval, _ = strconv.ParseInt(value, 10, 64) // Nonsense is no watchdog.
		case "WATCHDOG_PID":
			owner = value
		}
	}
	if path == "" {
		return n
	}
	// An abstract socket is written with @, which package net understands.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return n
	}
	n.conn = conn
	if interval > 0 && (owner == "" || owner == strconv.Itoa(pid)) {
		n.watchdog = time.Duration(interval) * time.Microsecond
	}
	return n
}

// Ready says that the service is up, with a sentence for "systemctl status".
func (n *Notifier) Ready(status string) { n.send("READY=1\nSTATUS=" + oneLine(status)) }

// Status gives a sentence for "systemctl status".
func (n *Notifier) Status(status string) { n.send("STATUS=" + oneLine(status)) }

// Reloading says that the service reads its settings again. [Notifier.Ready] ends
// that, whatever became of it.
func (n *Notifier) Reloading() {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		n.send("RELOADING=1") // Without the time, as before systemd 253.
		return
	}
	n.send("RELOADING=1\nMONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/int64(time.Microsecond), 10))
}

// Stopping says that the service has begun to stop.
func (n *Notifier) Stopping(status string) { n.send("STOPPING=1\nSTATUS=" + oneLine(status)) }

// Interval is how often [Notifier.Alive] must be called: half of what systemd
// allows; 0 when it asks for nothing.
func (n *Notifier) Interval() time.Duration { return n.watchdog / 2 }

// Alive feeds the watchdog.
func (n *Notifier) Alive() { n.send("WATCHDOG=1") }

// Close lets go of the socket.
func (n *Notifier) Close() {
	if n.conn != nil {
		n.conn.Close()
	}
}

// send never waits: systemd reads, or the message is lost, and the next one comes.
func (n *Notifier) send(state string) {
	if n.conn == nil {
		return
	}
	raw, err := n.conn.SyscallConn()
	if err != nil {
		return // closed
	}
	// One attempt: a buffer that is full must not hold up the service, and whoever
	// does not listen cannot be told.
	_ = raw.Write(func(fd uintptr) bool {
		_, _ = syscall.Write(int(fd), []byte(state))
		return true
	})
}

// oneLine keeps a status from being taken for further variables.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
