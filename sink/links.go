package sink

// Links say which hits of a site conflict: marks that a hit has in common are
// joined, in a union-find structure with expiry.
//
// A hit conflicts with another if Matomo could find the other's visit, or one that
// both belong to. What a visit is found by is the id of its last hit and the address
// (as part of config_id) of one that had the id too, so the link that matters is
// that of an id with what stood in one hit with it. Matomo looks for visits within
// max(visit_standard_length, window_look_back_for_visitor) of a hit's time, half an
// hour, and a visit may be found by two hits on either side of its last action: two
// hits that are an hour apart have no visit in common unless another hit of it lies
// between them.
//
// So an id keeps its links as long as it is seen at least once in linkLife, an hour
// and some minutes of the stream's time: a visit lives on when its hits show only
// the id or only the address. What pending hits are marked with is kept for as long
// as they are pending, as is what could lead to them: marks that were seen within
// linkLife before the oldest of them. A lane is never divided while it has hits.
//
// The stream's time is the arrival of the newest hit. A hit is late when its own
// time is further than lateAfter from that, because it brought a time (cdt, cdo) or
// was requeued. The rule above says nothing of late hits among themselves: a visit
// of last week may be common to two of them though what links them was seen and
// forgotten long ago. So all pending late hits of a site are in one lane, by a mark
// of their own. That closes the gap: of two hits that have a visit in common at least
// one is not late, and then the other, whatever its own time, is either pending
// together with it, and the marks that lead to it are kept for that reason, or it is
// settled, and nothing is left to be put in order.
//
// What is not covered: a visitor without any id whose hits keep a visit of an id
// alive that is not seen for more than linkLife.
//
// Time is Unix seconds. A links belongs to the goroutine of Run.
type links struct {
	index map[uint64]uint32 // by mark
	nodes []node
	edges []edge
	built int64 // when it was last rebuilt
}

const (
	linkLife  = 70 * 60
	lateAfter = 60
	// rebuildEvery is how often links are freed of what has expired. What a hit adds
	// is copied by the few rebuilds of its life, so that its cost stays constant.
	rebuildEvery = linkLife / 4
	// visitLife bounds how long a visit goes on: a day's end ends it.
	visitLife = 24*3600 + linkLife
)

type node struct {
	parent  uint32
	pending uint32 // hits
	seen    uint32 // when last in a hit; 0 for a mark that is kept for pending hits alone
	edges   uint32 // the first, + 1
}

// An edge leads from an id to a mark that was seen with it.
type edge struct {
	to   uint32
	seen uint32
	next uint32 // + 1
}

func (f *links) reset(now int64) {
	*f = links{index: map[uint64]uint32{}, built: now}
}

func (f *links) find(i uint32) uint32 {
	for f.nodes[i].parent != i {
		f.nodes[i].parent = f.nodes[f.nodes[i].parent].parent
		i = f.nodes[i].parent
	}
	return i
}

// add makes a node of a mark, or finds it.
func (f *links) add(m uint64) uint32 {
	i, ok := f.index[m]
	if !ok {
		i = uint32(len(f.nodes))
		f.nodes = append(f.nodes, node{parent: i})
		f.index[m] = i
	}
	return i
}

// join enters a pending hit and joins its marks; joined is told of every two roots
// that become one. It gives the root of all.
func (f *links) join(m *visitorMarks, now int64, joined func(root, gone uint32)) uint32 {
	var root uint32
	var room [8]uint32
	at := room[:0]
	lasting := int(m.ids + m.addresses)
	for i, one := range m.all {
		n := f.add(one)
		at = append(at, n)
		f.nodes[n].pending++
		if i < lasting {
			f.nodes[n].seen = uint32(now)
		}
		r := f.find(n)
		switch {
		case i == 0:
			root = r
		case r != root:
			f.nodes[r].parent = root
			joined(root, r)
		}
	}
	for i := range int(m.ids) {
		for j := range lasting {
			if i != j {
				f.link(at[i], at[j], now)
			}
		}
	}
	return root
}

