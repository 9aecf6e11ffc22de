package admin

import (
	"net/http"
	"time"
)

// routeDrain serves what the drain commands ask.
func (s *Server) routeDrain(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/drain", s.reading(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, s.drainStatus())
	}))
	mux.HandleFunc("POST /api/v1/drain/pause", s.controlling(s.pause))
	mux.HandleFunc("POST /api/v1/drain/resume", s.controlling(s.resume))
}

func (s *Server) drainStatus() DrainStatus {
	status := s.parts.Drain.Status()
	status.V = shapeVersion
	return status
}

func (s *Server) pause(w http.ResponseWriter, r *http.Request) {
	var order Pause
	if !readOrder(w, r, &order) {
		return
	}
	if order.Who == "" || order.Why == "" {
		refuse(w, http.StatusBadRequest, "who and why are missing: a pause says whose it is", "")
		return
	}
	if order.Seconds <= 0 || order.Seconds > MaxPause.Seconds() {
		refuse(w, http.StatusBadRequest, "seconds: want more than 0 and at most 86400", "")
		return
	}
	until := s.now().Add(time.Duration(order.Seconds * float64(time.Second)))
	s.parts.Drain.Pause(order.Who, order.Why, until)
	answer(w, http.StatusOK, s.drainStatus())
}

func (s *Server) resume(w http.ResponseWriter, r *http.Request) {
	var order Resume
	if !readOrder(w, r, &order) {
		return
	}
	s.parts.Drain.Resume(order.Who)
	answer(w, http.StatusOK, s.drainStatus())
}
