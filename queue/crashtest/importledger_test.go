package crashtest

import (
	"fmt"
	"math"
	"strings"

	"sluice/queue"
)

// An importRecord is what a worker was promised of an import. Each step has begun before
// it is done.
type importRecord struct {
	begun                 bool
	completing, complete  bool
	cancelling, cancelled bool
	forgetting, forgotten bool
	leased, drained       bool
	appending             []uint64 // the sets of the append under way
}

// A foundImport is what a census says of an import.
type foundImport struct {
	state                              queue.ImportState
	forgotten                          bool
	accepted, delivered, invalid, dead int64
}

// readImport takes one line about an import; see ledger.read.
func (l *ledger) readImport(f []string, number uint64, late bool) {
	if f[0] == "i" {
		l.imports[number] = &importRecord{}
		return
	}
	i := l.imports[number]
	if i == nil || late && strings.Contains("I M K C O n", f[0]) {
		return
	}
	switch f[0] {
	case "I":
		i.begun = true
	case "m":
		i.appending = nil
		for _, n := range numbers(f[2]) {
			if old := l.sets[n.hit]; old != nil && !old.refused {
				l.fault("set %d is stored, and its line is not known", n.hit)
			}
			l.begin(n.hit, number, 1+int(n.hit%3))
			i.appending = append(i.appending, n.hit)
		}
	case "M":
		for _, set := range i.appending {
			l.ack(set)
		}
		if l.failed {
			l.fault("import %d took hits although the queue had failed", number)
		}
	case "k":
		i.completing = true
	case "K":
		i.complete = true
	case "c":
		i.cancelling = true
	case "C":
		i.cancelled = true
	case "o":
		i.forgetting = true
	case "O":
		i.forgotten = true
	case "g":
		if !i.completing {
			l.fault("hits of import %d were leased before it was completed", number)
		}
		i.leased = i.leased || !late
	case "n":
		i.drained = true
		l.durable[number] = math.MaxUint64
	}
}

// judgeImports compares the imports that are there with what was promised of them. Of
// those that are not, the hits are forgotten.
func (l *ledger) judgeImports(c *findings) (faults []string) {
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for number := range c.imports {
		if l.imports[number] == nil {
			add("import %d is there and was never begun, or is cancelled", number)
		}
	}
	for number, i := range l.imports {
		found, there := c.imports[number]
		if !there {
			faults = append(faults, l.judgeGone(number, i, c)...)
			continue
		}
		delivering := found.state != queue.ImportOpen
		switch {
		case i.cancelled:
			add("import %d was cancelled and is there", number)
		case i.complete && !delivering:
			add("import %d was complete and is %s", number, found.state)
		case i.leased && !delivering:
			add("hits of import %d were leased, and it is %s again", number, found.state)
		case !i.completing && delivering:
			add("import %d was not completed and is %s", number, found.state)
		case i.drained && found.state != queue.ImportDrained:
			add("import %d was drained and is %s", number, found.state)
		case i.forgotten && !found.forgotten:
			add("import %d was forgotten and is remembered", number)
		case !i.forgetting && found.forgotten:
			add("import %d is forgotten, and nobody asked for it", number)
		}
		*i = importRecord{
			begun: true, completing: delivering, complete: delivering, drained: found.state == queue.ImportDrained,
			forgetting: found.forgotten, forgotten: found.forgotten,
		}
	}
	return faults
}

// judgeGone judges an import that is not there: it was cancelled, or its beginning was
// cut.
func (l *ledger) judgeGone(number uint64, i *importRecord, c *findings) (faults []string) {
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if i.begun && !i.cancelling {
		add("LOST: import %d is not there", number)
	}
	delete(l.imports, number)
	for set, s := range l.sets {
		if s.stream != number {
			continue
		}
		if c.known[set] {
			add("the line of set %d is known, and import %d is not there", set, number)
		}
		for n := range s.hits {
			h := set<<hitBits | uint64(n)
			if _, pending := c.pending[h]; pending {
				add("hit %d has come back, import %d is not there", h, number)
			}
			delete(l.hits, h)
		}
		delete(l.sets, set)
	}
	return faults
}

// neverStored reports whether a line that is remembered if it was taken says that a set
// was not.
func (l *ledger) neverStored(c *findings, set uint64) bool {
	number := streamOf(set)
	return c.asked[number] && !c.imports[number].forgotten && !c.known[set]
}

// judgeLines compares the lines that are known, and the counters of imports, with the
// hits that are stored. The ledger has learnt of these.
func (l *ledger) judgeLines(c *findings) (faults []string) {
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for set := range c.known {
		if l.sets[set] == nil {
			add("the line of set %d is known and was never given", set)
		}
	}
	sums := map[uint64]foundImport{}
	for set, s := range l.sets {
		i, there := c.imports[s.stream]
		if !there {
			continue
		}
		stored := false
		sum := sums[s.stream]
		for n := range s.hits {
			h := l.hits[set<<hitBits|uint64(n)]
			stored = stored || h.known || h.gone
			if h.known || h.gone {
				sum.accepted++
			}
			switch {
			case !h.gone:
			case h.outcome == 'v':
				sum.delivered++
			case h.outcome == 'i':
				sum.invalid++
			case h.outcome == 'd':
				sum.dead++
			}
		}
		sums[s.stream] = sum
		if want := stored && !i.forgotten; c.asked[s.stream] && c.known[set] != want {
			add("the line of set %d is known: %t, want %t; its hits are stored: %t", set, c.known[set], want, stored)
		}
	}
	for number, i := range c.imports {
		want := sums[number]
		want.state, want.forgotten = i.state, i.forgotten
		if i != want {
			add("import %d counts %+v, want %+v", number, i, want)
		}
	}
	return faults
}
