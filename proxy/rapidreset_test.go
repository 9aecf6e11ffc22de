package proxy

import (
	"bufio"
	"encoding/binary"
	"io"
	"runtime"
	"strings"
	"testing"
)

const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

	frameHeaders, frameReset = 1, 3
	endOfHeadersAndStream    = 5
	resetCancel              = "\x00\x00\x00\x08"
)

// frame appends a frame of HTTP/2.
func frame(b []byte, kind, flags byte, stream uint32, payload string) []byte {
	b = append(b, 0, byte(len(payload)>>8), byte(len(payload)), kind, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// getBlock is a GET as HPACK has it: method, scheme, path and host, nothing indexed.
func getBlock(path string) string {
	return "\x82\x87\x04" + string(rune(len(path))) + path + "\x01\x01a"
}

// TestRapidReset opens and cancels thousands of streams as fast as the server reads
// them, hits and requests that Matomo must answer. What that takes is bounded, and a
// client beside is served.
func TestRapidReset(t *testing.T) {
	const (
		clients = 3
		streams = 5000
		// What may run for one connection is 250 streams of HTTP/2, each with its handler
		// and its connection to Matomo.
		maxGoroutines = clients * 250 * 8
		maxMemory     = 256 << 20
	)
	r := newRig(t, nil)
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	ended := make(chan struct{}, clients)
	for range clients {
		conn, err := r.dialWith(t, entrances[4], "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go io.Copy(io.Discard, conn) // ends with conn
		go func() {                  // ends when all is sent, or when the server has had enough
			defer func() { ended <- struct{}{} }()
			b := []byte(preface)
			for i := range uint32(streams) {
				path := okHit
				if i%2 == 0 {
					path = "/index.php"
				}
				b = frame(b, frameHeaders, endOfHeadersAndStream, 2*i+1, getBlock(path))
				b = frame(b, frameReset, 0, 2*i+1, resetCancel)
				if len(b) > 8<<10 {
					if _, err := conn.Write(b); err != nil {
						return
					}
					b = b[:0]
				}
			}
			conn.Write(b)
		}()
	}
	beside := r.dial(t)
	reader := bufio.NewReader(beside)
	most, hits := 0, 0
	for running := clients; running > 0; {
		select {
		case <-ended:
			running--
		default:
		}
		io.WriteString(beside, get(okHit))
		if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
			t.Fatalf("the client beside: got %s %v", a.status, err)
		}
		hits++
		most = max(most, runtime.NumGoroutine())
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		if used := int64(now.HeapAlloc) - int64(before.HeapAlloc); used > maxMemory {
			t.Fatalf("%d bytes of memory are used, want at most %d", used, maxMemory)
		}
	}
	t.Logf("at most %d goroutines", most)
	if most > maxGoroutines {
		t.Errorf("%d goroutines, want at most %d", most, maxGoroutines)
	}
	if sets := len(r.queue.take()); sets <= hits {
		t.Errorf("%d sets are stored, %d of them of the client beside: the others sent no requests", sets, hits)
	}
}
