package testkit

import (
	"bufio"
	"crypto/sha1" // what RFC 6455 wants
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"time"
)

// echo upgrades to a WebSocket and sends every short message back, until the client
// closes or 20 s have passed.
func echo(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if key == "" {
		http.Error(w, "a WebSocket was expected", http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // without one the test's own deadline remains
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	const closing = 8
	for rw.Flush() == nil {
		op, payload, err := readFrame(rw.Reader)
		if err != nil {
			return
		}
		rw.Write(append([]byte{0x80 | op, byte(len(payload))}, payload...)) // Flush tells the error
		if op == closing {
			rw.Flush() // the client waits for this, or is gone
			return
		}
	}
}

// readFrame reads one masked frame of up to 125 bytes.
func readFrame(r *bufio.Reader) (op byte, payload []byte, err error) {
	var head [6]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(head[1] & 0x7f)
	if head[1]&0x80 == 0 || n > 125 {
		return 0, nil, fmt.Errorf("frame of %d bytes is long or not masked", n)
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	for i := range payload {
		payload[i] ^= head[2+i%4]
	}
	return head[0] & 0x0f, payload, nil
}
