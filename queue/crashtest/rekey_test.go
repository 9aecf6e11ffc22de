package crashtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Promise 1 against death at one system call of an opening that begins to encrypt:
// store.json is replaced and all dead letters move to another database. Whatever is
// left, the next openings find every letter and every hit.
func TestDeathWhileAKeyIsBegunLosesNothing(t *testing.T) {
	t.Parallel()
	needStrace(t)
	rng, _ := newRand(t)
	root := scratch(t)
	origin := filepath.Join(root, "origin")
	l := newLedger()
	j := smallJob(origin, rng, lifeBase(0))
	j.Sets = 150
	p := start(t, l, j, nil)
	p.mustAwait("work", func() bool { return p.acks >= int(j.Sets) && p.settles > 0 })
	p.tell("close")
	p.mustAwait("the end", func() bool { return p.closed })
	p.kill()
	check(t, l, job{Dir: origin, Reserve: 1}, "before")
	if l.outcomes['d'] == 0 {
		t.Skip("SKIPPED: no letter was buried, which hardly happens")
	}
	if err := os.RemoveAll(filepath.Join(origin, "BALLAST")); err != nil {
		t.Fatal(err)
	}
	var cases []injection
	for _, call := range []string{"openat", "ftruncate", "msync", "fsync", "renameat", "unlinkat", "mmap", "munmap", "write", "mkdirat"} {
		for range rounds(6, 60) {
			cases = append(cases, injection{call, "signal=SIGKILL", fmt.Sprint(1 + rng.IntN(30))})
		}
	}
	var mu sync.Mutex
	died, listed, halfway := 0, 0, 0
	inParallel(cases, func(i int, in injection) {
		dir := filepath.Join(root, fmt.Sprint(i))
		if err := os.CopyFS(dir, os.DirFS(origin)); err != nil {
			t.Error(err)
			return
		}
		census := job{Role: roleCensus, Dir: dir, Reserve: 1, Keys: []byte{1}}
		if err := command(census, in.wrap()...).Run(); err != nil {
			store, _ := os.ReadFile(filepath.Join(dir, "store.json"))
			letters, _ := os.ReadDir(filepath.Join(dir, "dead"))
			mu.Lock()
			died++
			if bytes.Contains(store, []byte("keys")) {
				listed++
			}
			if len(letters) > 1 {
				halfway++
			}
			mu.Unlock()
		}
		for _, when := range []string{"first", "second"} {
			check(t, l.clone(), census, fmt.Sprintf("%v, %s opening", in, when))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d cases, %d deaths, %d with the key listed, %d with two databases of letters", len(cases), died, listed, halfway)
	if listed == 0 || halfway == 0 {
		t.Error("the suite is blind: no process died in the middle")
	}
}
