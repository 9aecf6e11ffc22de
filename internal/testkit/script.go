package testkit

// script says which request gets which answer. It is guarded by the Matomo's mutex.
type script struct {
	choose func(*Exchange) *Answer
	next   []Answer
	probes []Answer
	always *Answer
	poison []poisonRule
}

type poisonRule struct {
	is   func(*Hit) bool
	kind poison
}

// Next answers the next deliveries, one each, in the order given; calls add up. A
// delivery is a request with at least one hit to record or refuse, so canaries
// and requests without parameters leave the list alone. When the list is empty,
// Always decides again.
func (m *Matomo) Next(answers ...Answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.script.next = append(m.script.next, answers...)
}

// NextProbe is Next for the requests that Next leaves alone.
func (m *Matomo) NextProbe(answers ...Answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.script.probes = append(m.script.probes, answers...)
}

// Always answers every request for which nothing else is scripted, probes too.
// Always(Honest()) ends that.
func (m *Matomo) Always(a Answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.script.always = &a
}

// Choose asks choose about every request before anything else; nil leaves the
// request to Next and Always. It is called by several goroutines at once, with no
// lock held. Choose(nil) ends that.
func (m *Matomo) Choose(choose func(*Exchange) *Answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.script.choose = choose
}

// Poison makes every request that carries a hit for which is says true fail as
// Matomo does at an exception: 500 with JSON, "tracked" says how many hits came
// before it, and all of them are rolled back. It works on honest requests only,
// and only on hits that would be recorded. Calls add up; see [Matomo.Cure].
func (m *Matomo) Poison(is func(*Hit) bool) { m.addPoison(is, failing) }

// PoisonFatal is Poison for a hit that kills PHP: 500 with an empty body.
func (m *Matomo) PoisonFatal(is func(*Hit) bool) { m.addPoison(is, fatal) }

// PoisonWAF lets a firewall in front of Matomo refuse requests with such a hit:
// 403, and Matomo never sees them.
func (m *Matomo) PoisonWAF(is func(*Hit) bool) { m.addPoison(is, walled) }

// Cure ends all poison that was added. What is poison by nature stays: ca=1,
// uadata that is no text, places that do not fit their column.
func (m *Matomo) Cure() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.script.poison = nil
}

// Pending says how many answers given to Next are not used up.
func (m *Matomo) Pending() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.script.next)
}

func (m *Matomo) addPoison(is func(*Hit) bool, kind poison) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.script.poison = append(m.script.poison, poisonRule{is, kind})
}

// poisonOf finds what the tests made of a hit.
func (m *Matomo) poisonOf(h *Hit) poison {
	m.mu.Lock()
	rules := m.script.poison
	m.mu.Unlock()
	for _, r := range rules {
		if r.is(h) {
			return r.kind
		}
	}
	return harmless
}

// choose picks the answer for one request.
func (m *Matomo) choose(x *Exchange) Answer {
	m.mu.Lock()
	choose := m.script.choose
	m.mu.Unlock()
	if choose != nil {
		if a := choose(x); a != nil {
			return *a
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	list := &m.script.next
	if x.Probe {
		list = &m.script.probes
	}
	if len(*list) > 0 {
		a := (*list)[0]
		*list = (*list)[1:]
		return a
	}
	if m.script.always != nil {
		return *m.script.always
	}
	return Honest()
}
