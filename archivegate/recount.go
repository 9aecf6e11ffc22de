package archivegate

import (
	"context"
	"errors"
)

// A Recount is what reading all pending hits has shown of the counters.
type Recount struct {
	V    int   `json:"v"`
	OK   bool  `json:"ok"` // the counters agreed
	Hits int64 `json:"hits"`
	// Slots are those that did not agree, at most 100; Differing is how many there are.
	Slots     []RecountSlot `json:"slots"`
	Differing int           `json:"differing"`
	// Unreadable is hits that are counted and that the disk does not give any more: of
	// damaged or missing blocks. They stay counted as pending, and the days that they may
	// belong to are not complete.
	Unreadable int64 `json:"unreadable"`
}

// A RecountSlot is a site and quarter of an hour of which counter and hits differ.
type RecountSlot struct {
	Site    int64 `json:"site"`
	Quarter int64 `json:"quarter"` // Unix seconds / 900
	Counted int64 `json:"counted"` // pending by the counters
	Found   int64 `json:"found"`   // pending hits that were read
}

// ErrBusy is what [Gate.Rebuild] returns while another one goes on.
var ErrBusy = errors.New("a recount is under way already")

// Rebuild reads every pending hit, compares the counters with what it finds, and puts
// them right where no hit was lost.
func (g *Gate) Rebuild(ctx context.Context) (Recount, error) {
	if !g.rebuilding.TryLock() {
		return Recount{}, ErrBusy
	}
	defer g.rebuilding.Unlock()
	r, err := g.parts.Ledger.Recount(ctx)
	if err != nil {
		return Recount{}, err
	}
	if r.OK {
		g.log.Info("the counters of the gate agree with the hits that wait", "hits", r.Hits)
	} else {
		g.log.Error("the counters of the gate did not agree with the hits that wait", "slots", r.Differing, "unreadable", r.Unreadable)
	}
	return r, nil
}
