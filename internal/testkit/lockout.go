package testkit

import "time"

// Matomo's defaults (plugins/Login/SystemSettings.php): more failures than these
// within the window lock an address out.
const (
	lockFailures = 20
	lockWindow   = time.Hour
)

// Failures gives how many wrong tokens of the last hour are booked on an address.
// As with Matomo a request books one at most, whatever it holds, and none while its
// address is locked out.
func (m *Matomo) Failures(address string) int {
	st := m.snapshot()
	return m.failuresSince(address, m.now(&st).Add(-lockWindow))
}

func (m *Matomo) failuresSince(address string, start time.Time) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, at := range m.logins[address] {
		if at.After(start) {
			n++
		}
	}
	return n
}

func (m *Matomo) lockedOut(address string, now time.Time) bool {
	return m.failuresSince(address, now.Add(-lockWindow)) > lockFailures
}

func (m *Matomo) bookFailure(address string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.logins[address] = append(m.logins[address], now)
}
