package proxy

import (
	"net/http"
	"sync/atomic"
)

// A budget is an amount of memory that many goroutines share.
type budget struct {
	limit atomic.Int64
	used  atomic.Int64
}

// take reserves n bytes, or none and answers false.
func (b *budget) take(n int64) bool {
	if b.used.Add(n) <= b.limit.Load() {
		return true
	}
	b.used.Add(-n)
	return false
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// noMemory is the answer to a body for which there is no memory now.
func (s *Server) noMemory(get bool) answer {
	s.metrics.badInput("memory")
	a := fault(http.StatusServiceUnavailable, unavailable, get)
	a.close = true
	return a
}

// lostBody is the answer to a body that did not arrive whole.
func (s *Server) lostBody(err error, get bool) answer {
	a := fault(http.StatusBadRequest, badBody, get)
	if isTimeout(err) {
		s.metrics.badInput("slow_body")
		a = fault(http.StatusRequestTimeout, timedOut, get)
	} else {
		s.metrics.badInput("broken_body")
	}
	a.close = true
	return a
}
