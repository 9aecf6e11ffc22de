package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A printer writes what commands answer.
type printer struct {
	*process
	color bool
}

// A tone is what a line means for the reader.
type tone int

// The tones: mark and colour say the same.
const (
	toneOK tone = iota
	toneBusy
	toneWarn
	toneBad
	toneUnset
)

// marks are ASCII, so that they survive any terminal and any log.
var marks = [...]string{toneOK: "ok", toneBusy: "..", toneWarn: "!!", toneBad: "XX", toneUnset: "--"}

// colors are the escape sequences of green, blue, yellow, red and grey.
var colors = [...]string{toneOK: "32", toneBusy: "34", toneWarn: "33", toneBad: "31", toneUnset: "90"}

// mark gives the two letters of a tone, coloured if wanted.
func (o *printer) mark(t tone) string { return o.paint(t, marks[t]) }

// paint colours a word.
func (o *printer) paint(t tone, word string) string {
	if !o.color {
		return word
	}
	return "\x1b[" + colors[t] + "m" + word + "\x1b[0m"
}

func (o *printer) printf(format string, args ...any) {
	fmt.Fprintf(o.stdout, format, args...)
}

// json writes one value on one line.
func (o *printer) json(v any) error {
	encoder := json.NewEncoder(o.stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// table prints rows with columns as wide as they must be. Columns whose name ends in
// a space are aligned to the right.
func (o *printer) table(head []string, rows [][]string) {
	width := make([]int, len(head))
	for _, row := range slices.Concat([][]string{head}, rows) {
		for i, cell := range row {
			width[i] = max(width[i], len(strings.TrimRight(cell, " ")))
		}
	}
	line := func(row []string) {
		var b strings.Builder
		for i, cell := range row {
			cell = strings.TrimRight(cell, " ")
			pad := strings.Repeat(" ", width[i]-len(cell))
			if strings.HasSuffix(head[i], " ") {
				b.WriteString(pad + cell + "  ")
			} else {
				b.WriteString(cell + pad + "  ")
			}
		}
		o.printf("%s\n", strings.TrimRight(b.String(), " "))
	}
	line(head)
	for _, row := range rows {
		line(row)
	}
}

// colorWanted decides on colour: only on a terminal, unless it is asked for.
func colorWanted(choice string, p *process) bool {
	switch choice {
	case "always":
		return true
	case "never":
		return false
	}
	return isTerminal(p.stdout) && lookup(p.env, "NO_COLOR") == "" && lookup(p.env, "TERM") != "dumb"
}

// isTerminal reports whether a human looks at f.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// lookup gives a variable of an environment, or "".
func lookup(env []string, name string) string {
	for _, line := range env {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return value
		}
	}
	return ""
}

// number writes an integer with thousands separators.
func number(n int64) string {
	digits := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

// size writes bytes with three figures and a binary unit.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	if n < 0 {
		return "-" + size(-n)
	}
	value, unit := float64(n), 0
	for value >= 1000 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	if unit == 0 || value >= 99.95 {
		return fmt.Sprintf("%.0f %s", value, units[unit])
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}

// span writes a duration with its two largest units.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0 s"
	case d < time.Second:
		return milliseconds(d)
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < day:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%d d %d h", d/day, d%day/time.Hour)
	}
}

// milliseconds writes a short duration: one decimal below ten.
func milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms < 9.95 {
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// seconds makes a duration of what JSON carries.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// clock writes a time of day in the local zone, with the date unless it is today.
func (p *process) clock(t time.Time) string {
	t, today := t.In(p.zone), p.now().In(p.zone)
	if t.Format(time.DateOnly) == today.Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

// rate writes hits a second.
func rate(perSecond float64) string {
	if perSecond > 0 && perSecond < 10 {
		return fmt.Sprintf("%.1f/s", perSecond)
	}
	return number(int64(perSecond+0.5)) + "/s"
}
