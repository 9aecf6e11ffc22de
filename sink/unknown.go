package sink

import (
	"context"
	"fmt"
	"time"
)

// A doubt is hits of one batch that Matomo may or may not have. They are not sent
// and nothing of their sites behind them is, until the doubt is resolved.
type doubt struct {
	batch uint64 // the journal's, of this process or of an earlier one
	items []*item
	// due is when no request with these hits can be running any more.
	due time.Time
	// inherited: the batch was in flight when an earlier process ended, so its
	// entry in the journal ends by itself, with the last of its hits.
	inherited bool
}

func newDoubt(batch uint64, items []*item, due time.Time) *doubt {
	for _, it := range items {
		it.doubt = true
	}
	return &doubt{batch: batch, items: items, due: due}
}

// A resolution says what became of a doubt.
type resolution struct {
	doubt *doubt
	// cleared are hits that are in doubt no more: settled, or to be sent again.
	cleared []*item
	// again is when to ask again about those that are not cleared; 0 leaves them
	// undecided.
	again time.Duration
	err   error // the source failed: the process cannot go on
}

// resolve is the one place that decides about hits in doubt. It is called when
// they are due, and again later for those that it did not clear.
//
// This sink cannot ask Matomo's database, so the policy decides: resend sends the
// hits again and counts them, hold leaves them in doubt.
func (s *Sink) resolve(_ context.Context, d *doubt) resolution {
	if s.cfg.OnUnknown == Hold {
		return resolution{doubt: d}
	}
	s.ins.unknown.Add(len(d.items))
	s.log.Warn("hits of unknown outcome are sent again: Matomo may have them twice (sink.on-unknown)", "hits", len(d.items), "batch", d.batch)
	r := resolution{doubt: d, cleared: d.items}
	if !d.inherited {
		if err := s.src.Settle(d.batch, nil); err != nil {
			r.err = fmt.Errorf("end the journal of a batch: %w", err)
		}
	}
	return r
}
