package proxy

import "sync"

// maxHeld bounds what a connection holds back, in bytes: one piece of an answer with
// its head, and what TLS adds.
const maxHeld = copyBuffer + 16<<10

// holdBuffers are used again.
var holdBuffers = sync.Pool{New: func() any { return new([maxHeld]byte) }}

// hold has the connection gather what is written to it, until release. net/http and
// TLS write a piece of an answer in several parts, of which each would cost a call to
// the system, here and at the client. A nil connection gathers nothing. Called by one
// goroutine at a time, while others may write.
func (c *countedConn) hold() {
	if c == nil {
		return
	}
	c.out.Lock()
	defer c.out.Unlock()
	c.held = holdBuffers.Get().(*[maxHeld]byte)
}

// release writes what was gathered since hold, within the deadline for writing. After
// an error nothing more can be written, since who wrote the parts was told that they
// went out.
func (c *countedConn) release() error {
	if c == nil {
		return nil
	}
	c.out.Lock()
	defer c.out.Unlock()
	err := c.writeHeld()
	holdBuffers.Put(c.held)
	c.held = nil
	return err
}

// writeHeld writes what was gathered. The caller holds out.
func (c *countedConn) writeHeld() error {
	n := c.gathered
	if c.gathered = 0; n > 0 && c.broken == nil {
		_, c.broken = c.TCPConn.Write(c.held[:n])
	}
	return c.broken
}

// Write writes, or gathers what hold holds back, and may be called from any goroutine.
func (c *countedConn) Write(b []byte) (int, error) {
	c.out.Lock()
	defer c.out.Unlock()
	if c.held != nil && c.gathered+len(b) <= maxHeld && c.broken == nil {
		c.gathered += copy(c.held[c.gathered:], b)
		return len(b), nil
	}
	if err := c.writeHeld(); err != nil {
		return 0, err
	}
	return c.TCPConn.Write(b)
}
