package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// A table is the figures of a run.
type table struct{ rows []row }

// A row is one figure. Target is empty for one that is shown without a verdict.
type row struct {
	figure, value, target string
	met                   bool
	detail                string
}

// atLeast adds a figure that is to be min or more.
func (t *table) atLeast(figure string, value, min float64, format, detail string) {
	t.rows = append(t.rows, row{figure, fmt.Sprintf(format, value), "≥ " + fmt.Sprintf(format, min), value >= min, detail})
}

// below adds a figure that is to be less than limit.
func (t *table) below(figure string, value, limit float64, format, detail string) {
	t.rows = append(t.rows, row{figure, fmt.Sprintf(format, value), "< " + fmt.Sprintf(format, limit), value < limit, detail})
}

// shown adds a figure without a target.
func (t *table) shown(figure, value, detail string) {
	t.rows = append(t.rows, row{figure: figure, value: value, detail: detail})
}

func (t *table) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FIGURE\tVALUE\tTARGET\t\tDETAIL")
	for _, r := range t.rows {
		verdict := ""
		switch {
		case r.target == "":
		case r.met:
			verdict = "pass"
		default:
			verdict = "MISS"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.figure, r.value, r.target, verdict, r.detail)
	}
	_ = w.Flush() // nobody is left to tell
}

// A usage is CPU time at one moment: of the whole machine, and of this program
// with all that it has started and seen end.
type usage struct{ at, machine, own time.Duration }

func usageNow(began time.Time) usage {
	u := usage{at: time.Since(began)}
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u
	}
	line, _, _ := strings.Cut(string(text), "\n")
	u.machine = busyTime(line)
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if unix.Getrusage(who, &r) == nil {
			u.own += time.Duration(r.Utime.Nano() + r.Stime.Nano())
		}
	}
	return u
}

// busyTime reads the first line of /proc/stat: the time of all CPUs that was
// neither idle nor waiting for a disk.
func busyTime(line string) time.Duration {
	const idle, waiting, guest = 4, 5, 9 // guests' time stands under user as well
	total := time.Duration(0)
	for i, field := range strings.Fields(line) {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || i == idle || i == waiting || i >= guest {
			continue
		}
		total += time.Duration(n) * tick
	}
	return total
}

// others gives the part of the machine's CPUs that everybody else has used between
// two moments.
func others(from, to usage) float64 {
	foreign := (to.machine - from.machine) - (to.own - from.own)
	return float64(max(0, foreign)) / float64(max(1, to.at-from.at)) / float64(runtime.NumCPU())
}

// quietMachine is the part of the CPUs that others may use. Above it they take so
// much from a server with many threads, and from the disk, that targets are missed
// for no fault of Sluice.
const quietMachine = 0.10

// describe says where and under which load of others the figures were taken.
func describe(out io.Writer, dir string, took time.Duration, foreign float64) {
	fmt.Fprintf(out, "\n%s, %d CPUs, Linux %s, %s, %s; %s, %s\n", cpuModel(), runtime.NumCPU(), kernel(), fileSystem(dir),
		runtime.Version(), firstLine("nginx", "-v"), firstLine("wrk", "-v"))
	fmt.Fprintf(out, "took %s; other programs used %.0f %% of the CPUs meanwhile\n", took.Round(time.Second), 100*foreign)
	if foreign > quietMachine {
		fmt.Fprintln(out, "That is too much for the figures to mean anything: repeat when the machine is quiet.")
	}
	fmt.Fprintln(out)
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	defer f.Close() // it was only read
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "of unknown version"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// fileSystem names what the data lay on: on a tmpfs syncing costs nothing and the
// figures are worth nothing.
func fileSystem(dir string) string {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return "unknown file system"
	}
	switch s.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "TMPFS (nothing is synced here: worthless figures)"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	}
	return fmt.Sprintf("file system %#x", s.Type)
}

// firstLine gives the first line that a tool says about itself.
func firstLine(tool string, args ...string) string {
	out, _ := exec.Command(tool, args...).CombinedOutput() // wrk ends with 1 after its help
	line, _, _ := strings.Cut(strings.TrimPrefix(string(out), "nginx version: "), "\n")
	line, _, _ = strings.Cut(line, " Copyright")
	if line == "" {
		return "no " + tool
	}
	return line
}

// inMillis gives durations in milliseconds, in the same order.
func inMillis(list []time.Duration) []float64 {
	out := make([]float64, len(list))
	for i, d := range list {
		out[i] = float64(d) / float64(time.Millisecond)
	}
	return out
}
