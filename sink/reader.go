package sink

import (
	"context"
	"fmt"
	"time"
)

const (
	// lagInterval is the least time between two looks at replication: the server may
	// be far away, and archiving does not wait for seconds.
	lagInterval = 30 * time.Second
	// longLag is what is worth a remark.
	longLag = time.Minute
)

// replica is probe 10: how far the server that Matomo's archiving reads from is
// behind. It never holds the drain: Matomo's tracker writes elsewhere, and whoever
// says that a day is complete has to wait for it.
func (p *prober) replica(ctx context.Context) Probe {
	if now := time.Now(); p.lagAt.IsZero() || now.Sub(p.lagAt) >= lagInterval {
		p.lagAt = now
		p.lagged = p.askReplica(ctx)
	}
	return p.lagged
}

func (p *prober) askReplica(ctx context.Context) Probe {
	found := Probe{Name: "replica", State: ProbeOK}
	from := p.db
	if p.reader != nil {
		from = p.reader
	}
	p.lag = nil
	rows, err := from.rows(ctx, "SHOW REPLICA STATUS")
	if errorNumber(err) == 1064 { // before MySQL 8.0.22 and MariaDB 10.5.1
		rows, err = from.rows(ctx, "SHOW SLAVE STATUS")
	}
	switch {
	case errorNumber(err) == 1227:
		return Probe{Name: found.Name, State: ProbeUnknown, Detail: "no right to ask (REPLICATION CLIENT, on MariaDB SLAVE MONITOR)"}
	case err != nil:
		// The reader's failure must not look like that of Matomo's own server.
		return Probe{Name: found.Name, State: ProbeUnknown, Detail: mysqlText(err)}
	case len(rows) == 0 && p.reader != nil:
		found.State, found.Detail = ProbeUnknown, "the reader is no replica"
		return found
	case len(rows) == 0:
		return found
	}
	most := 0
	for _, row := range rows { // one for each source
		behind, ok := row["seconds_behind_source"]
		if !ok {
			behind, ok = row["seconds_behind_master"]
		}
		if !ok {
			found.State, found.Detail = ProbeSlow, "replication does not run"
			return found
		}
		most = max(most, number(behind))
	}
	lag := time.Duration(most) * time.Second
	p.lag = &lag
	if lag > longLag {
		found.State, found.Detail = ProbeSlow, fmt.Sprintf("the replica is %d s behind", most)
	}
	return found
}
