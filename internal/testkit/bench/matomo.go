package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"sluice/internal/testkit"
)

// countsPath is where the counting Matomo says what it has counted.
const countsPath = "/bench/counts"

// serveMatomo runs a Matomo that counts and judges nothing, writes its address as
// the first line, and ends when in does.
func serveMatomo(in io.Reader, out io.Writer) error {
	var m *testkit.Matomo
	m = testkit.NewMatomo(testkit.MatomoConfig{CountOnly: true, Fallback: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case countsPath:
			case trackerPath:
				w.Header().Set("Content-Type", "application/javascript")
				_, _ = w.Write(testkit.TrackerFile(trackerSize)) // as below
				return
			default:
				http.NotFound(w, r)
				return
			}
			_ = json.NewEncoder(w).Encode(m.Counts()) // whoever asked is gone if this fails
		})})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: m, ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(listener) }() // ended by Close below
	fmt.Fprintf(out, "http://%s\n", listener.Addr())
	_, err = io.Copy(io.Discard, in)
	m.Close()
	return errors.Join(err, srv.Close(), ignoreClosed(<-done))
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// A matomo is the counting Matomo in a process of its own.
type matomo struct {
	*process
	url   string
	stdin io.Closer
}

func startMatomo(dir string) (*matomo, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inRead.Close(), inWrite.Close())
	}
	defer outRead.Close()
	p, err := start(dir, "matomo", inRead, outWrite, self, "-role", "matomo")
	err = errors.Join(err, inRead.Close(), outWrite.Close()) // the program has its own
	if err != nil {
		return nil, errors.Join(err, inWrite.Close())
	}
	m := &matomo{process: p, stdin: inWrite}
	line, err := bufio.NewReader(outRead).ReadString('\n') // it says so or ends
	if err != nil {
		m.stop()
		return nil, p.fault(fmt.Errorf("start the counting Matomo: %w", err))
	}
	m.url = strings.TrimSpace(line)
	return m, nil
}

func (m *matomo) stop() {
	_ = m.stdin.Close() // it is killed in any case
	m.process.stop()
}

// recorded gives how many hits it has taken, the canaries' included.
func (m *matomo) recorded(ctx context.Context) (int64, error) {
	body, status, err := get(ctx, m.url+countsPath)
	if err != nil {
		return 0, err
	}
	if status != http.StatusOK {
		return 0, fmt.Errorf("the counting Matomo answered %d", status)
	}
	var counts testkit.Counts
	err = json.Unmarshal(body, &counts)
	return counts.Recorded, err
}

// get asks for a page and gives its body and status.
func get(ctx context.Context, url string) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := loopback.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close() // it was only read
	body, err := io.ReadAll(resp.Body)
	return body, resp.StatusCode, err
}

// loopback asks servers of this program's own; none of them may keep it waiting.
var loopback = &http.Client{Timeout: 5 * time.Second}