// edgeSearch bounds how many edges of an id are looked through for one that is
// there already; a double one is harmless and does not outlive the next rebuild.
const edgeSearch = 8

func (f *links) link(from, to uint32, now int64) {
	e := f.nodes[from].edges
	for range edgeSearch {
		if e == 0 {
			break
		}
		if f.edges[e-1].to == to {
			f.edges[e-1].seen = uint32(now)
			return
		}
		e = f.edges[e-1].next
	}
	f.edges = append(f.edges, edge{to: to, seen: uint32(now), next: f.nodes[from].edges})
	f.nodes[from].edges = uint32(len(f.edges))
}

// settled takes note that a hit is not pending any more.
func (f *links) settled(m *visitorMarks) {
	for _, one := range m.all {
		f.nodes[f.index[one]].pending--
	}
}

// rebuild drops what has expired. since has the time of the oldest pending hit of
// every root that has a lane. moved is told the new root of each of them.
func (f *links) rebuild(now int64, since map[uint32]int64, moved func(root, node uint32)) {
	const gone = ^uint32(0)
	old := *f
	to := make([]uint32, len(old.nodes))
	alive := 0
	for i := range old.nodes {
		to[i] = gone
		n := &old.nodes[i]
		keep := n.pending > 0 || n.seen != 0 && int64(n.seen) >= now-linkLife
		if !keep && n.seen != 0 {
			if oldest, ok := since[old.find(uint32(i))]; ok {
				keep = int64(n.seen) >= oldest-linkLife
			}
		}
		if keep {
			to[i] = uint32(alive)
			alive++
		}
	}
	// What was seen with an id that is kept is kept for it.
	direct := alive
	for i := range old.nodes {
		if to[i] >= uint32(direct) { // gone, or kept for another's sake
			continue
		}
		for e := old.nodes[i].edges; e != 0; e = old.edges[e-1].next {
			if x := &old.edges[e-1]; to[x.to] == gone && int64(x.seen) >= now-visitLife {
				to[x.to] = uint32(alive)
				alive++
			}
		}
	}
	f.nodes = make([]node, alive)
	f.edges = nil
	f.index = make(map[uint64]uint32, alive)
	f.built = now
	for m, i := range old.index {
		if to[i] != gone {
			f.index[m] = to[i]
		}
	}
	for i, n := range old.nodes {
		if to[i] != gone {
			f.nodes[to[i]] = node{parent: to[i], pending: n.pending, seen: n.seen}
		}
	}
	lanes := map[uint32]uint32{} // by old root, a new node
	for i := range old.nodes {
		if to[i] == gone {
			continue
		}
		for e := old.nodes[i].edges; e != 0; e = old.edges[e-1].next {
			if x := &old.edges[e-1]; to[x.to] != gone && int64(x.seen) >= now-visitLife {
				f.link(to[i], to[x.to], int64(x.seen))
				f.unite(to[i], to[x.to])
			}
		}
		root := old.find(uint32(i))
		if _, ok := since[root]; !ok {
			continue
		}
		if first, ok := lanes[root]; ok {
			f.unite(first, to[i])
		} else {
			lanes[root] = to[i]
		}
	}
	for root, n := range lanes {
		moved(root, f.find(n))
	}
}

func (f *links) unite(a, b uint32) {
	if a, b = f.find(a), f.find(b); a != b {
		f.nodes[b].parent = a
	}
}

// unitePending joins all marks of pending hits and gives their root; false when
// there are none.
func (f *links) unitePending() (root uint32, any bool) {
	for i := range f.nodes {
		switch {
		case f.nodes[i].pending == 0:
		case !any:
			root, any = uint32(i), true
		default:
			f.unite(root, uint32(i))
		}
	}
	if any {
		root = f.find(root)
	}
	return root, any
}
