package crashtest

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// importLives gives two lives with imports. The second goes on with the import that the
// first has left open, and puts all away that is complete.
func importLives(t *testing.T) []recordedLife {
	rng, _ := newRand(t)
	until := func(p *process) {
		p.mustAwait("all imports", func() bool { return p.made })
	}
	first := importJob("", rng.Uint64(), false)
	second := importJob("", rng.Uint64(), true)
	second.Base = lifeBase(1)
	left := first.Imports[len(first.Imports)-1]
	left.Fate = fateDeliver
	second.Imports = append([]importPlan{left}, importPlans(second.Base, left.Sets)...)
	return []recordedLife{{job: first, until: until}, {job: second, until: until}}
}

// importCalls are the lines of a worker that say that an import begins to change, and
// that it is drained, in the order in which they are tried.
const importCalls = "kcomikcon"

// importCall gives where in the log a call of an import, drawn from those of a kind,
// begins and is acknowledged; half of the time only the moment of its acknowledgement.
func (rec *recording) importCall(t *testing.T, rng *rand.Rand, kind byte) (from, to int) {
	t.Helper()
	log := rec.r.log
	is := func(c byte) func(event) bool {
		return func(e event) bool {
			return e.kind == eventLine && e.line[0] == c && (len(e.line) == 1 || e.line[1] == ' ')
		}
	}
	var all []int
	for i := range log {
		if is(kind)(log[i]) {
			all = append(all, i)
		}
	}
	if len(all) == 0 {
		t.Fatalf("no line %c was recorded", kind)
	}
	at := all[rng.IntN(len(all))]
	if kind == 'n' {
		const before = 60 // what it takes to put an import away
		return max(rec.begin+1, at-before), at + 2
	}
	n := slices.IndexFunc(log[at:], is(kind-'a'+'A'))
	if n < 0 {
		n = 0 // the kill came first
	}
	if n > 0 && rng.IntN(2) == 0 {
		return at + n + 1, at + n + 2
	}
	return at + 1, at + n + 2
}

// Promise 1 for imports, against power loss with a disk that has a cache: whatever it
// keeps of the writes behind its last flush, the hits of an import are all there or,
// cancelled, none, the lines that are known are those of the hits, and what was complete
// stays so. Given once more, every line ends as one hit.
func TestRecordedDiskKeepsImports(t *testing.T) {
	for _, tt := range []struct {
		f filesystem
		n moments
	}{
		{ext4, moments{imports: rounds(7, 120), opening: rounds(1, 40), other: rounds(0, 40)}},
		{xfs, moments{imports: 60, other: 20}},
	} {
		t.Run(tt.f.kind, func(t *testing.T) {
			if tt.f.kind != ext4.kind && !*long {
				t.Skip("with -long only")
			}
			t.Parallel()
			needRoot(t, tt.f.mkfs[0], "losetup")
			dir := scratch(t)
			rec := recordLives(t, tt.f, dir, importLives(t), false)
			rec.try(t, tt.f, dir, rec.states(t, tt.n), reportState(t))
		})
	}
}
