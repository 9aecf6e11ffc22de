package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// firstSocket is the descriptor of the first socket, SD_LISTEN_FDS_START.
const firstSocket = 3

// maxSockets bounds what is believed of LISTEN_FDS.
const maxSockets = 64

// variables is what systemd says about sockets in the environment.
var variables = [...]string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}

// Listeners gives the sockets that systemd, or whoever acts as systemd does, has opened
// for this process, by the names that their units give them (FileDescriptorName=). env
// has the form of [os.Environ], pid is this process, and known are the names that have
// a meaning here: a socket with another name, or none, is an error, since it would
// accept connections that nobody answers. Call it once: the descriptors are taken.
//
// Closing one of the listeners closes this process's share of the socket only: whoever
// opened it keeps it, and connections that were not accepted wait for the next process.
func Listeners(env []string, pid int, known ...string) (map[string]*net.TCPListener, error) {
	values := make(map[string]string)
	for _, line := range env {
		if name, value, ok := strings.Cut(line, "="); ok && slices.Contains(variables[:], name) {
			values[name] = value
		}
	}
	if values["LISTEN_FDS"] == "" || values["LISTEN_PID"] != strconv.Itoa(pid) {
		return nil, nil // none, or meant for another process
	}
	count, err := strconv.Atoi(values["LISTEN_FDS"])
	if err != nil || count < 0 || count > maxSockets {
		return nil, fmt.Errorf("LISTEN_FDS is %q: want the number of sockets, at most %d", values["LISTEN_FDS"], maxSockets)
	}
	var names []string
	if values["LISTEN_FDNAMES"] != "" {
		names = strings.Split(values["LISTEN_FDNAMES"], ":")
	}
	taken := make(map[string]*net.TCPListener)
	var faults []error
	for i := range count {
		name := "unknown" // as systemd calls what has no name
		if i < len(names) {
			name = names[i]
		}
		l, err := take(firstSocket + i)
		switch {
		case !slices.Contains(known, name):
			err = fmt.Errorf("is not known: want FileDescriptorName= %s in the socket's unit", strings.Join(known, ", "))
		case err == nil && taken[name] != nil:
			err = errors.New("comes twice: want one socket for each name")
		case err == nil:
			taken[name] = l
			continue
		}
		if l != nil {
			_ = l.Close() // it is not used
		}
		faults = append(faults, fmt.Errorf("socket %d, named %q, %w", firstSocket+i, name, err))
	}
	if len(faults) > 0 {
		for _, l := range taken {
			_ = l.Close() // nothing was accepted from it
		}
		return nil, errors.Join(faults...)
	}
	return taken, nil
}

// take makes a listener of a descriptor and closes the descriptor.
func take(fd int) (*net.TCPListener, error) {
	syscall.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "socket "+strconv.Itoa(fd))
	l, err := net.FileListener(f)
	_ = f.Close() // the listener has a copy
	if err != nil {
		return nil, fmt.Errorf("cannot be listened on: %w", err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		_ = l.Close() // it is not used
		return nil, fmt.Errorf("is a %s socket: want TCP", l.Addr().Network())
	}
	return tcp, nil
}
