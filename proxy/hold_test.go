package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// connected gives both ends of a connection.
func connected(t *testing.T) (*countedConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &countedConn{TCPConn: conn.(*net.TCPConn)}, client.(*net.TCPConn)
}

// TestHeldWrites: parts go out as one on release, in order with what does not fit.
func TestHeldWrites(t *testing.T) {
	c, client := connected(t)
	write := func(b []byte) {
		t.Helper()
		if n, err := c.Write(b); n != len(b) || err != nil {
			t.Fatalf("write %d bytes: %d, %v", len(b), n, err)
		}
	}
	read := func(want []byte) {
		t.Helper()
		client.SetReadDeadline(time.Now().Add(10 * time.Second))
		got := make([]byte, len(want))
		if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes that are wrong, or %v", len(got), err)
		}
	}
	silent := func() {
		t.Helper()
		client.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %d bytes, %v", n, err)
		}
	}
	for range 2 {
		write([]byte("before"))
		read([]byte("before"))
		c.hold()
		write([]byte("one"))
		write([]byte("two"))
		silent()
		if err := c.release(); err != nil {
			t.Fatal(err)
		}
		read([]byte("onetwo"))
	}

	c.hold()
	long := bytes.Repeat([]byte("long "), maxHeld/5)
	write([]byte("first"))
	write(long) // with the first it does not fit
	read(append([]byte("first"), long...))
	write([]byte("last"))
	silent()
	if err := c.release(); err != nil {
		t.Fatal(err)
	}
	read([]byte("last"))
}

// TestHeldWritesThatFail: a client that takes nothing is noticed on release, and no
// later write leaves a gap.
func TestHeldWritesThatFail(t *testing.T) {
	c, client := connected(t)
	part := make([]byte, maxHeld/2)
	held := func() error {
		c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		c.hold()
		for range 2 {
			if _, err := c.Write(part); err != nil {
				return errors.Join(err, c.release())
			}
		}
		return c.release()
	}
	var err error
	for range 1000 { // until the kernel's buffers are full
		if err = held(); err != nil {
			break
		}
	}
	if !isTimeout(err) {
		t.Fatalf("got %v, want a timeout", err)
	}
	go io.Copy(io.Discard, client) // ends with the connection
	c.SetWriteDeadline(time.Time{})
	if n, later := c.Write([]byte("later")); n != 0 || !isTimeout(later) {
		t.Errorf("a write after the gap: %d, %v", n, later)
	}
	if err := held(); !isTimeout(err) {
		t.Errorf("held writes after the gap: %v", err)
	}
}
