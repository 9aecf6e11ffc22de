package crashtest

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
)

var (
	long = flag.Bool("long", false, "many more rounds of everything")
	seed = flag.Uint64("seed", 0, "seed of all random choices; 0 draws one")
)

// jobEnv holds the job of a child. Its presence makes the test binary a child.
const jobEnv = "SLUICE_CRASHTEST_JOB"

func TestMain(m *testing.M) {
	text := os.Getenv(jobEnv)
	if text == "" {
		flag.Parse()
		os.Exit(m.Run())
	}
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFault)
	}
	switch j.Role {
	case roleWork:
		w := &worker{job: j}
		w.main()
	case roleCensus:
		j.census()
	case roleUnsynced, roleBare:
		j.bare(j.Role == roleBare)
	case roleBareCensus:
		j.bareCensus()
	}
	os.Exit(exitFault)
}

// newRand gives a source of random choices whose seed is logged.
func newRand(t *testing.T) (*rand.Rand, uint64) {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed=%d", s)
	return rand.New(rand.NewPCG(s, 0)), s
}

// rounds gives how many rounds a test plays.
func rounds(ci, withLong int) int {
	if *long {
		return withLong
	}
	return ci
}

// needRoot skips a test that must mount.
func needRoot(t *testing.T, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root and loop devices: not root; nothing is proven by this run")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("SKIPPED: needs root and loop devices: %v; nothing is proven by this run", err)
	}
	needTools(t, tools...)
}

func needTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: needs root and loop devices and %s: %v; nothing is proven by this run", tool, err)
		}
	}
}
