package admin

import (
	"context"
	"errors"
	"net/http"
)

// A Reloader reads the settings again. Who is named in the log. After a [ReloadError]
// the old ones are in force.
type Reloader interface {
	Reload(who string) (Reloaded, error)
}

// A ReloadError says what is wrong with the new settings.
type ReloadError struct {
	Why string
	Try string // a command
}

// Error is what is wrong.
func (e *ReloadError) Error() string { return e.Why }

// ReloadOrder is the body of POST /api/v1/reload.
type ReloadOrder struct {
	Who string `json:"who"`
}

// Reloaded is its answer.
type Reloaded struct {
	V       int      `json:"v"`
	Changed []string `json:"changed"` // settings that are in force now
	Restart []string `json:"restart"` // settings that differ and need a restart
}

// routeReload serves what the reload command asks, and the habit of Prometheus.
func (s *Server) routeReload(mux *http.ServeMux) {
	if s.parts.Reloader == nil {
		return
	}
	mux.HandleFunc("POST /api/v1/reload", s.controlling(func(w http.ResponseWriter, r *http.Request) {
		var order ReloadOrder
		if readOrder(w, r, &order) {
			s.reload(w, order.Who)
		}
	}))
	mux.HandleFunc("POST /-/reload", s.controlling(func(w http.ResponseWriter, _ *http.Request) {
		s.reload(w, "/-/reload")
	}))
}

func (s *Server) reload(w http.ResponseWriter, who string) {
	done, err := s.parts.Reloader.Reload(who)
	if err != nil {
		try := ""
		if e, ok := errors.AsType[*ReloadError](err); ok {
			try = e.Try
		}
		refuse(w, http.StatusUnprocessableEntity, err.Error(), try)
		return
	}
	done.V = shapeVersion
	answer(w, http.StatusOK, done)
}

// Reload has the running Sluice read its settings again. An answer of 422 is what is
// wrong with them.
func (c *Client) Reload(ctx context.Context, order ReloadOrder) (Reloaded, error) {
	var done Reloaded
	err := c.object(ctx, http.MethodPost, "/api/v1/reload", order, &done)
	return done, err
}
