package accesslog

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A Path is a file that [Expand] found.
type Path struct {
	Name string // or Stdin
	Size int64  // in bytes, compressed as it may be; -1 for what has none
	id   fileID
}

// A Repeat is a path that leads to a file already in the list, which is read once.
type Repeat struct{ Name, Of string }

// A Problem is a path, or a pattern, that leads to no file. Its error names it as well.
type Problem struct {
	Name string
	Err  error
}

// Expand turns arguments into the files to read: a pattern of [path/filepath.Match] that
// is not itself a file becomes the files that match it, and a file named twice, or
// reached through two names or links, is kept once and reported. The rest keeps the
// order of the arguments, except that files of one log that was rotated come together,
// the oldest first: access.log-20240101, access.log.10.gz, access.log.2, access.log.
//
// What cannot be read is left out, as a problem: [fs.ErrNotExist] also
// for a pattern that matches nothing, [filepath.ErrBadPattern], [ErrDirectory],
// [ErrDevice], or that of the stat. Whether a file may be read shows when it is opened.
func Expand(arguments []string) (paths []Path, repeats []Repeat, problems []Problem) {
	var names []string
	for _, arg := range arguments {
		if _, err := os.Lstat(arg); err == nil || arg == Stdin || !strings.ContainsAny(arg, `*?[\`) {
			names = append(names, arg)
			continue
		}
		matches, err := filepath.Glob(arg)
		if err == nil && len(matches) == 0 {
			err = fs.ErrNotExist
		}
		if err != nil {
			problems = append(problems, Problem{arg, fmt.Errorf("%s: %w", arg, err)})
		}
		names = append(names, matches...)
	}
	sortRotated(names)

	first := make(map[fileID]string)
	stdin := false
	for _, name := range names {
		if name == Stdin {
			if stdin {
				repeats = append(repeats, Repeat{name, name})
				continue
			}
			stdin = true
			paths = append(paths, Path{Name: name, Size: -1})
			continue
		}
		if err := checkKind(name); err != nil {
			problems = append(problems, Problem{name, err})
			continue
		}
		info, err := os.Stat(name)
		if err != nil {
			problems = append(problems, Problem{name, err})
			continue
		}
		id := idOf(info)
		if of, ok := first[id]; ok {
			repeats = append(repeats, Repeat{name, of})
			continue
		}
		first[id] = name
		size := int64(-1)
		if info.Mode().IsRegular() {
			size = info.Size()
		}
		paths = append(paths, Path{name, size, id})
	}
	return paths, repeats, problems
}

// rotatedName is what logrotate and its like make of a log's name: a date, or a count
// that is higher the older the file is, and then the compression's ending (logrotate(8),
// "dateext", "dateformat" and "start").
var rotatedName = regexp.MustCompile(`^(.+?)(?:[-._](\d{4}-?\d\d-?\d\d(?:[-._T]?\d+)*))?(?:\.(\d{1,5}))?(?:\.(?:gz|zst|zstd|bz2))?$`)

// LogOf gives the name of the log that a file is a part of: its own without what rotation
// and compression have put behind it.
func LogOf(name string) string { return rotationOf(name).log }

type rotation struct {
	name, log   string
	group       int
	date, count string
}

func rotationOf(name string) rotation {
	m := rotatedName.FindStringSubmatch(name)
	if m == nil {
		return rotation{name: name, log: name}
	}
	return rotation{name: name, log: m[1], date: strings.ReplaceAll(m[2], "-", ""), count: m[3]}
}

// sortRotated brings the files of each log together, where its first one stands, and
// the oldest to the front: dates upwards, then counts downwards, then the log itself.
func sortRotated(names []string) {
	groups := make(map[string]int)
	list := make([]rotation, len(names))
	for i, name := range names {
		r := rotationOf(name)
		if _, ok := groups[r.log]; !ok {
			groups[r.log] = i
		}
		r.group = groups[r.log]
		list[i] = r
	}
	slices.SortStableFunc(list, func(a, b rotation) int {
		return cmp.Or(
			cmp.Compare(a.group, b.group),
			-compareBool(a.date != "", b.date != ""),
			cmp.Compare(a.date, b.date),
			-compareBool(a.count != "", b.count != ""),
			-compareDigits(a.count, b.count),
		)
	})
	for i, r := range list {
		names[i] = r.name
	}
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

// compareDigits compares as numbers, of any length.
func compareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}
