package sink

import "time"

// maxMarks bounds the links of all sites together. The largest site goes on as one
// lane when there are more. docs/operations.md has what they take.
const maxMarks = 1 << 19

// A siteLanes is the lanes of one site.
type siteLanes struct {
	links links
	lanes map[uint32]*lane // by the root of its marks
	epoch uint32           // of links; hits of another one are unknown to them

	// whole, if not nil, is the one lane that the site has until the stream reaches a
	// time: since a hit's marks are not known, or not with the present mask, or since
	// there are too many. It may then take until all hits of before are settled.
	whole    *lane
	until    int64
	resting  int64 // links are not kept before that time
	pending  int   // hits
	unlinked int   // of them, unknown to links
	blind    int   // of them, with unknown marks
	seen     int64 // when the last hit was added
}

// enter moves the stream's time on and finds the site of a hit.
func (l *lanes) enter(it *item) *siteLanes {
	at := it.ReceivedAt / int64(time.Second)
	l.stream = max(l.stream, at)
	it.leased = l.stream
	if off := it.At - l.stream; off > lateAfter || off < -lateAfter {
		it.late = true
	}
	if l.stream-l.swept >= rebuildEvery {
		l.sweep()
	}
	s := l.bySite[it.Site]
	if s == nil {
		s = &siteLanes{lanes: map[uint32]*lane{}}
		s.links.reset(l.stream)
		l.bySite[it.Site] = s
	}
	s.seen = l.stream
	return s
}

// complete adds the marks that follow from a hit's place in the stream.
func (it *item) complete() {
	if it.late {
		it.marks.all = append(it.marks.all, lateMark)
	}
	if len(it.marks.all) == 0 {
		it.marks.all = append(it.marks.all, hashMark(markOwn, it.ID.String()))
	}
}

// laneFor finds or makes the lane of a hit.
func (l *lanes) laneFor(s *siteLanes, it *item, now time.Time, horizon int64) *lane {
	it.complete()
	if it.marks.unknown || it.mask != l.mask {
		l.gather(s, it.Site, l.stream+linkLife, now, horizon)
	}
	if it.marks.unknown {
		s.blind++
	}
	before := len(s.links.nodes)
	rebuilt := l.stream-s.links.built >= rebuildEvery
	if rebuilt {
		l.rebuild(s)
	}
	if s.whole != nil && (rebuilt || s.whole.pending == 0) {
		l.scatter(s)
	}
	var ln *lane
	if s.resting > l.stream {
		s.unlinked++
		it.epoch = s.epoch - 1
	} else {
		it.epoch = s.epoch
		root := s.links.join(&it.marks, l.stream, func(root, gone uint32) {
			if other := s.lanes[gone]; other != nil {
				delete(s.lanes, gone)
				s.lanes[root] = l.merge(s.lanes[root], other, now, horizon)
			}
		})
		if s.whole == nil {
			if ln = s.lanes[root]; ln == nil {
				ln = &lane{site: s, number: it.Site, node: root}
				s.lanes[root] = ln
			}
		}
	}
	if s.whole != nil {
		ln = s.whole
	}
	l.marks += len(s.links.nodes) - before
	if l.marks > l.marksMost {
		if l.overflow(now, horizon) == s && it.epoch != s.epoch {
			s.unlinked++ // this hit, which is not counted yet
		}
		ln = ln.top()
	}
	return ln
}

// rebuild frees a site's links of what has expired.
func (l *lanes) rebuild(s *siteLanes) {
	since := make(map[uint32]int64, len(s.lanes))
	for root, ln := range s.lanes {
		since[root] = ln.oldest()
	}
	moved := make(map[uint32]*lane, len(s.lanes))
	s.links.rebuild(l.stream, since, func(root, node uint32) {
		ln := s.lanes[root]
		ln.node = node
		moved[node] = ln
	})
	s.lanes = moved
}

// gather makes one lane of a site, until the stream reaches a time.
func (l *lanes) gather(s *siteLanes, number, until int64, now time.Time, horizon int64) {
	s.until = max(s.until, until)
	if s.whole != nil {
		return
	}
	whole := &lane{site: s, number: number}
	for _, ln := range s.lanes {
		whole = l.merge(whole, ln, now, horizon)
	}
	s.whole = whole
	clear(s.lanes)
}

// scatter ends that a site is one lane, if it may: what is pending stays together.
// A hit from before that time may meet one that is yet to come in a visit to which
// only what is not known leads.
func (l *lanes) scatter(s *siteLanes) {
	if l.stream < s.until || s.unlinked > 0 || s.blind > 0 || s.resting > l.stream || s.whole.oldest() < s.until {
		return
	}
	if root, any := s.links.unitePending(); any && s.whole.pending > 0 {
		s.whole.node = root
		s.lanes[root] = s.whole
	}
	s.whole = nil
}

// remask takes note that Matomo masks addresses in another way: what is linked was
// linked by other marks.
func (l *lanes) remask(mask uint8, now time.Time, horizon int64) {
	if mask == l.mask {
		return
	}
	l.mask = mask
	for number, s := range l.bySite {
		l.gather(s, number, l.stream+linkLife, now, horizon)
	}
}

// overflow makes the site with the most marks one lane and forgets its links. They
// are gathered anew after their life, and count again after a further one.
func (l *lanes) overflow(now time.Time, horizon int64) *siteLanes {
	var most *siteLanes
	number := int64(0)
	for n, s := range l.bySite {
		if most == nil || len(s.links.nodes) > len(most.links.nodes) {
			most, number = s, n
		}
	}
	l.gather(most, number, l.stream+2*linkLife, now, horizon)
	l.marks -= len(most.links.nodes)
	most.links.reset(l.stream)
	most.epoch++
	most.unlinked = most.pending
	most.resting = l.stream + linkLife
	return most
}

// sweep forgets sites that have nothing pending and nothing to remember.
func (l *lanes) sweep() {
	l.swept = l.stream
	for number, s := range l.bySite {
		if s.pending == 0 && l.stream-s.seen > linkLife && l.stream >= s.until {
			l.marks -= len(s.links.nodes)
			delete(l.bySite, number)
		}
	}
}
