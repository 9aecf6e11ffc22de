package sink

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	// upgradeQuiet is how long Matomo's versions must stand still after a change.
	upgradeQuiet = time.Minute
	// codeInterval is how often Matomo's code is asked for its version while hits
	// flow; codePatience how often when it does not answer. An API that refuses us may
	// count that as a failed login.
	codeInterval = time.Minute
	codePatience = 10 * time.Minute
	// codeTimeout bounds one question. It must not keep the probes from their work.
	codeTimeout = 5 * time.Second
)

// An upgrades remembers that an upgrade of Matomo was seen, until its end is. An
// upgrade is sticky: that the probes pass, or cannot be asked, does not end it.
// Methods may be called from any goroutine.
type upgrades struct {
	mu       sync.Mutex
	held     bool      // seen, and not over
	why      string    // what was seen last
	seenAt   time.Time // when it was there last; zero = never
	database string    // version in the database; "" = not known
	code     string    // version of the code as it was last told; "" = never
	told     bool      // code was told at the last question
	codeAt   time.Time // when code changed last; zero = never
	askedAt  time.Time
	accepted [2]string // database and code that an operator said fit together
}

// saw notes a sign of an upgrade.
func (u *upgrades) saw(why string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.held, u.why, u.seenAt = true, why, time.Now()
}

// holding gives the last sign of an upgrade that is not over.
func (u *upgrades) holding() (why string, held bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.why, u.held
}

// over notes that everything speaks for the upgrade's end.
func (u *upgrades) over() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.held {
		u.held, u.seenAt = false, time.Now()
	}
}

// accept ends an upgrade at an operator's word, who also says that the two versions
// fit together. It reports whether there was one.
func (u *upgrades) accept() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	was := u.held
	if was {
		u.accepted = [2]string{u.database, u.code}
		u.held, u.seenAt = false, time.Now()
	}
	return was
}

// within reports whether an upgrade was under way in the last d.
func (u *upgrades) within(d time.Duration, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.held || !u.seenAt.IsZero() && now.Sub(u.seenAt) < d
}

// due reports whether Matomo's code is to be asked for its version.
func (u *upgrades) due(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	every := codeInterval
	if !u.told {
		every = codePatience
	}
	return u.held || u.askedAt.IsZero() || now.Sub(u.askedAt) >= every
}

// answered notes what the code says; "" = it did not answer.
func (u *upgrades) answered(code string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.askedAt, u.told = now, code != ""
	if code == "" {
		return
	}
	if u.code != "" && u.code != code {
		u.codeAt = now
	}
	u.code = code
}

// judge says what holds the drain as to the versions; "" = nothing.
func (u *upgrades) judge(database string, now time.Time) (why string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.database = database
	switch {
	case u.accepted == [2]string{database, u.code}:
		return ""
	case database != "" && u.told && database != u.code:
		return fmt.Sprintf("Matomo's database has version %s and its code %s", database, u.code)
	case !u.codeAt.IsZero() && now.Sub(u.codeAt) < upgradeQuiet:
		return "Matomo's code has just changed to version " + u.code
	}
	return ""
}

// versions compares the versions of Matomo's database and of its code, and asks the
// code when that is due, or at once. It gives what holds the drain; "" = nothing.
func (s *Sink) versions(ctx context.Context, atOnce bool) string {
	now := time.Now()
	if (atOnce || s.upgrade.due(now)) && !s.probe.refusedLately() {
		version, status := s.codeVersion(ctx)
		if ctx.Err() != nil {
			return ""
		}
		s.upgrade.answered(version, now)
		if _, held := s.upgrade.holding(); held && status == http.StatusServiceUnavailable {
			return "Matomo's pages answer 503, as they do until its database is upgraded"
		}
	}
	database := ""
	if s.prober != nil {
		database = s.prober.version()
	}
	return s.upgrade.judge(database, now)
}

// codeVersion asks the Reporting API for the version of Matomo's code, "" when it
// does not say.
func (s *Sink) codeVersion(ctx context.Context) (version string, status int) {
	ctx, cancel := context.WithTimeout(ctx, codeTimeout)
	defer cancel()
	a := s.client.call(ctx, "API.getMatomoVersion", s.cfg.Token)
	s.probe.noteAPI(a.status)
	var got struct {
		Value string `json:"value"`
	}
	if a.err != nil || a.status != http.StatusOK || json.Unmarshal(a.body, &got) != nil {
		return "", a.status
	}
	return got.Value, a.status
}
