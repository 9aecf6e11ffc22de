package config

import (
	"fmt"
	"strings"
)

// A Fault is one thing that is wrong with the settings, or, as a warning,
// doubtful.
type Fault struct {
	Setting string // the name, as in the file
	Value   string // as written; empty when not set, or when it must not be shown
	Source  string // "flag", "environment", "FILE:LINE", or "default"
	Want    string // what is wrong and what is allowed
}

// Error names setting, value, source and what is allowed, in one line.
func (f Fault) Error() string { return f.Setting + f.details() }

// Why is Error without the name of the setting.
func (f Fault) Why() string {
	return strings.TrimPrefix(strings.TrimPrefix(f.details(), ":"), " ")
}

func (f Fault) details() string {
	var b strings.Builder
	if f.Value != "" {
		fmt.Fprintf(&b, ": %q", f.Value)
	}
	if f.Source != "" && f.Source != sourceDefault {
		fmt.Fprintf(&b, " (%s)", f.Source)
	}
	b.WriteString(": " + f.Want)
	return b.String()
}

// Faults is all that is wrong with the settings, in the order of their names in
// the grammar.
type Faults []Fault

// Error gives one line a fault.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Err returns nil when there is no fault.
func (fs Faults) Err() error {
	if len(fs) == 0 {
		return nil
	}
	return fs
}

// maxTypos is how many letters a name may be wrong in to be taken for a typing
// error of a known one.
const maxTypos = 3

// nearest returns the known name that name was probably meant to be, or "".
func nearest(name string, known []string) string {
	best, bestDistance := "", maxTypos+1
	for _, k := range known {
		if d := distance(name, k); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	if bestDistance >= len(name) {
		return ""
	}
	return best
}

// distance counts the single-byte insertions, deletions and replacements between
// a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
