package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// plan is how long each part runs.
type plan struct {
	rounds    int           // of each side of a part beside nginx
	round     time.Duration // of one side
	openLoop  time.Duration
	drainHits int

	importLines int
}

// The two plans. The long one keeps to five minutes, building included, on two
// cores; the short one to one minute and a half.
var (
	fullPlan  = plan{rounds: 3, round: 4 * time.Second, openLoop: 15 * time.Second, drainHits: 1_000_000, importLines: 300_000}
	quickPlan = plan{rounds: 1, round: 2 * time.Second, openLoop: 5 * time.Second, drainHits: 200_000, importLines: 100_000}
)

// A bench is one run of the program.
type bench struct {
	plan
	dir     string // of everything that is written
	sluice  string // the built command
	hits    []sample
	profile string // where CPU profiles go; "" = none are taken
	table   table
}

// A part is one measurement that can be asked for by name.
type part struct {
	name string
	run  func(context.Context, *bench) error
}

func parts() []part {
	return []part{
		{"accept-http-64", acceptPart(false, 64)},
		{"accept-http-256", acceptPart(false, 256)},
		{"accept-https-64", acceptPart(true, 64)},
		{"accept-https-256", acceptPart(true, 256)},
		{"files-plain-64", filesPart("", 64)},
		{"files-plain-256", filesPart("", 256)},
		{"files-gzip-64", filesPart("gzip", 64)},
		{"files-gzip-256", filesPart("gzip", 256)},
		{"pages-64", pagesPart},
		{"openloop", openLoopPart},
		{"idle", idlePart},
		{"drain", drainPart},
		{"import", importPart},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	role := flag.String("role", "", "internal: matomo runs the counting Matomo until standard input ends")
	only := flag.String("only", "", "parts to run, by comma; a name's beginning selects all that go on with a dash: "+partNames())
	quick := flag.Bool("quick", false, "short rounds and fewer hits: one minute")
	hits := flag.String("hits", "testdata/bench/hits.jsonl", "the hits that are sent")
	temp := flag.String("dir", "", "where the temporary folder is made; a real disk, never a tmpfs (default: the system's)")
	profile := flag.String("profile", "", "write CPU profiles of sluice to this folder")
	rounds := flag.Int("rounds", 0, "rounds of a part beside nginx (default 3, or 1 with -quick): more for a busy machine")
	lines := flag.Int("import-lines", 0, "lines of the part import (default 300,000, or 100,000 with -quick); 10,000,000 take 25 GB of disk")
	limit := flag.Duration("limit", 6*time.Minute, "end of everything")
	flag.Parse()
	if *role == "matomo" {
		return serveMatomo(os.Stdin, os.Stdout)
	}
	if *role != "" || flag.NArg() > 0 {
		return errors.New("unknown role or argument; see -help")
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()

	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	if err := needed(chosen); err != nil {
		return err
	}
	b := &bench{plan: fullPlan, profile: *profile}
	if *quick {
		b.plan = quickPlan
	}
	if *rounds > 0 {
		b.rounds = *rounds
	}
	if *lines > 0 {
		b.importLines = *lines
	}
	if b.hits, err = loadSamples(*hits); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(*temp, "sluice-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir) // what is left of it is of no use to anybody
	if b.sluice, err = build(ctx, b.dir); err != nil {
		return err
	}
	return b.measure(ctx, chosen)
}

// measure runs the parts one after the other and prints what came out, also when
// some failed.
func (b *bench) measure(ctx context.Context, chosen []part) error {
	began := time.Now()
	before := usageNow(began)
	var failures error
	for _, p := range chosen {
		fmt.Fprintf(os.Stderr, "bench: %3.0f s: %s\n", time.Since(began).Seconds(), p.name)
		if err := p.run(ctx, b); err != nil {
			failures = errors.Join(failures, fmt.Errorf("%s: %w", p.name, err))
		}
		if ctx.Err() != nil {
			failures = errors.Join(failures, context.Cause(ctx))
			break
		}
	}
	describe(os.Stdout, b.dir, time.Since(began), others(before, usageNow(began)))
	b.table.print(os.Stdout)
	fmt.Printf("\nOne part again:  go run ./internal/testkit/bench -only PART   with PART one of\n  %s\nShorter: -quick.  CPU profiles of sluice: -profile DIR.\n", partNames())
	return failures
}

func partNames() string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

// choose gives the parts that a list of names selects, in the order in which they
// run; all for an empty list.
func choose(only string) ([]part, error) {
	all := parts()
	if only == "" {
		return all, nil
	}
	var chosen []part
	wanted := strings.Split(only, ",")
	for _, w := range wanted {
		if !slices.ContainsFunc(all, func(p part) bool { return p.selectedBy(w) }) {
			return nil, fmt.Errorf("unknown part %q, want some of %s", w, partNames())
		}
	}
	for _, p := range all {
		if slices.ContainsFunc(wanted, p.selectedBy) {
			chosen = append(chosen, p)
		}
	}
	return chosen, nil
}

func (p part) selectedBy(name string) bool {
	return p.name == name || strings.HasPrefix(p.name, name+"-")
}

// needed says what the parts need and this machine lacks.
func needed(chosen []part) error {
	besideNginx := func(p part) bool { return p.selectedBy("accept") || p.selectedBy("files") || p.selectedBy("pages") }
	if !slices.ContainsFunc(chosen, besideNginx) {
		return nil
	}
	var missing []string
	for _, tool := range []string{"nginx", "wrk"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	if missing == nil {
		return nil
	}
	list := strings.Join(missing, " ")
	return fmt.Errorf("missing here: %s\n  try: apt-get install -y %s\n  or without them: -only openloop,idle,drain,import", list, list)
}

// build makes the command as it ships.
func build(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "sluice")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "./cmd/sluice")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build sluice: %w\n%s", err, out)
	}
	return path, nil
}
